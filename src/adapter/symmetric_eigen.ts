/**
 * Eigenvalues and eigenvectors of a symmetric matrix: Householder reflections to a tridiagonal one, then QL iterations
 * with implicit shifts (Golub and Van Loan, Matrix Computations, 8.3). About 5 n³ multiplications.
 *
 * @module
 */

import { addScaled, dot, type Matrix, rowOf, zeros } from "./linear_algebra.ts";

/** X = Qᵀ diag(values) Q. */
export interface Eigenvectors {
  /** Eigenvalues, largest first. */
  readonly values: Float64Array;
  /** Eigenvectors as rows, in that order. */
  readonly vectors: Matrix;
}

/** Iterations per eigenvalue that are never needed. */
const MAX_ITERATIONS = 60;

/**
 * Decomposes a symmetric matrix.
 *
 * @param x A symmetric matrix (n, n).
 * @returns Its eigenvalues and eigenvectors.
 */
export function symmetricEigen(x: Matrix): Eigenvectors {
  const { diagonal, beside, vectors } = tridiagonalize(x);
  iterate(diagonal, beside, vectors);
  const order = Array.from(diagonal.keys()).sort((i, j) => diagonal[j]! - diagonal[i]!);
  const sorted = zeros(x.rows, x.rows);
  order.forEach((from, to) => rowOf(sorted, to).set(rowOf(vectors, from)));
  return { values: Float64Array.from(order, (i) => diagonal[i]!), vectors: sorted };
}

interface Tridiagonal {
  readonly diagonal: Float64Array;
  /** Element i is that beside diagonal i and i + 1; the last one is 0. */
  readonly beside: Float64Array;
  /** Rows q with X = Σ Tᵢⱼ qᵢᵀ qⱼ. */
  readonly vectors: Matrix;
}

function tridiagonalize(x: Matrix): Tridiagonal {
  const n = x.rows;
  const work = { ...x, values: x.values.slice() };
  const mirrors: Float64Array[] = [];
  const beside = new Float64Array(n);
  for (let k = 0; k < n - 1; k++) {
    const v = rowOf(work, k).slice();
    v.fill(0, 0, k + 1);
    const norm = Math.sqrt(dot(v, v));
    const sign = v[k + 1]! < 0 ? 1 : -1;
    beside[k] = sign * norm;
    v[k + 1]! -= sign * norm;
    const size = Math.sqrt(dot(v, v));
    if (size === 0) continue;
    for (let i = k + 1; i < n; i++) v[i]! /= size;
    mirrors.push(v);
    reflectBoth(work, v, k + 1);
  }
  const vectors = zeros(n, n);
  const columns = vectors.values;
  for (let i = 0; i < n; i++) columns[i * n + i] = 1;
  for (const v of mirrors.toReversed()) {
    for (let i = 0; i < n; i++) addScaled(rowOf(vectors, i), v, -2 * dot(rowOf(vectors, i), v));
  }
  return { diagonal: Float64Array.from({ length: n }, (_, i) => work.values[i * n + i]!), beside, vectors };
}

/** X − 2 v (Xv)ᵀ − 2 (Xv) vᵀ + 4 (v · Xv) v vᵀ, below and right of `from`. */
function reflectBoth(x: Matrix, v: Float64Array, from: number): void {
  const p = new Float64Array(x.rows);
  for (let i = from; i < x.rows; i++) p[i] = 2 * dot(rowOf(x, i), v);
  addScaled(p, v, -dot(p, v));
  for (let i = from; i < x.rows; i++) {
    const row = rowOf(x, i);
    const [vi, pi] = [v[i]!, p[i]!];
    for (let j = from; j < x.rows; j++) row[j]! -= vi * p[j]! + pi * v[j]!;
  }
}

/** Makes the matrix diagonal, and turns the vectors along. */
function iterate(d: Float64Array, e: Float64Array, vectors: Matrix): void {
  for (let first = 0; first < d.length; first++) {
    for (let round = 0; round < MAX_ITERATIONS; round++) {
      let last = first;
      while (
        last < d.length - 1 && Math.abs(e[last]!) > Number.EPSILON * (Math.abs(d[last]!) + Math.abs(d[last + 1]!))
      ) {
        last++;
      }
      if (last === first) break;
      sweep(d, e, vectors, { first, last });
    }
  }
}

/** One QL step on the block from `first` to `last`, shifted by an eigenvalue of its first two rows. */
function sweep(
  d: Float64Array,
  e: Float64Array,
  vectors: Matrix,
  { first, last }: { readonly first: number; readonly last: number },
): void {
  const half = (d[first + 1]! - d[first]!) / (2 * e[first]!);
  let g = d[last]! - d[first]! + e[first]! / (half + Math.sign(half || 1) * Math.hypot(half, 1));
  let [sine, cosine, shift] = [1, 1, 0];
  for (let i = last - 1; i >= first; i--) {
    const f = sine * e[i]!;
    const b = cosine * e[i]!;
    const r = Math.hypot(f, g);
    e[i + 1] = r;
    if (r === 0) {
      d[i + 1]! -= shift;
      e[last] = 0;
      return;
    }
    [sine, cosine] = [f / r, g / r];
    const h = d[i + 1]! - shift;
    const t = (d[i]! - h) * sine + 2 * cosine * b;
    shift = sine * t;
    d[i + 1] = h + shift;
    g = cosine * t - b;
    rotate(rowOf(vectors, i), rowOf(vectors, i + 1), sine, cosine);
  }
  d[first]! -= shift;
  e[first] = g;
  e[last] = 0;
}

function rotate(x: Float64Array, y: Float64Array, sine: number, cosine: number): void {
  for (let k = 0; k < x.length; k++) {
    const [xk, yk] = [x[k]!, y[k]!];
    y[k] = sine * xk + cosine * yk;
    x[k] = cosine * xk - sine * yk;
  }
}
