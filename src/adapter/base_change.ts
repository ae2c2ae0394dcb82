/**
 * How initialisations change the base before training, from the base alone:
 *
 * ```text
 * pissa  W − s B₀ A₀, the r largest singular values:   A₀ = √(S/s) Vᵀ   B₀ = U √(S/s)
 * olora  W − s B₀ A₀, the first r columns of W = Q R:   A₀ = R[:r]       B₀ = Q[:, :r]
 * kasa   W − B₀ A₀, the r smallest singular values:     A₀ = Vᵀ          B₀ = U S
 * ```
 *
 * @module
 */

import { NumericError } from "../errors.ts";
import { quote } from "../formats/quote.ts";
import { leadingVectors, trailingVectors } from "./leading_vectors.ts";
import { type Matrix, multiply, orthogonalize, rowOf, scale, zeros } from "./linear_algebra.ts";
import type { Factors, SingularVectors } from "./svd.ts";
import type { RepeatableChange } from "./variant_fields.ts";

/**
 * Computes what an initialisation takes from a weight, as s B₀ A₀.
 *
 * @param change Which initialisation.
 * @param weight W (out, in).
 * @param sizes The module's path, and the adapter's rank and s there.
 * @returns B₀ and A₀.
 * @throws {NumericError} If s is not positive.
 * @throws {LimitError} If the weight is too large for KaSA's.
 */
export function takenFactors(
  change: RepeatableChange,
  weight: Matrix,
  { name, rank, scaling }: { readonly name: string; readonly rank: number; readonly scaling: number },
): Factors {
  if (!(scaling > 0)) {
    const message = `Cannot compute ${change} for ${quote(name)} with a lora_alpha that makes its scale ${scaling}`;
    throw new NumericError(`${message}: expected a positive one`, {
      tensor: name,
      field: "lora_alpha",
      found: scaling,
    });
  }
  if (change === "olora") return firstColumns(weight, rank);
  if (change === "pissa") return balance(leadingVectors(weight, rank), 1 / scaling);
  const { left, right } = trailingVectors(weight, rank, name);
  return { a: right, b: scale(left, 1 / scaling) };
}

/** A = √(f S) Vᵀ and B = U √(f S), so B A = f U S Vᵀ. */
export function balance({ sigma, left, right }: SingularVectors, factor: number): Factors {
  const [a, b] = [zeros(right.rows, right.columns), zeros(left.rows, left.columns)];
  sigma.forEach((value, k) => {
    if (value === 0) return;
    const root = Math.sqrt(factor * value);
    rowOf(a, k).set(rowOf(right, k).map((v) => root * v));
    rowOf(b, k).set(rowOf(left, k).map((u) => root / value * u));
  });
  return { a, b };
}

/** Q[:, :r] and R[:r] of W = Q R; their product does not depend on the signs of Q. */
function firstColumns(weight: Matrix, rank: number): Factors {
  const columns = zeros(rank, weight.rows);
  for (let i = 0; i < weight.rows; i++) {
    for (let k = 0; k < rank; k++) columns.values[k * weight.rows + i] = weight.values[i * weight.columns + k]!;
  }
  const { q } = orthogonalize(columns);
  return { a: multiply(q, weight), b: q };
}
