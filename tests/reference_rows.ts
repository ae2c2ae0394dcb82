/**
 * What the operations of encoders and of adapters that are more than a branch mean: float64 loops, as in reference.ts.
 *
 * @module
 */
import { add, at, type Branch, deltaWeight, type Matrix, matrix } from "./reference.ts";

/** y = (x − mean) / sqrt(variance + eps) ∘ gain + bias. */
export function layerNorm(x: Matrix, gain: Matrix, bias: Matrix, eps: number): Matrix {
  const dim = x.shape[1];
  const mean = (row: number, f: (value: number) => number) => {
    let sum = 0;
    for (let k = 0; k < dim; k++) sum += f(at(x, row, k));
    return sum / dim;
  };
  return matrix(...x.shape, (i, j) => {
    const center = mean(i, (value) => value);
    const variance = mean(i, (value) => (value - center) ** 2);
    return (at(x, i, j) - center) / Math.sqrt(variance + eps) * at(gain, 0, j) + at(bias, 0, j);
  });
}

/** erfc z: by its series below 3, by its continued fraction above. */
export function erfc(z: number): number {
  if (z < 0) return 2 - erfc(-z);
  if (z < 3) {
    let [term, sum] = [z, z];
    for (let n = 1; n < 80; n++) sum += (term *= -z * z / n) / (2 * n + 1);
    return 1 - 2 / Math.sqrt(Math.PI) * sum;
  }
  let fraction = 0;
  for (let k = 60; k > 0; k--) fraction = k / 2 / (z + fraction);
  return Math.exp(-z * z) / Math.sqrt(Math.PI) / (z + fraction);
}

export function gelu(x: Matrix): Matrix {
  return matrix(...x.shape, (i, j) => at(x, i, j) / 2 * erfc(-at(x, i, j) / Math.SQRT2));
}

export function geluTanh(x: Matrix): Matrix {
  return matrix(...x.shape, (i, j) => {
    const v = at(x, i, j);
    return v / 2 * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (v + 0.044715 * v ** 3)));
  });
}

/** factor · scale ∘ x + shift. */
export function affine(x: Matrix, factor: number, scale: Matrix | null, shift: Matrix | null): Matrix {
  return matrix(...x.shape, (i, j) => {
    return factor * (scale ? at(scale, 0, j) : 1) * at(x, i, j) + (shift ? at(shift, 0, j) : 0);
  });
}

/** Σ over the rows of x ∘ y, as (1, dim). */
export function columnSums(x: Matrix, y: Matrix): Matrix {
  return matrix(1, x.shape[1], (_, j) => {
    let sum = 0;
    for (let i = 0; i < x.shape[0]; i++) sum += at(x, i, j) * at(y, i, j);
    return sum;
  });
}

/** Row i is Σ weight · x[row] over the terms of list i. */
export function gatherSum(x: Matrix, lists: readonly (readonly (readonly [row: number, weight: number])[])[]): Matrix {
  return matrix(lists.length, x.shape[1], (i, j) => {
    return lists[i]!.reduce((sum, [row, weight]) => sum + weight * at(x, row, j), 0);
  });
}

/** 1 / ‖W + s B A‖ per row as (1, out), or per column as (1, in); 0 where the norm is 0. */
export function inverseNorms(w: Matrix, branch: Branch, columns: boolean): Matrix {
  const sum = add(w, deltaWeight(branch));
  return matrix(1, w.shape[columns ? 1 : 0], (_, i) => {
    let squares = 0;
    for (let k = 0; k < w.shape[columns ? 0 : 1]; k++) squares += (columns ? at(sum, k, i) : at(sum, i, k)) ** 2;
    return squares === 0 ? 0 : 1 / Math.sqrt(squares);
  });
}
