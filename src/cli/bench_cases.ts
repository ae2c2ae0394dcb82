import type { Backend, LoraBranch, MatrixValues, RowBranches, Tensor, Weight, WeightDtype } from "../backend.ts";
import type { Body } from "./bench_timing.ts";
import type { PeakKind } from "./peak.ts";

/** How much of a limit a figure needs: its FLOP, or the bytes that it has to move. */
export interface Bound {
  /** The limit. */
  readonly kind: PeakKind;
  /** FLOP or bytes of one run. */
  readonly work: number;
}

/** One figure: its work, and what it is measured against. */
export interface BenchCase {
  /** What is done. */
  readonly name: string;
  /** Sizes: rows x inputs x outputs. */
  readonly shape: string;
  /** Makes the matrices and the work; whatever it makes is freed by `dispose`. */
  open(backend: Backend): OpenCase;
}

/** A case with its matrices. */
export interface OpenCase {
  /** The work. */
  readonly body: Body;
  /** The limits that no kernel can pass; the first one names the unit of the rate. */
  readonly bounds: readonly [Bound, ...Bound[]];
  /** The same without adapters, or with one for all rows, where the figure is what they cost. */
  readonly base?: Body;
  /** Frees the matrices. */
  dispose(): void;
}

const RANK = 16;
/** Long enough not to be cached, short enough to make quickly; a prime, so that rows differ. */
const PERIOD = 65_537;

/** Values of about N(0, 1/4): no subnormal numbers, which some instructions take slowly. */
export function sampleValues(count: number): Float32Array<ArrayBuffer> {
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

function sampleBranch(backend: Backend, features: number, rank: number): LoraBranch {
  return { a: sampleWeight(backend, rank, features), b: sampleWeight(backend, features, rank), scaling: 1 / 64 };
}

function disposeAll(things: readonly { dispose(): void }[]): void {
  for (const thing of things) thing.dispose();
}

function linearBody(backend: Backend, x: Tensor, weight: Weight, adapters: readonly RowBranches[] = []): Body {
  return { run: () => backend.scope(() => void backend.linear(x, weight, { adapters })) };
}

/** Of one row, what bounds it is reading the weights; of more, multiply-adds. */
function linearBound(rows: number, weights: readonly Weight[]): [Bound] {
  const elements = weights.reduce((sum, { shape: [n, k] }) => sum + n * k, 0);
  const bytes = weights.reduce((sum, weight) => sum + weight.bytes, 0);
  return [rows === 1 ? { kind: "read", work: bytes } : { kind: "fma", work: 2 * rows * elements }];
}

/** y = x Wᵀ; of one row it is bound by reading W. */
export function linearCase(
  rows: number,
  inputs: number,
  dtype: WeightDtype = "f32",
  outputs: number = inputs,
): BenchCase {
  return {
    name: `${rows === 1 ? "GEMV" : "GEMM"} ${dtype}`,
    shape: `${rows} x ${inputs} x ${outputs}`,
    open(backend) {
      const x = sampleInput(backend, rows, inputs);
      const weight = sampleWeight(backend, outputs, inputs, dtype);
      return {
        body: linearBody(backend, x, weight),
        bounds: linearBound(rows, [weight]),
        dispose: () => disposeAll([x, weight]),
      };
    },
  };
}

/** The same with an unmerged adapter, and without it. */
export function loraCase(rows: number, features: number, rank: number = RANK): BenchCase {
  const plain = linearCase(rows, features);
  return {
    ...plain,
    name: `${plain.name} + LoRA r=${rank}`,
    open(backend) {
      const x = sampleInput(backend, rows, features);
      const weight = sampleWeight(backend, features, features);
      const branch = sampleBranch(backend, features, rank);
      return {
        body: linearBody(backend, x, weight, [{ start: 0, end: rows, branches: [branch] }]),
        base: linearBody(backend, x, weight),
        bounds: linearBound(rows, [weight, branch.a, branch.b]),
        dispose: () => disposeAll([x, weight, branch.a, branch.b]),
      };
    },
  };
}

/** Every row with an adapter of its own, and all rows with the same one. */
export function manyAdaptersCase(rows: number, features: number): BenchCase {
  return {
    name: `${rows} adapters r=${RANK} in a batch`,
    shape: `${rows} x ${features} x ${features}`,
    open(backend) {
      const x = sampleInput(backend, rows, features);
      const weight = sampleWeight(backend, features, features);
      const branches = Array.from({ length: rows }, () => sampleBranch(backend, features, RANK));
      const factors = branches.flatMap(({ a, b }) => [a, b]);
      const own = branches.map((branch, row) => ({ start: row, end: row + 1, branches: [branch] }));
      return {
        body: linearBody(backend, x, weight, own),
        base: linearBody(backend, x, weight, [{ start: 0, end: rows, branches: branches.slice(0, 1) }]),
        bounds: [{ kind: "read", work: weight.bytes + factors.reduce((sum, { bytes }) => sum + bytes, 0) }],
        dispose: () => disposeAll([x, weight, ...factors]),
      };
    },
  };
}

/** W += s B A; what bounds it is reading and writing W, or its multiply-adds. */
export function mergeCase(features: number): BenchCase {
  return {
    name: `merge r=${RANK} f32`,
    shape: `${features} x ${features}`,
    open(backend) {
      const weight = sampleWeight(backend, features, features);
      const branch = sampleBranch(backend, features, RANK);
      return {
        body: { run: () => backend.merge(weight, [branch]).then(() => {}), undo: () => backend.unmerge(weight) },
        bounds: [
          { kind: "copy", work: 2 * weight.bytes },
          { kind: "fma", work: 2 * features * features * RANK },
        ],
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
  linearCase(1, 4096, "int8"),
  linearCase(1, 4096, "int4"),
  linearCase(128, 4096, "int8"),
  linearCase(128, 4096, "int4"),
  loraCase(1, 4096),
  loraCase(128, 4096),
  mergeCase(4096),
];
