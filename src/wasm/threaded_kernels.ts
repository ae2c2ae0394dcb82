/**
 * The kernels with their calls split among threads: the same functions with the same arguments, so that the operations
 * need not know. Every split is by what the kernels leave independent: columns, rows, heads or panels.
 *
 * @module
 */

import type { SharedKernel, Step, Task } from "./control_block.ts";
import { DTYPE_CODES, INTEGERS } from "./dtypes.ts";
import type { Kernels } from "./kernels.ts";
import { RECORD_BYTES } from "./merge.ts";
import type { ThreadPool } from "./thread_pool.ts";

/** Work that is worth a thread: waking one takes as long as a tenth of it, or less (KERNELS §11). */
const GRAIN = 1 << 20;
/** FLOP that take as long as reading a byte from memory: 64 KiB are a grain. */
const FLOP_PER_BYTE = 16;
/** Parts per thread: who is done first takes more. */
const PARTS = 4;
/** Grains of a part where there are several per thread: handing one out takes as long as a tenth of it. */
const PART_GRAINS = 4;
/** FLOP of a part at most: nobody waits long enough for it to doubt the worker. */
const LONGEST = 1 << 28;
/** Rows of whole tiles in both builds, so that only the last part has a tile that is not full. */
const TILE_ROWS = 30;
/** Rows whose gradient is summed in another order (`rust-kernels/src/linear_backward_input.rs`). */
const FEW_ROWS = 6;

/** Fewer stream the cache (`rust-kernels/src/attention.rs`). */
const FEW_QUERIES = 4;
/**
 * Ranks from which stored rows are merged by several threads: with fewer, what reads, hashes and writes them beside takes
 * as long, and the threads' own copies of A cost a tenth of the processor's time (rank 16, Node 24).
 */
const SPLIT_RANK = 32;

/** What of a call is split. */
interface Axis extends Pick<Task, "counted" | "total" | "steps"> {
  /** Parts are multiples of this. */
  readonly unit: number;
  /** The last part has more than this. */
  readonly few?: number;
}

/** How a call is split. */
interface Split extends Axis {
  /** FLOP of the whole call, or what takes as long. */
  readonly work: number;
  /** The argument that is the scratch, and the bytes of it that a thread needs. */
  readonly scratch?: Step;
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
    const { counted, total, scratch } = split;
    const chunk = chunkOf(split, pool.threads, grain);
    if (chunk >= total || !pool.ready()) return Number(kernels[kernel](...values) ?? 0);
    const steps = split.steps.map(([index, step]) => [index, step * chunk] as const);
    const slotStep = scratch && [scratch[0], roundUp(scratch[1], 64)] as const;
    return pool.run({ kernel, values, chunk, steps, slotStep, counted, total });
  };
  const forAll = (bytes: number): number => bytes === 0 ? 0 : roundUp(bytes, 64) * pool.threads;
  return {
    ...kernels,
    ...linearKernels(kernels, share, forAll),
    ...backwardKernels(kernels, share, forAll),
    ...mergeKernels(kernels, share, forAll),
    ...attentionKernels(kernels, share, forAll),
    ...rowKernels(share),
  };
}

type Share = (kernel: SharedKernel, values: number[], split: Split) => number;
type ForAll = (bytes: number) => number;

function chunkOf({ total, unit, few = 0, work, parts = PARTS }: Split, threads: number, grain: number): number {
  if (work < 2 * grain) return total;
  const each = Math.min(parts, Math.floor(work / grain / PART_GRAINS / threads));
  const wanted = Math.max(Math.min(threads, Math.floor(work / grain)), each * threads, Math.ceil(work / LONGEST));
  let chunk = roundUp(Math.ceil(total / wanted), unit);
  while (chunk < total && (total - 1) % chunk < few) chunk += unit;
  return chunk;
}

function roundUp(value: number, to: number): number {
  return Math.ceil(value / to) * to;
}

/** What a product costs: its FLOP, or the reading of its weight. */
function productWork(m: number, n: number, k: number): number {
  return n * k * Math.max(2 * m, 2 * FLOP_PER_BYTE);
}

type LinearKernels = Pick<Kernels, "linear" | "linear_scratch" | "round_activations">;

function linearKernels(kernels: Kernels, share: Share, forAll: ForAll): LinearKernels {
  return {
    linear_scratch(...sizes) {
      // rounded activations are read by all threads
      const isShared = INTEGERS.includes(sizes[3] ?? 0);
      const bytes = kernels.linear_scratch(...sizes);
      return isShared ? bytes : forAll(bytes);
    },
    round_activations(...values) {
      const [, , m = 0, k = 0, , , total = 0] = values;
      const work = total * k * COPIED;
      share("round_activations", values, { counted: 6, total, unit: m === 1 ? 1 : TILE_ROWS, steps: [[5, 1]], work });
    },
    linear(...values) {
      const [, , , dtype = 0, , h = 0, , m = 0, n = 0, k = 0, r = 0, , columns = 0] = values;
      const bytes = columns * (kernels.panel_size(k, dtype) / 8 + 4 * r);
      const integers = INTEGERS.includes(dtype);
      const work = Math.max(m * columns * (integers ? k / 2 + 2 * r : 2 * (k + r)), FLOP_PER_BYTE * bytes);
      const byColumns: Axis = { counted: 12, total: columns, unit: 8, steps: [[11, 1]] };
      if (integers) return share("linear", values, { ...byColumns, work });
      const scratch = [14, kernels.linear_scratch(m, n, k, dtype)] as const;
      // few columns and many rows, as of the first factor of an adapter: by rows
      const axis: Axis = columns < 64 && m > columns
        ? { counted: 7, total: m, unit: TILE_ROWS, steps: [[0, 4 * n], [1, 4 * k], [5, h && 4 * r]] }
        : byColumns;
      share("linear", values, { ...axis, work, scratch });
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
      const axis: Axis = columns < 128 && m > columns
        ? { counted: 4, total: m, unit: TILE_ROWS, few: FEW_ROWS, steps: [[0, 4 * k], [1, 4 * n]] }
        : { counted: 8, total: columns, unit: 64, steps: [[7, 1]] };
      share("linear_backward_input", values, { ...axis, work: productWork(m, n, columns), scratch, parts: 2 });
    },
    linear_backward_weight(...values) {
      const [, , , m = 0, n = 0, k = 0, , kStride = 0] = values;
      const scratch = [8, kernels.linear_backward_weight_scratch(m, n, k)] as const;
      const axis: Axis = n >= k
        ? { counted: 4, total: n, unit: TILE_ROWS, steps: [[0, 4 * kStride], [1, 4]] }
        : { counted: 5, total: k, unit: 64, steps: [[0, 4], [2, 4]] };
      share("linear_backward_weight", values, { ...axis, work: productWork(m, n, k), scratch, parts: 1 });
    },
  };
}

type MergeKernels = Pick<
  Kernels,
  "merge" | "merge_scratch" | "merge_rows" | "merge_rows_scratch" | "delta_weight" | "delta_weight_scratch"
>;

function mergeKernels(kernels: Kernels, share: Share, forAll: ForAll): MergeKernels {
  return {
    merge_scratch: (...sizes) => forAll(kernels.merge_scratch(...sizes)),
    delta_weight_scratch: (...sizes) => forAll(kernels.delta_weight_scratch(...sizes)),
    merge(...values) {
      const [, , dtype = 0, , , ranks = 0, k = 0, , panels = 0] = values;
      const scratch = [9, kernels.merge_scratch(k, ranks, dtype)] as const;
      const steps = [[7, 1], [10, 16]] as const;
      const work = productWork(ranks, 8 * panels, k);
      return share("merge", values, { counted: 8, total: panels, unit: 1, steps, work, scratch, parts: 1 });
    },
    merge_rows_scratch: (...sizes) => forAll(kernels.merge_rows_scratch(...sizes)),
    merge_rows(...values) {
      const [, to = 0, , dtype = 0, branches = 0, count = 0, n = 0, k = 0] = values;
      const ranks = sumRanks(kernels, branches, count);
      const scratch = [9, kernels.merge_rows_scratch(n, k, ranks)] as const;
      const steps = [[0, k * bytesOf(to)], [2, k * bytesOf(dtype)], [8, 1]] as const;
      const work = ranks < SPLIT_RANK ? 0 : productWork(ranks, n, k);
      return share("merge_rows", values, { counted: 6, total: n, unit: 8, steps, work, scratch, parts: 1 });
    },
    delta_weight(...values) {
      const [, , , , n = 0, k = 0, r = 0] = values;
      const scratch = [7, kernels.delta_weight_scratch(n, k, r)] as const;
      const [steps, work] = [[[0, 4 * k], [2, 4 * r]] as const, productWork(r, n, k)];
      share("delta_weight", values, { counted: 4, total: n, unit: 4 * TILE_ROWS, steps, work, scratch, parts: 1 });
    },
  };
}

/** Bytes of an element as files store it. */
function bytesOf(dtype: number): number {
  return dtype === DTYPE_CODES.f32 ? 4 : 2;
}

/** The ranks in the records of branches. */
function sumRanks({ memory }: Kernels, branches: number, count: number): number {
  const view = new DataView(memory.buffer, branches, count * RECORD_BYTES);
  let sum = 0;
  for (let i = 0; i < count; i++) sum += view.getUint32(i * RECORD_BYTES + 8, true);
  return sum;
}

function attentionKernels(
  kernels: Kernels,
  share: Share,
  forAll: ForAll,
): Pick<Kernels, "attention" | "attention_scratch"> {
  return {
    attention_scratch: (...sizes) => forAll(kernels.attention_scratch(...sizes)),
    attention(...values) {
      const [, , , , length = 0, , heads = 0, kvHeads = 0, dim = 0, past = 0, , , , total = 0] = values;
      const scratch = [14, kernels.attention_scratch(length, past, heads, kvHeads, dim)] as const;
      const work = total * dim * (past + length) * Math.max(4 * length, 2 * FLOP_PER_BYTE);
      // few queries read the cache once for all heads that share it, so that more parts read more of it: 1.3x in decoding
      const parts = length < FEW_QUERIES ? 1 : PARTS;
      share("attention", values, { counted: 13, total, unit: 1, steps: [[12, 1]], work, scratch, parts });
    },
  };
}

/** Work of an element that is read and written, and of one that goes through an exponential besides. */
const COPIED = 8 * FLOP_PER_BYTE;
const BENT = 2 * COPIED;

type RowKernels = Pick<
  Kernels,
  "rms_norm" | "layer_norm" | "rope" | "cross_entropy" | "add" | "silu_mul" | "gelu" | "gelu_tanh" | "tanh"
>;

/** Kernels whose rows, or elements, have nothing to do with each other. */
function rowKernels(share: Share): RowKernels {
  /** Splits elements by cache lines: the count is behind the arrays. */
  const elements = (kernel: SharedKernel, values: number[], work: number): void => {
    const counted = values.length - 1;
    const total = values[counted] ?? 0;
    const steps = values.slice(0, counted).map((_, index) => [index, 4] as const);
    share(kernel, values, { counted, total, unit: 16, steps, work: total * work });
  };
  /** Splits rows of the first two arrays. */
  const norm = (kernel: SharedKernel, values: number[], counted: number): void => {
    const [total = 0, dim = 0] = values.slice(counted);
    const steps = [[0, 4 * dim], [1, 4 * dim]] as const;
    share(kernel, values, { counted, total, unit: 1, steps, work: total * dim * COPIED });
  };
  return {
    rms_norm: (...values) => norm("rms_norm", values, 3),
    layer_norm: (...values) => norm("layer_norm", values, 4),
    rope(...values) {
      const [, , , , total = 0, heads = 0, half = 0] = values;
      const [row, table] = [8 * heads * half, 4 * half];
      const steps = [[0, row], [1, row], [2, table], [3, table]] as const;
      share("rope", values, { counted: 4, total, unit: 1, steps, work: 2 * total * heads * half * COPIED });
    },
    cross_entropy(...values) {
      const [, , , total = 0, classes = 0] = values;
      const steps = [[0, 4], [1, 4 * classes], [2, 4]] as const;
      share("cross_entropy", values, { counted: 3, total, unit: 1, steps, work: total * classes * BENT });
    },
    add: (...values) => elements("add", values, COPIED),
    silu_mul: (...values) => elements("silu_mul", values, BENT),
    gelu: (...values) => elements("gelu", values, BENT),
    gelu_tanh: (...values) => elements("gelu_tanh", values, BENT),
    tanh: (...values) => elements("tanh", values, BENT),
  };
}
