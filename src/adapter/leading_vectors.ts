/**
 * The largest and the smallest singular values of a matrix with their vectors, without a decomposition of all of it where
 * that would take long.
 *
 * @module
 */

import { LimitError } from "../errors.ts";
import { quote } from "../formats/quote.ts";
import {
  dot,
  firstRows,
  type Matrix,
  multiply,
  multiplyTransposed,
  orthogonalize,
  rowOf,
  stackRows,
  transpose,
  zeros,
} from "./linear_algebra.ts";
import { RandomStream } from "./random.ts";
import { productVectors, type SingularVectors, singularVectors } from "./svd.ts";
import { symmetricEigen } from "./symmetric_eigen.ts";

/** Up to here the whole matrix is decomposed. */
const SMALL = 256;
/** Up to here small singular values are as accurate as large ones. */
const ACCURATE = 96;
/** Above this a decomposition of the whole matrix would take minutes. */
const LARGE = 1024;
/** Vectors beside those wanted. */
const OVERSAMPLING = 8;
/** ‖Xᵀ u − σ v‖ σ / σ₁² at which a vector is taken: far below what 32-bit floats resolve. */
const TOLERANCE = 1e-10;
/** Growth of the space between two looks at what it has. */
const GROWTH = 1.4;

/**
 * Finds the largest singular values: by a block Krylov space that grows until they no longer change (Musco and Musco
 * 2015), so the result is that of a full decomposition.
 *
 * @param x A matrix (m, n).
 * @param rank How many, at most min(m, n).
 * @returns The vectors.
 */
export function leadingVectors(x: Matrix, rank: number): SingularVectors {
  const limit = Math.min(x.rows, x.columns);
  if (limit <= Math.max(SMALL, 4 * rank)) return truncate(gramVectors(x), rank);
  const width = rank + OVERSAMPLING;
  let block = orthogonalize(multiply(randomMatrix(width, x.rows), x)).q;
  let basis = block;
  let images = multiplyTransposed(block, x);
  for (let looked = 0;;) {
    if (basis.rows >= limit || basis.rows >= GROWTH * looked) {
      looked = basis.rows;
      const found = ritzVectors(basis, images, rank);
      if (basis.rows >= limit || isConverged(x, found)) return found;
    }
    const rest = Math.min(width, limit - basis.rows);
    block = firstRows(multiply(firstRows({ ...images, values: images.values.slice(-width * x.rows) }, rest), x), rest);
    // Twice: once leaves what rounding has left of the space that is there already.
    for (let pass = 0; pass < 2; pass++) block = orthogonalize(without(block, basis)).q;
    basis = stackRows([basis, block], x.columns);
    images = stackRows([images, multiplyTransposed(block, x)], x.rows);
  }
}

/** All singular values by the eigenvalues of the smaller of X Xᵀ and Xᵀ X: exact where they are not small beside σ₁. */
function gramVectors(x: Matrix): SingularVectors {
  const isWide = x.rows <= x.columns;
  const { values, vectors } = symmetricEigen(isWide ? multiplyTransposed(x, x) : gramOfColumns(x));
  const sigma = values.map((value) => Math.sqrt(Math.max(value, 0)));
  if (!isWide) return { sigma, left: multiplyTransposed(vectors, x), right: vectors };
  return { sigma, left: scaleRows(vectors, sigma), right: scaleRows(multiply(vectors, x), sigma.map(inverse)) };
}

function gramOfColumns(x: Matrix): Matrix {
  const turned = transpose(x);
  return multiplyTransposed(turned, turned);
}

const inverse = (value: number): number => value > 0 ? 1 / value : 0;

function scaleRows({ rows, columns, values }: Matrix, factors: Float64Array): Matrix {
  return { rows, columns, values: values.map((value, i) => value * factors[Math.floor(i / columns)]!) };
}

/**
 * Approximates the largest singular values by subspace iteration (Halko, Martinsson and Tropp 2011), as
 * `torch.svd_lowrank` does.
 *
 * @param x A matrix (m, n).
 * @param rank How many.
 * @param iterations Number of iterations; the result depends on it, and on the random start.
 * @param random Where the start comes from.
 * @returns The vectors.
 */
export function randomVectors(x: Matrix, rank: number, iterations: number, random: RandomStream): SingularVectors {
  let left = orthogonalize(multiplyTransposed(randomMatrix(rank, x.columns, random), x)).q;
  for (let i = 0; i < iterations; i++) {
    const right = orthogonalize(multiply(left, x)).q;
    left = orthogonalize(multiplyTransposed(right, x)).q;
  }
  return truncate(productVectors({ a: multiply(left, x), b: left }), rank);
}

/**
 * Finds the smallest of the min(m, n) singular values.
 *
 * @param x A matrix (m, n).
 * @param rank How many.
 * @param module Path of the module whose weight it is, for the message.
 * @returns The vectors, the largest of them first.
 * @throws {LimitError} If both dimensions are above 1024: a decomposition of all of it would take minutes.
 */
export function trailingVectors(x: Matrix, rank: number, module: string): SingularVectors {
  const limit = Math.min(x.rows, x.columns);
  if (limit > LARGE) {
    const message = `Cannot find the smallest singular values of ${quote(module)} of shape [${x.rows}, ${x.columns}]`;
    throw new LimitError(`${message}: expected at most ${LARGE} rows or columns`, {
      tensor: module,
      limit: LARGE,
      value: limit,
    });
  }
  const { sigma, left, right } = limit <= ACCURATE ? singularVectors(x) : gramVectors(x);
  const last = (matrix: Matrix): Matrix => ({
    rows: rank,
    columns: matrix.columns,
    values: matrix.values.slice((limit - rank) * matrix.columns),
  });
  return { sigma: sigma.slice(limit - rank), left: last(left), right: last(right) };
}

function truncate({ sigma, left, right }: SingularVectors, rank: number): SingularVectors {
  return { sigma: sigma.slice(0, rank), left: firstRows(left, rank), right: firstRows(right, rank) };
}

/** The best approximation of X with right vectors in the span of orthonormal rows, whose images are (Q Xᵀ). */
function ritzVectors(basis: Matrix, images: Matrix, rank: number): SingularVectors {
  const { values, vectors } = symmetricEigen(multiplyTransposed(images, images));
  const mix = firstRows(vectors, rank);
  const sigma = values.slice(0, rank).map((value) => Math.sqrt(Math.max(value, 0)));
  return { sigma, left: multiply(mix, images), right: multiply(mix, basis) };
}

function isConverged(x: Matrix, { sigma, left, right }: SingularVectors): boolean {
  const back = multiply(left, x);
  for (let k = 0; k < sigma.length; k++) {
    const [given, v] = [rowOf(back, k), rowOf(right, k)];
    // back is σ Xᵀu, which is σ² v where v is a singular vector.
    let error = 0;
    for (let i = 0; i < v.length; i++) error += (given[i]! - sigma[k]! ** 2 * v[i]!) ** 2;
    if (Math.sqrt(error) > TOLERANCE * sigma[0]! ** 2) return false;
  }
  return true;
}

/** Rows without their parts in the span of orthonormal rows. */
function without(rows: Matrix, basis: Matrix): Matrix {
  const result = { ...rows, values: rows.values.slice() };
  for (let i = 0; i < result.rows; i++) {
    const row = rowOf(result, i);
    const size = Math.sqrt(dot(row, row)) || 1;
    for (let k = 0; k < row.length; k++) row[k]! /= size;
    for (let j = 0; j < basis.rows; j++) {
      const other = rowOf(basis, j);
      const part = dot(row, other);
      for (let k = 0; k < row.length; k++) row[k]! -= part * other[k]!;
    }
  }
  return result;
}

function randomMatrix(rows: number, columns: number, random: RandomStream = new RandomStream(0, "singular")): Matrix {
  const matrix = zeros(rows, columns);
  for (let i = 0; i < matrix.values.length; i++) matrix.values[i] = random.normal();
  return matrix;
}
