/**
 * Singular values of an update ΔW (out, in) = B A from its factors: QR of both, and the SVD of the small core between
 * them by one-sided Jacobi rotations. The (out, in) matrix is never formed.
 *
 * @module
 */

import {
  addScaled,
  dot,
  frobeniusNorm,
  type Matrix,
  multiply,
  multiplyTransposed,
  orthogonalize,
  rowOf,
  transpose,
  triangularize,
  zeros,
} from "./linear_algebra.ts";

/** An update as its factors: ΔW = bᵀ a. */
export interface Factors {
  /** A (rank, in). */
  readonly a: Matrix;
  /** B transposed, (rank, out). */
  readonly b: Matrix;
}

/** X = Σ leftₖᵀ rightₖ: the left vectors have the singular values as their lengths, the right ones length 1. */
export interface SingularVectors {
  /** Singular values, largest first. */
  readonly sigma: Float64Array;
  /** uₖ σₖ as rows (k, rows of X). */
  readonly left: Matrix;
  /** vₖ as rows (k, columns of X). */
  readonly right: Matrix;
}

const MAX_SWEEPS = 60;

/**
 * Decomposes a matrix by one-sided Jacobi rotations (Hestenes 1958): rotates its columns until they are orthogonal.
 *
 * @param x A matrix (m, n).
 * @returns min(m, n) singular values with their vectors.
 */
export function singularVectors(x: Matrix): SingularVectors {
  const rank = Math.min(x.rows, x.columns);
  const { sigma, left, right } = x.rows < x.columns ? flip(rotate(x)) : rotate(transpose(x));
  const order = Array.from(sigma.keys()).sort((i, j) => sigma[j]! - sigma[i]!).slice(0, rank);
  const pick = (matrix: Matrix): Matrix => {
    const picked = zeros(rank, matrix.columns);
    order.forEach((from, to) => rowOf(picked, to).set(rowOf(matrix, from)));
    return picked;
  };
  return { sigma: Float64Array.from(order, (i) => sigma[i]!), left: pick(left), right: pick(right) };
}

/**
 * Decomposes an update by its factors.
 *
 * @param factors B and A; their product is ΔW.
 * @returns Its min(rank, out, in) largest singular values with their vectors; all others are zero.
 */
export function productVectors({ a, b }: Factors): SingularVectors {
  const [qa, qb] = [orthogonalize(a), orthogonalize(b)];
  const { sigma, left, right } = singularVectors(multiplyTransposed(qb.r, qa.r));
  return { sigma, left: multiply(left, qb.q), right: multiply(right, qa.q) };
}

/**
 * ‖ΔW‖ of an update by its factors, without the cancellation of a sum of inner products.
 *
 * @param factors B and A.
 * @returns The root of the sum of squares of ΔW.
 */
export function productNorm({ a, b }: Factors): number {
  return frobeniusNorm(multiply(triangularize(b).r, a));
}

/** For few long rows: W = J X with orthogonal rows, so X = Jᵀ W, with the singular values in W. */
function rotate(x: Matrix): SingularVectors {
  const w: Matrix = { ...x, values: x.values.slice() };
  const j = zeros(x.rows, x.rows);
  for (let i = 0; i < x.rows; i++) j.values[i * x.rows + i] = 1;
  // Below this, a row is what rounding left of a zero singular value.
  const negligible = Number.EPSILON * frobeniusNorm(x);
  // LAPACK's dgesvj: the cosine at which two rows count as orthogonal.
  const orthogonal = Number.EPSILON * Math.sqrt(x.columns);
  for (let sweep = 0; sweep < MAX_SWEEPS; sweep++) {
    let rotated = false;
    for (let p = 0; p < x.rows; p++) {
      for (let q = p + 1; q < x.rows; q++) {
        const rotation = rotationOf(rowOf(w, p), rowOf(w, q), { negligible, orthogonal });
        if (!rotation) continue;
        rotated = true;
        turn(rowOf(w, p), rowOf(w, q), rotation);
        turn(rowOf(j, p), rowOf(j, q), rotation);
      }
    }
    if (!rotated) break;
  }
  const sigma = Float64Array.from({ length: x.rows }, (_, i) => Math.sqrt(dot(rowOf(w, i), rowOf(w, i))));
  return { sigma, left: w, right: j };
}

interface Rotation {
  readonly cosine: number;
  readonly sine: number;
}

/** The rotation that makes two rows orthogonal; undefined where they are. */
function rotationOf(
  x: Float64Array,
  y: Float64Array,
  bounds: { readonly negligible: number; readonly orthogonal: number },
): Rotation | undefined {
  const [xx, yy, xy] = products(x, y);
  if (Math.sqrt(Math.min(xx, yy)) <= bounds.negligible) return undefined;
  if (Math.abs(xy) <= bounds.orthogonal * Math.sqrt(xx) * Math.sqrt(yy)) return undefined;
  const zeta = (yy - xx) / (2 * xy);
  const tangent = Math.sign(zeta || 1) / (Math.abs(zeta) + Math.hypot(1, zeta));
  const cosine = 1 / Math.hypot(1, tangent);
  return { cosine, sine: cosine * tangent };
}

/** x · x, y · y and x · y in one pass. */
function products(x: Float64Array, y: Float64Array): readonly [number, number, number] {
  let [xx, yy, xy] = [0, 0, 0];
  for (let i = 0; i < x.length; i++) {
    const [xi, yi] = [x[i]!, y[i]!];
    xx += xi * xi;
    yy += yi * yi;
    xy += xi * yi;
  }
  return [xx, yy, xy];
}

function turn(x: Float64Array, y: Float64Array, { cosine, sine }: Rotation): void {
  for (let i = 0; i < x.length; i++) {
    const [xi, yi] = [x[i]!, y[i]!];
    x[i] = cosine * xi - sine * yi;
    y[i] = sine * xi + cosine * yi;
  }
}

/** Moves the singular values from the right vectors to the left ones; a zero one leaves no right vector. */
function flip({ sigma, left: w, right: j }: SingularVectors): SingularVectors {
  const [left, right] = [zeros(j.rows, j.columns), zeros(w.rows, w.columns)];
  for (let k = 0; k < w.rows; k++) {
    addScaled(rowOf(left, k), rowOf(j, k), sigma[k]!);
    if (sigma[k]! > 0) addScaled(rowOf(right, k), rowOf(w, k), 1 / sigma[k]!);
  }
  return { sigma, left, right };
}
