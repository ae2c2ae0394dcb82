/** What every measuring process has in common: its job, how it reports, how long it measures. */
import { readFileSync } from "node:fs";
import process from "node:process";
import { pathToFileURL } from "node:url";
import { type Body, timeInTurns, type Times } from "../src/cli/bench_timing.ts";
import { type BenchTimes, timeCase } from "../src/cli/bench.ts";
import { openPeaks, type PeakKind } from "../src/cli/peak.ts";
import type { Job, Measurement, Message, Topic } from "./types.ts";

/** What a line of a report begins with; libraries print lines of their own. */
export const MARK = "@bench ";

/** The job in the first argument. */
export function readJob(): Job {
  return JSON.parse(process.argv[2] ?? "") as Job;
}

/** Sends one message to the parent. */
export function report(message: Message): void {
  process.stdout.write(MARK + JSON.stringify(message) + "\n");
}

/** Name and version of the engine that runs this. */
export function engineName(): string {
  const { deno, bun, node } = process.versions as Readonly<Record<string, string | undefined>>;
  return deno ? `Deno ${deno}` : bun ? `Bun ${bun}` : `Node ${node}`;
}

/** How long a figure is measured, in ms. */
export function timesOf({ quick }: Job): BenchTimes {
  return quick
    ? { warmUp: 60, single: 200, compared: 400, fewest: 2 }
    : { warmUp: 200, single: 1000, compared: 2500, fewest: 3 };
}

/** What a process measures with: bodies in turns, and in turns with limits where there are some. */
export interface Stopwatch {
  /** Warm-up, then times. */
  time(bodies: readonly Body[]): Promise<Times[]>;
  /** The same in turns with a limit: on a busy machine it is the share of it that says something. */
  timeAgainst(kind: PeakKind, work: number, body: Body, base?: Body): Promise<TimedFigure>;
}

/** Times as a figure keeps them. */
export type TimedFigure = Pick<Measurement, "times" | "base" | "limits">;

/** Opens what a job measures with. On several threads nothing takes turns: idle threads that spin would slow it. */
export async function openStopwatch(job: Job): Promise<Stopwatch> {
  const times = timesOf(job);
  const { warmUp, single, compared, fewest = 3 } = times;
  const peaks = await openPeaks();
  const time = async (bodies: readonly Body[]) => {
    const ms = bodies.length > 1 ? compared : single;
    await timeInTurns(bodies, { ms: warmUp, most: warmUp, fewest: 1 });
    return await timeInTurns(bodies, { ms, most: 4 * ms, fewest });
  };
  return {
    time,
    timeAgainst: async (kind, work, body, base) => {
      if (job.threads > 1) {
        const [own, other] = await time(base ? [body, base] : [body]);
        return { times: own!, ...(other && { base: other }) };
      }
      const open = { body, bounds: [{ kind, work }] as const, ...(base && { base }) };
      const { bounds: limits, ...timed } = await timeCase(open, peaks, times);
      return { ...timed, limits };
    },
  };
}

/** Measures one case; what fails in it is reported, and the next case goes on. */
export async function attempt(topic: Topic, variant: string, measure: () => Promise<void>): Promise<void> {
  try {
    await measure();
  } catch (error) {
    report({ kind: "absent", topic, variant, error: error instanceof Error ? error.message : String(error) });
  }
}

/** Imports a file of an installed peer. */
export async function importPeer<T>({ home }: Job, path: string): Promise<T> {
  return await import(pathToFileURL(`${home}/peers/${path}`).href) as T;
}

/** The version in a peer's package.json. */
export function peerVersion({ home }: Job, folder: string): string {
  return (JSON.parse(readFileSync(`${home}/peers/${folder}/package.json`, "utf8")) as { version: string }).version;
}
