/**
 * The largest singular values of a matrix that is only ever multiplied, piece by piece, on a backend: the randomised
 * range finder of Halko, Martinsson and Tropp (2011), algorithms 4.4 and 5.1.
 *
 * @module
 */

import {
  addScaled,
  firstRows,
  type Matrix,
  orthogonalize,
  rowOf,
  transpose,
  zeros,
} from "../adapter/linear_algebra.ts";
import type { RandomStream } from "../adapter/random.ts";
import { productVectors, type SingularVectors } from "../adapter/svd.ts";
import type { Backend } from "../backend.ts";
import type { ReadOptions } from "../formats/source.ts";

/** A matrix whose rows come in pieces; each call goes through all of them once more. */
export interface StreamedMatrix {
  /** m. */
  readonly rows: number;
  /** n. */
  readonly columns: number;
  /** The pieces from the first row on, row by row. */
  pieces(): Iterable<Float32Array>;
}

/** Which part of the spectrum is wanted. */
export interface SketchOptions extends ReadOptions {
  /** Where the products are computed. */
  readonly backend: Backend;
  /** Number of singular values; or with `energy` the most of them. */
  readonly rank: number;
  /** Share of Σ σ² that is enough. */
  readonly energy?: number;
  /** Decides the random vectors. */
  readonly random: RandomStream;
}

/** What was found. */
export interface Sketch {
  /** At least the values wanted, where the matrix has them. */
  readonly vectors: SingularVectors;
  /** ‖D‖², the sum of squares of all elements. */
  readonly energy: number;
}

/** Vectors beyond those wanted: they catch what the random ones miss. */
const OVERSAMPLING = 10;
/** So many cost next to nothing, and are all of a small matrix. */
const LEAST_VECTORS = 64;
/** Each squares the gap between the values wanted and the others. */
const POWER_ITERATIONS = 2;
const FIRST_RANK = LEAST_VECTORS - OVERSAMPLING;

/**
 * Finds the largest singular values with their vectors.
 *
 * @param matrix D (m, n).
 * @param options How many, or which share; the backend and the random numbers.
 * @returns The values, and the energy of the whole.
 * @throws {NumericError} If a value is not finite.
 */
export async function sketch(matrix: StreamedMatrix, options: SketchOptions): Promise<Sketch> {
  const { rank, energy: share } = options;
  const energy = sumOfSquares(matrix.pieces());
  const most = Math.min(matrix.rows, matrix.columns);
  for (let wanted = share === undefined ? rank : FIRST_RANK;; wanted *= 4) {
    const count = Math.min(most, Math.max(LEAST_VECTORS, Math.min(wanted, rank) + OVERSAMPLING));
    const vectors = await rangeVectors(matrix, count, options);
    const captured = vectors.sigma.slice(0, rank).reduce((sum, value) => sum + value * value, 0);
    if (share === undefined || count === most || wanted >= rank || captured >= share * energy) {
      return { vectors, energy };
    }
  }
}

/**
 * ‖D − Lᵀ R‖², each element subtracted, as a difference of sums would lose a small one.
 *
 * @param matrix D (m, n).
 * @param factors L (k, m) and R (k, n).
 * @param options The backend, and a signal.
 * @returns The sum of squares.
 */
export async function residual(
  matrix: StreamedMatrix,
  { left, right }: { readonly left: Matrix; readonly right: Matrix },
  options: Pick<SketchOptions, "backend" | "signal">,
): Promise<number> {
  const columns = transpose(left);
  const piece = Float32Array.from(right.values);
  let sum = 0;
  await eachPiece(matrix, options, async (values, { at, count }) => {
    const rows = { ...columns, rows: count, values: columns.values.subarray(at * left.rows, (at + count) * left.rows) };
    const factors = { piece, count: right.rows, columns: right.columns, transposed: true };
    const product = await multiplyPiece(options.backend, rows, factors);
    for (let i = 0; i < values.length; i++) sum += (values[i]! - product[i]!) ** 2;
  });
  return sum;
}

/** Σ x² in float64. */
export function sumOfSquares(pieces: Iterable<Float32Array>): number {
  let sum = 0;
  for (const piece of pieces) for (const value of piece) sum += value * value;
  return sum;
}

/** D ≈ Qᵀ (Q D) with orthonormal rows of Q (k, m) that span what D makes of random vectors. */
async function rangeVectors(matrix: StreamedMatrix, count: number, options: SketchOptions): Promise<SingularVectors> {
  const random = zeros(count, matrix.columns);
  for (let i = 0; i < random.values.length; i++) random.values[i] = options.random.normal();
  let b = await timesTranspose(matrix, random, options);
  let a = random;
  for (let iteration = 0; iteration <= POWER_ITERATIONS; iteration++) {
    b = orthogonalize(b).q;
    a = await times(matrix, b, options);
    if (iteration < POWER_ITERATIONS) b = await timesTranspose(matrix, orthogonalize(a).q, options);
  }
  return productVectors({ a, b: firstRows(b, a.rows) });
}

/** X Dᵀ (k, m) of X (k, n). */
async function timesTranspose(matrix: StreamedMatrix, x: Matrix, options: SketchOptions): Promise<Matrix> {
  const product = zeros(x.rows, matrix.rows);
  await eachPiece(matrix, options, async (piece, { at, count }) => {
    const part = await multiplyPiece(options.backend, x, { piece, count, columns: matrix.columns });
    for (let row = 0; row < x.rows; row++) {
      product.values.set(part.subarray(row * count, (row + 1) * count), row * matrix.rows + at);
    }
  });
  return product;
}

/** X D (k, n) of X (k, m), summed over the pieces in float64. */
async function times(matrix: StreamedMatrix, x: Matrix, options: SketchOptions): Promise<Matrix> {
  const product = zeros(x.rows, matrix.columns);
  await eachPiece(matrix, options, async (piece, { at, count }) => {
    const part = zeros(x.rows, count);
    for (let row = 0; row < x.rows; row++) part.values.set(rowOf(x, row).subarray(at, at + count), row * count);
    const right = { piece, count, columns: matrix.columns, transposed: true };
    addScaled(product.values, Float64Array.from(await multiplyPiece(options.backend, part, right)), 1);
  });
  return product;
}

async function eachPiece(
  { columns, pieces }: StreamedMatrix,
  { signal }: ReadOptions,
  visit: (piece: Float32Array, place: { readonly at: number; readonly count: number }) => Promise<void>,
): Promise<void> {
  let at = 0;
  for (const piece of pieces()) {
    signal?.throwIfAborted();
    const count = piece.length / columns;
    await visit(piece, { at, count });
    at += count;
  }
}

interface Piece {
  readonly piece: Float32Array;
  readonly count: number;
  readonly columns: number;
  /** X · piece instead of X · pieceᵀ. */
  readonly transposed?: boolean;
}

/** A product on the backend, whose layers compute X Wᵀ. */
async function multiplyPiece(
  backend: Backend,
  x: Matrix,
  { piece, count, columns, transposed = false }: Piece,
): Promise<Float32Array> {
  const bytes = new Uint8Array(piece.buffer, piece.byteOffset, piece.byteLength);
  const weight = backend.weight({ shape: [count, columns], dtype: "f32", bytes }, { transposed });
  const left = backend.tensor([x.rows, x.columns], Float32Array.from(x.values));
  try {
    const product = backend.linear(left, weight);
    const values = await backend.read(product);
    product.dispose();
    return values;
  } finally {
    left.dispose();
    weight.dispose();
  }
}
