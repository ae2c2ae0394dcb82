/**
 * The kernels with their calls split among threads: the same functions with the same arguments, so that the operations
 * need not know. Every split is by what the kernels leave independent: columns, rows, heads or panels.
 *
 * @module
 */

import type { SharedKernel, Task } from "./control_block.ts";
import { DTYPE_CODES } from "./dtypes.ts";
import type { Kernels } from "./kernels.ts";
import type { ThreadPool } from "./thread_pool.ts";

/** Work that is worth a thread: waking one takes as long as a tenth of it, or less (KERNELS §11). */
const GRAIN = 1 << 20;
/** FLOP that take as long as reading a byte from memory: 64 KiB are a grain. */
const FLOP_PER_BYTE = 16;
/** Parts per thread: who is done first takes more. */
const PARTS = 4;
/** FLOP of a part at most: nobody waits long enough for it to doubt the worker. */
const LONGEST = 1 << 28;

/** Rows of whole tiles in both builds: a part then has the tiles that the whole has there, and so its bits. */
const TILE_ROWS = 30;
/** Rows that are not computed in blocks of their depth. */
const FEW_ROWS = 6;

/** How a call is split. */
interface Split extends Pick<Task, "counted" | "total" | "steps"> {
  /** Parts are multiples of this. */
  readonly unit: number;
  /** FLOP of the whole call, or what takes as long. */
  readonly work: number;
  /** The argument that is the scratch, and the bytes of it that a thread needs. */
  readonly scratch?: readonly [index: number, bytes: number];
  /** Most parts per thread, where each costs something beside its share; the default is `PARTS`. */
  readonly parts?: number;
}

/** Options of {@linkcode threadedKernels}. */
export interface SplitOptions {
  /** Work that is worth a thread; tests make it small, to split small operations too. */
  readonly grain?: number;
}

/** Kernels that split their large calls. `steps` of a split are here per one of what is counted. */
export function threadedKernels(kernels: Kernels, pool: ThreadPool, { grain = GRAIN }: SplitOptions = {}): Kernels {
  const share = (kernel: SharedKernel, values: number[], split: Split): number => {
    const chunk = chunkOf(split, pool.threads, grain);
    if (chunk >= split.total || !pool.ready()) return Number(kernels[kernel](...values) ?? 0);
    const steps = Object.fromEntries(Object.entries(split.steps).map(([index, step]) => [index, step * chunk]));
    const [at, bytes] = split.scratch ?? [];
    const slotSteps = at === undefined ? {} : { [at]: roundUp(bytes!, 64) };
    return pool.run({ kernel, values, chunk, steps, slotSteps, counted: split.counted, total: split.total });
  };
  const forAll = (bytes: number): number => bytes === 0 ? 0 : roundUp(bytes, 64) * pool.threads;
  return {
    ...kernels,
    ...linearKernels(kernels, share, forAll),
    ...backwardKernels(kernels, share, forAll),
    ...mergeKernels(kernels, share, forAll),
    ...transformerKernels(kernels, share, forAll),
  };
}

type Share = (kernel: SharedKernel, values: number[], split: Split) => number;
type ForAll = (bytes: number) => number;

function chunkOf({ total, unit, work, parts = PARTS }: Split, threads: number, grain: number): number {
  const worth = Math.floor(work / grain);
  if (worth < 2) return total;
  const most = Math.min(parts * threads, worth);
  const wanted = Math.max(most > threads ? most - most % threads : most, Math.ceil(work / LONGEST));
  return roundUp(Math.ceil(total / wanted), unit);
}

function roundUp(value: number, to: number): number {
  return Math.ceil(value / to) * to;
}

/** What a product costs: its FLOP, or the reading of its weight. */
function productWork(m: number, n: number, k: number): number {
  return n * k * Math.max(2 * m, 2 * FLOP_PER_BYTE);
}

/** Scratch for any number of the rows: few of them take other blocks than all. */
function linearScratch(kernels: Kernels, [m = 0, ...sizes]: readonly number[]): number {
  return Math.max(kernels.linear_scratch(m, ...sizes), kernels.linear_scratch(Math.min(m, FEW_ROWS), ...sizes));
}

function linearKernels(kernels: Kernels, share: Share, forAll: ForAll): Pick<Kernels, "linear" | "linear_scratch"> {
  return {
    linear_scratch: (...sizes) => forAll(linearScratch(kernels, sizes)),
    linear(...values) {
      const [, , , dtype = 0, , h = 0, , m = 0, n = 0, k = 0, r = 0, , columns = 0] = values;
      const work = productWork(m, columns, k + r);
      const scratch = [14, linearScratch(kernels, [m, n, k, dtype])] as const;
      // few columns and many rows, as of the first factor of an adapter: by rows
      const split = columns < 64 && m > columns
        ? { counted: 7, total: m, unit: TILE_ROWS, steps: { 0: 4 * n, 1: 4 * k, 5: h && 4 * r } }
        : { counted: 12, total: columns, unit: 8, steps: { 11: 1 } };
      share("linear", values, { ...split, work, scratch });
    },
  };
}

type BackwardKernels = Pick<
  Kernels,
  | "linear_backward_input"
  | "linear_backward_input_scratch"
  | "linear_backward_weight"
  | "linear_backward_weight_scratch"
>;

function backwardKernels(kernels: Kernels, share: Share, forAll: ForAll): BackwardKernels {
  return {
    linear_backward_input_scratch: (...sizes) => forAll(kernels.linear_backward_input_scratch(...sizes)),
    linear_backward_weight_scratch: (...sizes) => forAll(kernels.linear_backward_weight_scratch(...sizes)),
    linear_backward_input(...values) {
      const [, , , dtype = 0, m = 0, n = 0, k = 0, , columns = 0] = values;
      const scratch = [9, kernels.linear_backward_input_scratch(m, n, k, dtype)] as const;
      const split = columns < 128 && m > columns
        ? { counted: 4, total: m, unit: TILE_ROWS, steps: { 0: 4 * k, 1: 4 * n } }
        : { counted: 8, total: columns, unit: 64, steps: { 7: 1 } };
      share("linear_backward_input", values, { ...split, work: productWork(m, n, columns), scratch, parts: 2 });
    },
    linear_backward_weight(...values) {
      const [, , , m = 0, n = 0, k = 0, , kStride = 0] = values;
      const scratch = [8, kernels.linear_backward_weight_scratch(m, n, k)] as const;
      const split = n >= k
        ? { counted: 4, total: n, unit: TILE_ROWS, steps: { 0: 4 * kStride, 1: 4 } }
        : { counted: 5, total: k, unit: 64, steps: { 0: 4, 2: 4 } };
      share("linear_backward_weight", values, { ...split, work: productWork(m, n, k), scratch, parts: 1 });
    },
  };
}

type MergeKernels = Pick<Kernels, "merge" | "merge_scratch" | "delta_weight" | "delta_weight_scratch">;

function mergeKernels(kernels: Kernels, share: Share, forAll: ForAll): MergeKernels {
  return {
    merge_scratch: (...sizes) => forAll(kernels.merge_scratch(...sizes)),
    delta_weight_scratch: (...sizes) => forAll(kernels.delta_weight_scratch(...sizes)),
    merge(...values) {
      const [, , dtype = 0, , , ranks = 0, k = 0, , panels = 0] = values;
      const scratch = [9, kernels.merge_scratch(k, ranks, dtype)] as const;
      // quantized panels add to one pair of sums, which threads would have to share
      const isFloat = dtype === DTYPE_CODES.f32 || dtype === DTYPE_CODES.bf16;
      const work = isFloat ? productWork(ranks, 8 * panels, k) : 0;
      return share("merge", values, { counted: 8, total: panels, unit: 1, steps: { 7: 1 }, work, scratch, parts: 1 });
    },
    delta_weight(...values) {
      const [, , , , n = 0, k = 0, r = 0] = values;
      const scratch = [7, kernels.delta_weight_scratch(n, k, r)] as const;
      const [steps, work] = [{ 0: 4 * k, 2: 4 * r }, productWork(r, n, k)];
      share("delta_weight", values, { counted: 4, total: n, unit: 4 * TILE_ROWS, steps, work, scratch, parts: 1 });
    },
  };
}

type TransformerKernels = Pick<
  Kernels,
  "attention" | "attention_scratch" | "rms_norm" | "rope" | "silu_mul" | "add" | "cross_entropy"
>;

function transformerKernels(kernels: Kernels, share: Share, forAll: ForAll): TransformerKernels {
  /** Functions of single elements: three arrays, by cache lines. */
  const elements = (kernel: SharedKernel, values: number[], work: number): void => {
    const total = values[3] ?? 0;
    share(kernel, values, { counted: 3, total, unit: 16, steps: { 0: 4, 1: 4, 2: 4 }, work: total * work });
  };
  return {
    attention_scratch: (...sizes) => forAll(kernels.attention_scratch(...sizes)),
    attention(...values) {
      const [, , , , length = 0, , heads = 0, kvHeads = 0, dim = 0, past = 0, , , total = 0] = values;
      const scratch = [13, kernels.attention_scratch(length, past, heads, kvHeads, dim)] as const;
      const work = total * dim * (past + length) * Math.max(4 * length, 2 * FLOP_PER_BYTE);
      share("attention", values, { counted: 12, total, unit: 1, steps: { 11: 1 }, work, scratch });
    },
    rms_norm(...values) {
      const [, , , total = 0, dim = 0] = values;
      const work = 8 * FLOP_PER_BYTE * total * dim;
      share("rms_norm", values, { counted: 3, total, unit: 1, steps: { 0: 4 * dim, 1: 4 * dim }, work });
    },
    rope(...values) {
      const [, , , , total = 0, heads = 0, half = 0] = values;
      const steps = { 0: 8 * heads * half, 1: 8 * heads * half, 2: 4 * half, 3: 4 * half };
      share("rope", values, { counted: 4, total, unit: 1, steps, work: 16 * FLOP_PER_BYTE * total * heads * half });
    },
    silu_mul: (...values) => elements("silu_mul", values, 12 * FLOP_PER_BYTE),
    add: (...values) => elements("add", values, 12 * FLOP_PER_BYTE),
    cross_entropy(...values) {
      const [, , , total = 0, classes = 0] = values;
      const work = 8 * FLOP_PER_BYTE * total * classes;
      share("cross_entropy", values, { counted: 3, total, unit: 1, steps: { 0: 4, 1: 4 * classes, 2: 4 }, work });
    },
  };
}
