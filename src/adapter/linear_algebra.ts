/**
 * Small dense matrices in float64, row by row. The factors of an update are kept as vectors in rows: A (rank, in) as it
 * is and B transposed, (rank, out), so that every inner loop runs along memory.
 *
 * @module
 */

/** A dense row-major matrix in float64. */
export interface Matrix {
  /** Number of rows. */
  readonly rows: number;
  /** Number of columns. */
  readonly columns: number;
  /** Elements, row by row. */
  readonly values: Float64Array;
}

/** X = Qᵀ-rows and R: column j of R (k, n) has the coordinates of vector j in the k orthonormal rows of Q. */
export interface Orthogonal {
  /** Orthonormal rows (k, length), k = min(n, length). */
  readonly q: Matrix;
  /** Upper triangular (k, n). */
  readonly r: Matrix;
}

/** Makes a matrix of zeros. */
export function zeros(rows: number, columns: number): Matrix {
  return { rows, columns, values: new Float64Array(rows * columns) };
}

/** One row, as a view. */
export function rowOf({ columns, values }: Matrix, row: number): Float64Array {
  return values.subarray(row * columns, (row + 1) * columns);
}

/** The first rows, as a view. */
export function firstRows({ columns, values }: Matrix, rows: number): Matrix {
  return { rows, columns, values: values.subarray(0, rows * columns) };
}

/** The rows of all matrices below each other; all have `columns` columns. */
export function stackRows(matrices: readonly Matrix[], columns: number): Matrix {
  const stacked = zeros(matrices.reduce((sum, { rows }) => sum + rows, 0), columns);
  let at = 0;
  for (const { values } of matrices) {
    stacked.values.set(values, at);
    at += values.length;
  }
  return stacked;
}

/** factor · X. */
export function scale({ rows, columns, values }: Matrix, factor: number): Matrix {
  return { rows, columns, values: values.map((value) => factor * value) };
}

/** X + Y. */
export function sum(x: Matrix, y: Matrix): Matrix {
  return { ...x, values: x.values.map((value, i) => value + y.values[i]!) };
}

/** Whether two matrices have the same shape and elements. */
export function isEqual(x: Matrix, y: Matrix): boolean {
  return x.rows === y.rows && x.columns === y.columns && x.values.every((value, i) => value === y.values[i]);
}

/** Xᵀ. */
export function transpose({ rows, columns, values }: Matrix): Matrix {
  const result = zeros(columns, rows);
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++) result.values[j * rows + i] = values[i * columns + j]!;
  }
  return result;
}

/** Σ xᵢ yᵢ. */
export function dot(x: Float64Array, y: Float64Array): number {
  let sum = 0;
  for (let i = 0; i < x.length; i++) sum += x[i]! * y[i]!;
  return sum;
}

/** y += factor · x. */
export function addScaled(y: Float64Array, x: Float64Array, factor: number): void {
  for (let i = 0; i < y.length; i++) y[i]! += factor * x[i]!;
}

/** X Y: (m, k) times (k, n). */
export function multiply(x: Matrix, y: Matrix): Matrix {
  const product = zeros(x.rows, y.columns);
  for (let i = 0; i < x.rows; i++) {
    const target = rowOf(product, i);
    for (let k = 0; k < x.columns; k++) {
      const factor = x.values[i * x.columns + k]!;
      if (factor !== 0) addScaled(target, rowOf(y, k), factor);
    }
  }
  return product;
}

/** X Yᵀ: (m, k) times (n, k) transposed. */
export function multiplyTransposed(x: Matrix, y: Matrix): Matrix {
  const product = zeros(x.rows, y.rows);
  for (let i = 0; i < x.rows; i++) {
    for (let j = 0; j < y.rows; j++) product.values[i * y.rows + j] = dot(rowOf(x, i), rowOf(y, j));
  }
  return product;
}

/** ‖X‖, the root of the sum of squares. */
export function frobeniusNorm({ values }: Matrix): number {
  return Math.sqrt(dot(values, values));
}

/**
 * Orthonormalises vectors by Householder reflections: Xᵀ = Qᵀ R, the thin QR decomposition of the vectors as columns.
 *
 * @param vectors The vectors as rows (n, length).
 * @returns Q with orthonormal rows and R, also where vectors depend on each other.
 */
export function orthogonalize(vectors: Matrix): Orthogonal {
  const { r, mirrors } = triangularize(vectors);
  const q = zeros(mirrors.rows, mirrors.columns);
  for (let i = 0; i < q.rows; i++) {
    const row = rowOf(q, i);
    row[i] = 1;
    // The mirrors after the i-th do not reach it.
    for (let j = i; j >= 0; j--) reflect(row, rowOf(mirrors, j), j);
  }
  return { q, r };
}

/** R of {@linkcode orthogonalize}, for less than half the work, and the mirrors that lead to Q. */
export function triangularize(vectors: Matrix): { readonly r: Matrix; readonly mirrors: Matrix } {
  const { rows: n, columns: length } = vectors;
  const k = Math.min(n, length);
  const work = { ...vectors, values: vectors.values.slice() };
  const mirrors = zeros(k, length);
  for (let i = 0; i < k; i++) {
    const mirror = rowOf(mirrors, i);
    if (!makeMirror(rowOf(work, i), i, mirror)) continue;
    for (let j = i; j < n; j++) reflect(rowOf(work, j), mirror, i);
  }
  const r = zeros(k, n);
  for (let j = 0; j < n; j++) {
    for (let i = 0; i <= Math.min(j, k - 1); i++) r.values[i * n + j] = work.values[j * length + i]!;
  }
  return { r, mirrors };
}

/** The unit vector v for which x − 2 v (v · x) is zero after element `from`; false where x is so already. */
function makeMirror(x: Float64Array, from: number, mirror: Float64Array): boolean {
  const tail = x.subarray(from);
  const norm = Math.sqrt(dot(tail, tail));
  const v = mirror.subarray(from);
  v.set(tail);
  v[0]! += v[0]! < 0 ? -norm : norm;
  const size = Math.sqrt(dot(v, v));
  if (size === 0) return false;
  for (let i = 0; i < v.length; i++) v[i]! /= size;
  return true;
}

function reflect(x: Float64Array, mirror: Float64Array, from: number): void {
  const [tail, v] = [x.subarray(from), mirror.subarray(from)];
  addScaled(tail, v, -2 * dot(tail, v));
}
