/** This package's kernels, each in turns with the limits of the silicon. */
import type { Backend, WeightDtype } from "../../src/backend.ts";
import { timeCase } from "../../src/cli/bench.ts";
import { type BenchCase, linearCase, loraCase, manyAdaptersCase, mergeCase } from "../../src/cli/bench_cases.ts";
import { openPeaks, type Peaks } from "../../src/cli/peak.ts";
import { attempt, engineName, readJob, report, timesOf } from "../child.ts";
import { flopOf, gemmShapes, gemvShapes, loraCases, type Shape, wants } from "../shapes.ts";
import { openThreads } from "../threads.ts";
import type { Job, Topic } from "../types.ts";

const DTYPES: readonly string[] = ["f32", "bf16", "int8", "int4", "nf4"];
const PRODUCTS: readonly string[] = ["f32", "bf16", "int8", "int4"];
const LARGE: Shape = { rows: 128, inputs: 4096, outputs: 4096 };

interface Entry {
  readonly topic: Topic;
  readonly variant: string;
  readonly flop: number;
  readonly entry: BenchCase;
}

function linear(topic: Topic, { rows, inputs, outputs }: Shape, variant: string): Entry {
  const entry = linearCase(rows, inputs, variant as WeightDtype, outputs);
  return { topic, variant, flop: flopOf({ rows, inputs, outputs }), entry };
}

function* entriesOf(job: Job): Generator<Entry> {
  for (const shape of gemmShapes(job)) yield linear("gemm", shape, "f32");
  for (const variant of PRODUCTS.slice(1)) yield linear("gemm", LARGE, variant);
  for (const shape of gemvShapes(job)) {
    for (const variant of DTYPES) yield linear("gemv", shape, variant);
  }
  for (const { rank, shape: { rows, inputs } } of loraCases(job)) {
    const flop = 2 * rows * inputs * (inputs + 2 * rank);
    yield { topic: "lora", variant: `f32 r=${rank}`, flop, entry: loraCase(rows, inputs, rank) };
  }
  const flop = 2 * 8 * 4096 * (4096 + 2 * 16);
  yield { topic: "lora", variant: "f32 r=16, 8 adapters", flop, entry: manyAdaptersCase(8, 4096) };
  yield { topic: "merge", variant: "f32 r=16", flop: 2 * 16 * 4096 ** 2, entry: mergeCase(4096) };
}

/** Two threads are compared with one: only what the targets name. */
function isForThreads({ topic, variant, entry: { shape } }: Entry): boolean {
  if (topic === "gemm") return ["f32", "int8"].includes(variant) && !/^(256|2048) /.test(shape);
  return topic === "gemv" && shape === "1 x 4096 x 4096";
}

async function measure(
  backend: Backend,
  peaks: Peaks,
  job: Job,
  { topic, variant, flop, entry }: Entry,
): Promise<void> {
  const open = entry.open(backend);
  try {
    const { bounds: limits, ...timed } = await timeCase(open, peaks, timesOf(job));
    const bytes = limits.find(({ kind }) => kind === "read")?.work;
    const work = { flop, ...(bytes !== undefined && { bytes }) };
    report({ kind: "figure", topic, name: entry.shape, variant, work, ...timed, limits });
  } finally {
    open.dispose();
  }
}

const job = readJob();
report({ kind: "engine", engine: engineName() });
const backend = await openThreads(job.threads);
const peaks = await openPeaks();
for (const entry of entriesOf(job)) {
  if (!wants(job, entry.topic) || (job.threads > 1 && !isForThreads(entry))) continue;
  await attempt(entry.topic, entry.variant, async () => await measure(backend, peaks, job, entry));
}
backend.dispose();
