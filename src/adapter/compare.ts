/**
 * Compares two adapters of one base: how large their updates are, and how far they use the same directions.
 *
 * @module
 */

import { MismatchError } from "../errors.ts";
import { checkOptionTypes } from "../formats/check_options.ts";
import { quote } from "../formats/quote.ts";
import type { ReadOptions } from "../formats/source.ts";
import type { Adapter, LoraModule } from "./adapter.ts";
import { requireAdditive } from "./additive.ts";
import { readFactors } from "./factors.ts";
import {
  addScaled,
  firstRows,
  type Matrix,
  multiply,
  multiplyTransposed,
  orthogonalize,
  rowOf,
  scale,
  transpose,
  zeros,
} from "./linear_algebra.ts";
import { type Factors, productNorm, productVectors, singularVectors } from "./svd.ts";

/** φ(i, j) at `[i - 1][j - 1]`, from 0 (orthogonal) to 1 (one span holds the other). */
export type Similarity = readonly (readonly number[])[];

/** What two adapters do to one module. */
export interface ModuleComparison {
  /** Path of the module. */
  readonly module: string;
  /** Ranks of both. */
  readonly ranks: readonly [number, number];
  /** ‖ΔW‖ of both. */
  readonly norms: readonly [number, number];
  /** ⟨ΔW₁, ΔW₂⟩ / (‖ΔW₁‖ ‖ΔW₂‖); 0 where one is zero. */
  readonly cosine: number;
  /** φ of the input directions: right singular vectors of A, or of ΔW. */
  readonly input: Similarity;
  /** φ of the output directions: left singular vectors of B, or of ΔW. */
  readonly output: Similarity;
}

/** What {@linkcode compareAdapters} found. */
export interface AdapterComparison {
  /** The modules that both have, in the first one's order. */
  readonly modules: readonly ModuleComparison[];
  /** Modules that only the first has. */
  readonly onlyFirst: readonly string[];
  /** Modules that only the second has. */
  readonly onlySecond: readonly string[];
  /** ‖ΔW‖ over all modules of each. */
  readonly norms: readonly [number, number];
  /** Cosine of the angle between the updates over all modules. */
  readonly cosine: number;
}

/** Options of {@linkcode compareAdapters}. */
export interface CompareOptions extends ReadOptions {
  /**
   * `"factors"`, the default: directions of A and of B, as the paper takes them. `"delta"`: those of ΔW, which do not
   * change when the same update is written with other factors.
   */
  readonly of?: "factors" | "delta";
}

/**
 * ‖ΔW‖ (Frobenius) of a module, from its factors.
 *
 * @param module The module.
 * @returns The norm.
 */
export function deltaNorm(module: LoraModule): number {
  return Math.abs(module.scaling) * productNorm(readFactors(module));
}

/**
 * Compares two adapters module by module: norms, cosine, and the subspace similarity of LoRA (Hu et al. 2021) §7.2,
 * φ(i, j) = ‖(U₁ⁱ)ᵀ U₂ʲ‖² / min(i, j) with the first i and j singular vectors of each, up to their numerical ranks.
 *
 * @param a The first adapter.
 * @param b The second one.
 * @param options Whose directions are compared, and a signal.
 * @returns The comparison.
 * @throws {MismatchError} If the adapters have no module in common, shapes differ, or one is more than plain LoRA.
 * @throws {TypeError} If an option is of another type.
 *
 * @example
 * ```ts
 * import { loadAdapter } from "@lowrank/lora";
 * import { compareAdapters } from "@lowrank/lora/adapters";
 * import { folder } from "@lowrank/lora/fs";
 * import assert from "node:assert/strict";
 *
 * const news = await loadAdapter(folder("examples/models/tiny/news"));
 * const { modules } = await compareAdapters(news, news);
 * assert.ok(Math.abs(modules[0]!.input[0]![0]! - 1) < 1e-6); // one adapter spans what it spans
 * ```
 */
export async function compareAdapters(
  a: Adapter,
  b: Adapter,
  options: CompareOptions = {},
): Promise<AdapterComparison> {
  checkOptionTypes("compare adapters", options, { of: ["factors", "delta"] });
  requireAdditive(a, "compare");
  requireAdditive(b, "compare");
  const common = [...a.modules.values()].filter(({ name }) => b.modules.has(name));
  if (common.length === 0) {
    const message = `Cannot compare ${quote(a.name)} with ${quote(b.name)} without a common module`;
    throw new MismatchError(`${message}: expected adapters of one base`, {
      file: b.name,
      tensor: [...b.modules.keys()][0]!,
      unexpected: [...b.modules.keys()],
    });
  }
  const modules: ModuleComparison[] = [];
  for (const first of common) {
    await new Promise((resolve) => setTimeout(resolve));
    options.signal?.throwIfAborted();
    modules.push(compareModules(first, b.modules.get(first.name)!, options.of ?? "factors"));
  }
  const norms = [totalNorm(a), totalNorm(b)] as const;
  const inner = modules.reduce((sum, { cosine, norms: [x, y] }) => sum + cosine * x * y, 0);
  return {
    modules,
    onlyFirst: [...a.modules.keys()].filter((name) => !b.modules.has(name)),
    onlySecond: [...b.modules.keys()].filter((name) => !a.modules.has(name)),
    norms,
    cosine: ratio(inner, norms[0] * norms[1]),
  };
}

function compareModules(first: LoraModule, second: LoraModule, of: "factors" | "delta"): ModuleComparison {
  const shapes = [first, second].map(({ inFeatures, outFeatures }) => `[${outFeatures}, ${inFeatures}]`);
  if (shapes[0] !== shapes[1]) {
    const message = `Cannot compare module ${quote(first.name)} of shape ${shapes[0]} with ${shapes[1]}`;
    throw new MismatchError(`${message}: expected adapters of one base`, { tensor: first.name, found: shapes });
  }
  const [x, y] = [scaledFactors(first), scaledFactors(second)];
  const norms = [productNorm(x), productNorm(y)] as const;
  const [dx, dy] = of === "delta"
    ? [deltaDirections(x), deltaDirections(y)]
    : [factorDirections(x), factorDirections(y)];
  return {
    module: first.name,
    ranks: [first.rank, second.rank],
    norms,
    cosine: ratio(innerProduct(x, y), norms[0] * norms[1]),
    input: similarity(dx.input, dy.input),
    output: similarity(dx.output, dy.output),
  };
}

interface Directions {
  readonly input: Matrix;
  readonly output: Matrix;
}

function scaledFactors(module: LoraModule): Factors {
  const { a, b } = readFactors(module);
  return { a: scale(a, module.scaling), b };
}

function factorDirections({ a, b }: Factors): Directions {
  return { input: principalRows(a), output: principalRows(b) };
}

/** The right singular vectors of a matrix of few long rows, largest singular value first. */
function principalRows(x: Matrix): Matrix {
  const { q, r } = orthogonalize(x);
  const { sigma, right } = singularVectors(transpose(r));
  return multiply(firstRows(right, numericalRank(sigma)), q);
}

function deltaDirections(factors: Factors): Directions {
  const { sigma, left, right } = productVectors(factors);
  const rank = numericalRank(sigma);
  const output = zeros(rank, left.columns);
  for (let i = 0; i < rank; i++) addScaled(rowOf(output, i), rowOf(left, i), 1 / sigma[i]!);
  return { input: firstRows(right, rank), output };
}

/** Directions of singular values that are zero but for rounding are arbitrary. */
function numericalRank(sigma: Float64Array): number {
  const least = (sigma[0] ?? 0) * sigma.length * Number.EPSILON * 8;
  return sigma.filter((value) => value > least).length;
}

function similarity(x: Matrix, y: Matrix): Similarity {
  const { values } = multiplyTransposed(x, y);
  const above = new Float64Array(y.rows);
  return Array.from({ length: x.rows }, (_, i) => {
    let row = 0;
    return Array.from(above.keys(), (j) => {
      row += values[i * y.rows + j]! ** 2;
      above[j]! += row;
      // Rounding must not show more than the same span.
      return Math.min(1, above[j]! / (Math.min(i, j) + 1));
    });
  });
}

/** ⟨B₁ A₁, B₂ A₂⟩ = Σ (B₁ᵀ B₂) ∘ (A₁ A₂ᵀ). */
function innerProduct(x: Factors, y: Factors): number {
  const [a, b] = [multiplyTransposed(x.a, y.a).values, multiplyTransposed(x.b, y.b).values];
  return a.reduce((sum, value, i) => sum + value * b[i]!, 0);
}

function totalNorm({ modules }: Adapter): number {
  return Math.hypot(...Array.from(modules.values(), deltaNorm));
}

function ratio(value: number, whole: number): number {
  return whole === 0 ? 0 : value / whole;
}
