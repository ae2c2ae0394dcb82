import { cpus } from "node:os";
import process from "node:process";
import { parseArgs } from "node:util";
import type { Backend } from "../backend.ts";
import { openBackend } from "../open.ts";
import { BENCH_CASES, type BenchCase, type Bound, type OpenCase } from "./bench_cases.ts";
import { type Body, median, timeInTurns, type Times } from "./bench_timing.ts";
import type { Command } from "./command.ts";
import { openPeaks, type Peak, type Peaks } from "./peak.ts";
import { formatTable } from "./table.ts";
import { dimTitles, isTerminal, print, printJson } from "./terminal.ts";

const HELP =
  `Measure the kernels, in one thread, against what this machine can do: the peak of multiply-adds and of reading
memory, measured in turns with each kernel. \`deno task bench\` in the repository measures other libraries beside them.

Usage: lora bench [--json]

  --json    { cpu, runtime, peak: { fmaGflops, readGBs },
              results: [{ name, shape, gflops?, gbs?, ofPeak, msMedian, overBase? }] }
            rates and parts are of the least times; overBase: time with the adapter over time without it, less 1
`;

/** One figure. */
export interface Result {
  readonly name: string;
  readonly shape: string;
  readonly gflops?: number;
  readonly gbs?: number;
  /** By least times, as all but `msMedian`. */
  readonly ofPeak: number;
  readonly msMedian: number;
  readonly overBase?: number;
}

/** How long each figure is measured, in ms. */
export interface BenchTimes {
  /** Until the engine has compiled the kernels to its best. */
  readonly warmUp: number;
  /** Of one figure. */
  readonly single: number;
  /** Of a figure that compares two times: their difference needs more rounds. */
  readonly compared: number;
  /** Rounds of a figure that takes longer; 3 if absent. */
  readonly fewest?: number;
}

/** A limit as it was measured in turns with a figure. */
export interface TimedBound extends Bound {
  /** FLOP or bytes that its times are for. */
  readonly per: number;
  /** Its times. */
  readonly times: Times;
}

/** The times of one case. */
export interface TimedCase {
  /** Of the case. */
  readonly times: Times;
  /** Of what it is compared with. */
  readonly base?: Times;
  /** Of its limits. */
  readonly bounds: readonly [TimedBound, ...TimedBound[]];
}

/** What {@linkcode measureCases} found. */
export interface Measured {
  /** The machine's best, in the same run. */
  readonly peak: { readonly fmaGflops: number; readonly readGBs: number };
  /** One for each case. */
  readonly results: readonly Result[];
}

const TIMES: BenchTimes = { warmUp: 200, single: 1000, compared: 2000 };

/** Repeats a peak until it takes as long as a body: on a busy machine a longer one would never run undisturbed. */
function matchLength(peak: Peak, peakMs: number, ms: number): Peak {
  const count = Math.max(1, Math.round(ms / peakMs));
  const run = () => {
    for (let index = 0; index < count; index++) peak.run();
  };
  return { work: count * peak.work, run };
}

/** Times a case in turns with its limits, and with what it is compared with; its matrices stay. */
export async function timeCase(
  { body, base, bounds }: Omit<OpenCase, "dispose">,
  peaks: Peaks,
  times: BenchTimes,
  signal?: AbortSignal,
): Promise<TimedCase> {
  const turns = async (bodies: readonly Body[], ms: number, fewest: number) =>
    await timeInTurns(bodies, { ms, most: 4 * ms, fewest, ...(signal && { signal }) });
  const own = bounds.map(({ kind }) => peaks[kind]);
  const [first, ...limits] = await turns([body, ...own], times.warmUp, 1);
  const matched = own.map((peak, index) => matchLength(peak, limits[index]!.least, first!.least));
  const others = base ? [body, base] : [body];
  const timed = await turns([...matched, ...others], base ? times.compared : times.single, times.fewest ?? 3);
  const timedBounds = bounds.map((bound, index) => ({ ...bound, per: matched[index]!.work, times: timed[index]! }));
  return {
    times: timed[bounds.length]!,
    bounds: timedBounds as [TimedBound, ...TimedBound[]],
    ...(base && { base: timed[bounds.length + 1]! }),
  };
}

/** The least time that the limits allow over the time taken: 1 is the limit. By least times. */
export function partOfLimit({ times, bounds }: TimedCase): number {
  const floors = bounds.map(({ work, per, times: { least } }) => least * work / per);
  return Math.max(...floors) / times.least;
}

function resultOf({ name, shape }: BenchCase, timed: TimedCase): Result {
  const { times, base, bounds: [{ kind, work }] } = timed;
  const rate = work / times.least / 1e6;
  const unit = kind === "fma" ? { gflops: rate } : { gbs: rate };
  const result = { name, shape, ...unit, ofPeak: partOfLimit(timed), msMedian: median(times.batches) };
  return base ? { ...result, overBase: times.least / base.least - 1 } : result;
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

/** Measures each case in turns with the limits that bound it. */
export async function measureCases(
  backend: Backend,
  cases: readonly BenchCase[],
  times: BenchTimes,
  signal: AbortSignal,
): Promise<Measured> {
  const peaks = await openPeaks();
  const best = { fma: 0, read: 0, copy: 0 };
  const results: Result[] = [];
  for (const entry of cases) {
    if (isTerminal("stderr")) print(`\r${entry.name}, ${entry.shape}\x1b[K`, "stderr");
    const open = entry.open(backend);
    try {
      const timed = await timeCase(open, peaks, times, signal);
      for (const { kind, per, times: { least } } of timed.bounds) best[kind] = Math.max(best[kind], per / least / 1e6);
      results.push(resultOf(entry, timed));
    } finally {
      open.dispose();
    }
  }
  if (isTerminal("stderr")) print("\r\x1b[K", "stderr");
  return { peak: { fmaGflops: best.fma, readGBs: best.read }, results };
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
