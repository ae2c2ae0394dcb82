/** What every measuring process has in common: its job, how it reports, how long it measures. */
import { readFileSync } from "node:fs";
import process from "node:process";
import { pathToFileURL } from "node:url";
import { type Body, timeInTurns, type Times } from "../src/cli/bench_timing.ts";
import type { Job, Message, Topic } from "./types.ts";

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
export function timesOf({ quick }: Job): { warmUp: number; single: number; compared: number } {
  return quick ? { warmUp: 60, single: 200, compared: 400 } : { warmUp: 200, single: 1000, compared: 2500 };
}

/** Runs bodies in turns: a warm-up first, then the times. */
export async function timePeer(bodies: readonly Body[], job: Job): Promise<Times[]> {
  const { warmUp, single, compared } = timesOf(job);
  const ms = bodies.length > 1 ? compared : single;
  await timeInTurns(bodies, { ms: warmUp, most: warmUp, fewest: 1 });
  return await timeInTurns(bodies, { ms, most: 4 * ms, ...(job.quick && { fewest: 2 }) });
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
