/**
 * What layers with adapters mean, in float64 and one element at a time, and gradients by finite differences.
 *
 * @module
 */
import { add, at, type Branch, deltaWeight, type Matrix, matrix, product, transpose } from "./reference.ts";
import { inverseNorms } from "./reference_rows.ts";

/** One adapter of a layer; every part but the branch may be missing. */
export interface Part {
  readonly branch: Branch;
  /** b_B as (1, out). */
  readonly loraBias?: Matrix;
  /** DoRA's m as (1, out), or (1, in) for norms of columns. */
  readonly magnitude?: Matrix;
}

/** An adapter with its weight in a mix. */
export type PartTerm = readonly [part: Part, weight: number];

function branchAt([{ branch }, weight]: PartTerm): Branch {
  return { ...branch, scaling: branch.scaling * weight };
}

/** W' = … g₂ ∘ (g₁ ∘ (W + Δ₁) + Δ₂) …; `norms` are constants where they are given, one per term. */
export function effectiveWeight(
  w: Matrix,
  terms: readonly PartTerm[],
  { columns = false, norms }: { columns?: boolean; norms?: readonly Matrix[] } = {},
): Matrix {
  return terms.reduce((sum, term, i) => {
    const moved = add(sum, deltaWeight(branchAt(term)));
    const { magnitude } = term[0];
    if (!magnitude) return moved;
    const inverse = norms?.[i] ?? inverseNorms(w, branchAt(term), columns);
    const gain = (k: number) => at(magnitude, 0, k) * at(inverse, 0, k);
    return matrix(...w.shape, (row, column) => at(moved, row, column) * gain(columns ? column : row));
  }, w);
}

/** y = x W'ᵀ + Σ s b_B, each behind the gains of its adapter and of those after it, + bias. */
export function layerForward(
  x: Matrix,
  w: Matrix,
  bias: Matrix,
  terms: readonly PartTerm[],
  norms?: readonly Matrix[],
): Matrix {
  const y = product(x, transpose(effectiveWeight(w, terms, norms ? { norms } : {})));
  const shift = terms.reduce((sum, [{ branch, loraBias, magnitude }, weight], i) => {
    const inverse = norms?.[i] ?? inverseNorms(w, branchAt(terms[i]!), false);
    return matrix(...bias.shape, (_, j) => {
      const added = at(sum, 0, j) + (loraBias ? branch.scaling * weight * at(loraBias, 0, j) : 0);
      return magnitude ? added * at(magnitude, 0, j) * at(inverse, 0, j) : added;
    });
  }, matrix(...bias.shape, () => 0));
  return matrix(...y.shape, (i, j) => at(y, i, j) + at(shift, 0, j) + at(bias, 0, j));
}

/** d f / d m, element by element, by central differences of a function that reads m. */
export function differences(m: Matrix, f: () => number): Matrix {
  return matrix(...m.shape, (i, j) => {
    const index = i * m.shape[1] + j;
    const value = m.values[index]!;
    const step = 1e-5;
    m.values[index] = value + step;
    const above = f();
    m.values[index] = value - step;
    const below = f();
    m.values[index] = value;
    return (above - below) / (2 * step);
  });
}

/** Σ dy ∘ y. */
export function dot(dy: Matrix, y: Matrix): number {
  return dy.values.reduce((sum, value, i) => sum + value * y.values[i]!, 0);
}
