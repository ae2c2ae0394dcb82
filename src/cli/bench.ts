import { cpus } from "node:os";
import process from "node:process";
import { setImmediate } from "node:timers/promises";
import { parseArgs } from "node:util";
import type { Backend } from "../backend.ts";
import { openBackend } from "../open.ts";
import { BENCH_CASES, type BenchCase, type Body } from "./bench_cases.ts";
import type { Command } from "./command.ts";
import { openPeaks, type Peaks } from "./peak.ts";
import { formatTable } from "./table.ts";
import { dimTitles, isTerminal, print, printJson } from "./terminal.ts";

const HELP =
  `Measure the kernels, in one thread, against what this machine can do: the peak of multiply-adds and of reading
memory, measured in turns with each kernel.

Usage: lora bench [--json]

  --json    { cpu, runtime, peak: { fmaGflops, readGBs }, results: [{ name, shape, gflops?, gbs?, ofPeak, overBase? }] }
            overBase: time with the adapter over time without it, less 1
`;

/** One figure. */
export interface Result {
  readonly name: string;
  readonly shape: string;
  readonly gflops?: number;
  readonly gbs?: number;
  readonly ofPeak: number;
  readonly overBase?: number;
}

interface Timed {
  readonly result: Result;
  readonly peak: number;
}

/** How long each figure is measured, in ms. */
export interface BenchTimes {
  /** Until the engine has compiled the kernels to its best. */
  readonly warmUp: number;
  /** Of one figure. */
  readonly single: number;
  /** Of a figure that compares two times: their difference needs more rounds. */
  readonly compared: number;
}

/** What {@linkcode measureCases} found. */
export interface Measured {
  /** The machine's best, in the same run. */
  readonly peak: { readonly fmaGflops: number; readonly readGBs: number };
  /** One for each case. */
  readonly results: readonly Result[];
}

const TIMES: BenchTimes = { warmUp: 200, single: 1000, compared: 2000 };
const LEAST_ROUNDS = 5;

async function time(body: Body): Promise<number> {
  const start = performance.now();
  await body.run();
  const elapsed = performance.now() - start;
  body.undo?.();
  return elapsed;
}

/**
 * Least time of each body in ms. They run in turns, so that a busy or throttled moment hits all alike; behind the first,
 * the peak, they change places every round, because who comes later finds more of the matrix in the caches.
 */
async function leastTimes(bodies: readonly Body[], ms: number, signal: AbortSignal): Promise<number[]> {
  const least = bodies.map(() => Infinity);
  const start = performance.now();
  for (let round = 0; round < LEAST_ROUNDS || performance.now() - start < ms; round++) {
    const [peak, ...others] = [...bodies.entries()];
    for (const [index, body] of [peak!, ...(round % 2 === 0 ? others : others.reverse())]) {
      least[index] = Math.min(least[index] ?? Infinity, await time(body));
    }
    await setImmediate();
    signal.throwIfAborted();
  }
  return least;
}

/** Repeats a peak until it takes as long as a body: on a busy machine a longer one would never run undisturbed. */
async function matchLength(peak: Body, body: Body, warmUp: number, signal: AbortSignal): Promise<[Body, number]> {
  const [peakMs = 1, ms = 1] = await leastTimes([peak, body], warmUp, signal);
  const count = Math.max(1, Math.round(ms / peakMs));
  const run = () => {
    for (let index = 0; index < count; index++) peak.run();
  };
  return [{ run }, count];
}

async function measure(
  backend: Backend,
  peaks: Peaks,
  entry: BenchCase,
  times: BenchTimes,
  signal: AbortSignal,
): Promise<Timed> {
  const { body, base, dispose } = entry.open(backend);
  try {
    const fma = entry.bound === "fma";
    const [peak, count] = await matchLength({ run: fma ? peaks.fma : peaks.read }, body, times.warmUp, signal);
    const bodies = [peak, body, ...(base ? [base] : [])];
    const [peakMs = 0, ms = 0, baseMs] = await leastTimes(bodies, base ? times.compared : times.single, signal);
    const best = count * (fma ? peaks.fmaFlops : peaks.readBytes) / peakMs / 1e6;
    const rate = entry.work / ms / 1e6;
    const { name, shape } = entry;
    const result = { name, shape, ...(fma ? { gflops: rate } : { gbs: rate }), ofPeak: rate / best };
    return { peak: best, result: baseMs === undefined ? result : { ...result, overBase: ms / baseMs - 1 } };
  } finally {
    dispose();
  }
}

function runtimeName(): string {
  const { deno, bun, node } = process.versions as Readonly<Record<string, string | undefined>>;
  return deno ? `Deno ${deno}` : bun ? `Bun ${bun}` : `Node ${node}`;
}

function formatPercent(part: number): string {
  return `${(part * 100).toFixed(1)}%`;
}

function formatResults(results: readonly Result[]): string {
  const right = (title: string) => ({ title, align: "right" }) as const;
  const columns = [
    { title: "kernel" },
    right("shape"),
    right("GFLOP/s"),
    right("GB/s"),
    right("of peak"),
    right("over base"),
  ];
  const rows = results.map(({ name, shape, gflops, gbs, ofPeak, overBase }) => [
    name,
    shape,
    gflops?.toFixed(1) ?? "",
    gbs?.toFixed(1) ?? "",
    formatPercent(ofPeak),
    overBase === undefined ? "" : formatPercent(overBase),
  ]);
  return formatTable(columns, rows, dimTitles);
}

/** Measures each case in turns with the peak that bounds it. */
export async function measureCases(
  backend: Backend,
  cases: readonly BenchCase[],
  times: BenchTimes,
  signal: AbortSignal,
): Promise<Measured> {
  const peaks = await openPeaks();
  const timed = { fma: [] as Timed[], read: [] as Timed[] };
  const results: Result[] = [];
  for (const entry of cases) {
    if (isTerminal("stderr")) print(`\r${entry.name}, ${entry.shape}\x1b[K`, "stderr");
    const one = await measure(backend, peaks, entry, times, signal);
    timed[entry.bound].push(one);
    results.push(one.result);
  }
  if (isTerminal("stderr")) print("\r\x1b[K", "stderr");
  const best = (list: readonly Timed[]) => Math.max(...list.map(({ peak }) => peak));
  return { peak: { fmaGflops: best(timed.fma), readGBs: best(timed.read) }, results };
}

/** `lora bench` */
export const bench: Command = {
  help: HELP,
  async run(args, signal) {
    const { values } = parseArgs({ args, options: { json: { type: "boolean", default: false } } });
    const backend = await openBackend({ prefer: "wasm" });
    try {
      const cpu = cpus()[0]?.model.trim() ?? "unknown";
      const measured = await measureCases(backend, BENCH_CASES, TIMES, signal);
      const { fmaGflops, readGBs } = measured.peak;
      if (values.json) return printJson({ cpu, runtime: runtimeName(), ...measured });
      print(`${cpu}, ${runtimeName()}, ${backend.info.variant} SIMD, one thread\n`);
      print(`peak: ${fmaGflops.toFixed(1)} GFLOP/s of multiply-adds, ${readGBs.toFixed(1)} GB/s read\n\n`);
      print(formatResults(measured.results));
    } finally {
      backend.dispose();
    }
  },
};
