import type { Backend, LoraBranch, MatrixValues, RowBranches, Tensor, Weight, WeightDtype } from "../backend.ts";

/** Something to time; `undo` puts things back between two runs, untimed. */
export interface Body {
  /** The work. */
  run(): unknown;
  /** What makes it repeatable. */
  undo?(): void;
}

/** One figure: its work, and what it is measured against. */
export interface BenchCase {
  /** What is done. */
  readonly name: string;
  /** Sizes: rows x inputs x outputs. */
  readonly shape: string;
  /** Which peak bounds it. */
  readonly bound: "fma" | "read";
  /** FLOP, or bytes that cross the memory bus, of one run. */
  readonly work: number;
  /** Makes the matrices and the work; whatever it makes is freed by `dispose`. */
  open(backend: Backend): OpenCase;
}

/** A case with its matrices. */
export interface OpenCase {
  /** The work. */
  readonly body: Body;
  /** The same without adapters, where the figure is what they cost. */
  readonly base?: Body;
  /** Frees the matrices. */
  dispose(): void;
}

const RANK = 16;
/** Long enough not to be cached, short enough to make quickly; a prime, so that rows differ. */
const PERIOD = 65_537;

/** Values of about N(0, 1/4): no subnormal numbers, which some instructions take slowly. */
function sampleValues(count: number): Float32Array<ArrayBuffer> {
  const values = new Float32Array(count);
  let state = 1;
  for (let index = 0; index < Math.min(count, PERIOD); index++) {
    state = Math.imul(state, 1_664_525) + 1_013_904_223 | 0;
    values[index] = state / 2 ** 31 || 0.5;
  }
  for (let done = PERIOD; done < count; done *= 2) values.copyWithin(done, 0, Math.min(done, count - done));
  return values;
}

function sampleWeight(backend: Backend, rows: number, columns: number, dtype: WeightDtype = "f32"): Weight {
  const bytes = new Uint8Array(sampleValues(rows * columns).buffer);
  const matrix: MatrixValues = { shape: [rows, columns], dtype: "f32", bytes };
  return backend.weight(matrix, { dtype });
}

function sampleInput(backend: Backend, rows: number, columns: number): Tensor {
  return backend.tensor([rows, columns], sampleValues(rows * columns));
}

function sampleBranch(backend: Backend, features: number): LoraBranch {
  return { a: sampleWeight(backend, RANK, features), b: sampleWeight(backend, features, RANK), scaling: 1 / 64 };
}

function disposeAll(things: readonly { dispose(): void }[]): void {
  for (const thing of things) thing.dispose();
}

function linearBody(backend: Backend, x: Tensor, weight: Weight, adapters: readonly RowBranches[] = []): Body {
  return { run: () => backend.scope(() => void backend.linear(x, weight, { adapters })) };
}

/** y = x Wᵀ; of one row it is bound by reading W. */
export function linearCase(rows: number, features: number, dtype: WeightDtype = "f32"): BenchCase {
  const gemv = rows === 1;
  const elements = features * features;
  return {
    name: `${gemv ? "GEMV" : "GEMM"} ${dtype}`,
    shape: `${rows} x ${features} x ${features}`,
    bound: gemv ? "read" : "fma",
    work: gemv ? elements * (dtype === "f32" ? 4 : 2) : 2 * rows * elements,
    open(backend) {
      const x = sampleInput(backend, rows, features);
      const weight = sampleWeight(backend, features, features, dtype);
      return { body: linearBody(backend, x, weight), dispose: () => disposeAll([x, weight]) };
    },
  };
}

/** The same with an unmerged adapter, and without it. */
export function loraCase(rows: number, features: number): BenchCase {
  const plain = linearCase(rows, features);
  const extra = 2 * features * RANK;
  return {
    ...plain,
    name: `${plain.name} + LoRA r=${RANK}`,
    work: plain.work + (plain.bound === "read" ? 4 * extra : 2 * rows * extra),
    open(backend) {
      const x = sampleInput(backend, rows, features);
      const weight = sampleWeight(backend, features, features);
      const branch = sampleBranch(backend, features);
      return {
        body: linearBody(backend, x, weight, [{ start: 0, end: rows, branches: [branch] }]),
        base: linearBody(backend, x, weight),
        dispose: () => disposeAll([x, weight, branch.a, branch.b]),
      };
    },
  };
}

/** W += s B A. */
export function mergeCase(features: number): BenchCase {
  return {
    name: `merge r=${RANK} f32`,
    shape: `${features} x ${features}`,
    bound: "read",
    // W is read, written, and kept for unmerge.
    work: 3 * 4 * features * features,
    open(backend) {
      const weight = sampleWeight(backend, features, features);
      const branch = sampleBranch(backend, features);
      return {
        body: { run: () => backend.merge(weight, [branch]), undo: () => backend.unmerge(weight) },
        dispose: () => disposeAll([weight, branch.a, branch.b]),
      };
    },
  };
}

/** The figures of `lora bench`: they fit in its twenty seconds and in 300 MB. */
export const BENCH_CASES: readonly BenchCase[] = [
  linearCase(256, 256),
  linearCase(512, 512),
  linearCase(1024, 1024),
  linearCase(128, 4096),
  linearCase(1, 4096),
  linearCase(1, 4096, "bf16"),
  loraCase(1, 4096),
  loraCase(128, 4096),
  mergeCase(4096),
];
