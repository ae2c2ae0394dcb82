/**
 * The test's data: seeded matrices whose elements both sides hold exactly, and their way into a backend.
 *
 * @module
 */
import type { Backend, MatrixValues, Tensor, Weight, WeightDtype } from "../src/backend.ts";
import { type Branch, type Matrix, matrix, type RowBranches } from "./reference.ts";

/** Numbers in [-1, 1), the same for the same seed (mulberry32). */
export function random(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 31 - 1;
  };
}

/** Shapes around what kernels take at a time, odd and empty ones too. */
export const ELEMENTWISE_SHAPES: readonly (readonly [number, number])[] = [
  [0, 3],
  [1, 1],
  [1, 3],
  [2, 2],
  [1, 5],
  [1, 7],
  [2, 4],
  [3, 3],
  [1, 17],
  [31, 1],
  [7, 147],
];

const scratch = new DataView(new ArrayBuffer(4));

/** Rounds to bfloat16, to nearest even. */
export function roundToBf16(value: number): number {
  if (!Number.isFinite(value)) return value;
  scratch.setFloat32(0, value);
  const bits = scratch.getUint32(0);
  scratch.setUint32(0, (bits + 0x7fff + ((bits >>> 16) & 1)) & 0xffff0000);
  return scratch.getFloat32(0);
}

/** A matrix of elements in [-scale, scale) that `dtype` holds exactly. */
export function randomMatrix(
  next: () => number,
  rows: number,
  columns: number,
  { scale = 1, dtype = "f32" }: { scale?: number; dtype?: WeightDtype } = {},
): Matrix {
  const round = dtype === "bf16" ? roundToBf16 : Math.fround;
  return matrix(rows, columns, () => round(next() * scale));
}

/** A trained-looking branch: A and B of the usual magnitudes, B not zero. */
export function randomBranch(
  next: () => number,
  { inFeatures, outFeatures, rank, scaling = 2, dtype = "f32" }: {
    inFeatures: number;
    outFeatures: number;
    rank: number;
    scaling?: number;
    dtype?: WeightDtype;
  },
): Branch {
  return {
    a: randomMatrix(next, rank, inFeatures, { scale: 1 / Math.sqrt(Math.max(1, inFeatures)), dtype }),
    b: randomMatrix(next, outFeatures, rank, { scale: 0.5, dtype }),
    scaling,
  };
}

export function tensorOf(backend: Backend, m: Matrix, shape: readonly number[] = m.shape): Tensor {
  return backend.tensor(shape, Float32Array.from(m.values));
}

/** A vector of a bias, a gain or column sums: a matrix of one row as a tensor of one dimension. */
export function vectorOf(backend: Backend, m: Matrix): Tensor {
  return tensorOf(backend, m, [m.shape[1]]);
}

export function storedF32(m: Matrix): MatrixValues {
  return { shape: m.shape, dtype: "f32", bytes: new Uint8Array(Float32Array.from(m.values).buffer) };
}

export function weightOf(backend: Backend, m: Matrix, dtype: WeightDtype = "f32"): Weight {
  return backend.weight(storedF32(m), { dtype });
}

/** A branch whose factors a backend holds. */
export interface UploadedBranch {
  readonly a: Weight;
  readonly b: Weight;
  readonly scaling: number;
}

export function branchOf(backend: Backend, { a, b, scaling }: Branch, dtype: WeightDtype = "f32"): UploadedBranch {
  return { a: weightOf(backend, a, dtype), b: weightOf(backend, b, dtype), scaling };
}

/** Row ranges whose factors a backend holds. */
export interface UploadedRows {
  readonly start: number;
  readonly end: number;
  readonly branches: readonly UploadedBranch[];
}

export function rowsOf(backend: Backend, ranges: readonly RowBranches[], dtype: WeightDtype = "f32"): UploadedRows[] {
  return ranges.map(({ start, end, branches }) => ({
    start,
    end,
    branches: branches.map((branch) => branchOf(backend, branch, dtype)),
  }));
}
