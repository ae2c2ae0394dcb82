import { LimitError, MismatchError } from "../errors.ts";
import { quote } from "../formats/quote.ts";
import type { LoraModule } from "./adapter.ts";
import { clampFactors } from "./clamp.ts";
import { type CombineMethod, type CombineOptions, pruningOf, truncates } from "./combine_options.ts";
import { addScaled, firstRows, type Matrix, multiply, scale, stackRows, transpose, zeros } from "./linear_algebra.ts";
import { mergeTensors } from "./pruning.ts";
import { RandomStream } from "./random.ts";
import { type Factors, productVectors, type SingularVectors, singularVectors } from "./svd.ts";

/** What one adapter contributes to a module: weight · scaling · B A. */
export interface ModulePart {
  /** Place of the adapter among all. */
  readonly index: number;
  /** The caller's weight. */
  readonly weight: number;
  /** s. */
  readonly scaling: number;
  /** B and A. */
  readonly factors: Factors;
  /** The module itself. */
  readonly module: LoraModule;
}

/** How a module is combined. */
export interface ModuleOptions
  extends Pick<CombineOptions, "rank" | "energy" | "svdClamp" | "density" | "majoritySign" | "seed"> {
  /** Path of the module. */
  readonly module: string;
  /** The method. */
  readonly method: CombineMethod;
}

/** A combined module, and what the report says of it. */
export interface CombinedModule {
  /** B and A, with s = 1. */
  readonly factors: Factors;
  /** What was done. */
  readonly what: string;
  /** What the error comes from. */
  readonly why: string;
}

/** Shorter side of the largest update that is decomposed in full: some seconds of rotations. */
const MAX_DENSE = 512;

/**
 * The exact sum as factors: A the rows cᵢ Aᵢ below each other, B the columns of all Bᵢ side by side, c = weight · s.
 *
 * @param parts What is summed; at least one.
 * @returns B and A of the summed rank.
 */
export function concatenate(parts: readonly ModulePart[]): Factors {
  const { a, b } = parts[0]!.factors;
  return {
    a: stackRows(parts.map(({ factors, weight, scaling }) => scale(factors.a, weight * scaling)), a.columns),
    b: stackRows(parts.map(({ factors }) => factors.b), b.columns),
  };
}

/**
 * Combines one module.
 *
 * @param parts What the adapters that have it contribute; at least one, of one shape.
 * @param options How.
 * @returns The combined factors.
 * @throws {MismatchError} If the method adds factors and their ranks differ.
 * @throws {LimitError} If the update is too large to be decomposed in full.
 */
export function combineModule(parts: readonly ModulePart[], options: ModuleOptions): CombinedModule {
  const { method } = options;
  if (method === "cat" || method === "exact") {
    const factors = concatenate(parts);
    return { factors, what: `rank ${factors.a.rows}, the sum of all`, why: "the sum is exact, rounded once" };
  }
  if (method === "svd") {
    const vectors = productVectors(concatenate(parts));
    return truncate(vectors, parts, options, "svd keeps the largest singular values of the sum");
  }
  if (truncates(method)) {
    const vectors = singularVectors(mergeUpdates(parts, options));
    return truncate(vectors, parts, options, `${method} prunes the updates before it sums and truncates them`);
  }
  return addFactors(parts, options);
}

/** PEFT's formula: sums of √|c| A and √|c| B. */
function addFactors(parts: readonly ModulePart[], options: ModuleOptions): CombinedModule {
  const { module, method } = options;
  const ranks = parts.map(({ factors }) => factors.a.rows);
  if (ranks.some((rank) => rank !== ranks[0])) {
    const message = `Cannot combine module ${quote(module)} of ranks ${ranks.join(", ")} by "${method}"`;
    throw new MismatchError(`${message}: expected one rank, as it adds factors; "exact" and "svd" take any`, {
      tensor: module,
      field: "rank",
      found: ranks,
    });
  }
  const c = parts.map(({ weight, scaling }) => weight * scaling);
  const a = parts.map(({ factors }) => factors.a);
  const b = parts.map(({ factors }) => factors.b);
  const factors = {
    a: mergeParts(a, c.map((ci) => Math.sign(ci) * Math.sqrt(Math.abs(ci))), { ...options, side: "lora_A" }),
    b: mergeParts(b, c.map((ci) => Math.sqrt(Math.abs(ci))), { ...options, side: "lora_B" }),
  };
  const why = parts.length > 1
    ? `"${method}" sums A and B apart, as PEFT does, so it adds the products of every A with every other B`
    : `"${method}" works on A and B apart, as PEFT does`;
  return { factors, what: `rank ${ranks[0]}`, why };
}

/** The updates s B A in full, merged entry by entry. */
function mergeUpdates(parts: readonly ModulePart[], options: ModuleOptions): Matrix {
  const { a, b } = parts[0]!.factors;
  const shorter = Math.min(a.columns, b.columns);
  if (shorter > MAX_DENSE) {
    const message = `Cannot combine module ${quote(options.module)} of shape [${b.columns}, ${a.columns}] by`;
    throw new LimitError(
      `${message} "${options.method}": expected a side of at most ${MAX_DENSE}; use "svd" or "exact"`,
      {
        tensor: options.module,
        limit: MAX_DENSE,
        value: shorter,
      },
    );
  }
  const updates = parts.map(({ factors, scaling }) => scale(multiply(transpose(factors.b), factors.a), scaling));
  return mergeParts(updates, parts.map(({ weight }) => weight), { ...options, side: "delta" });
}

function mergeParts(
  tensors: readonly Matrix[],
  weights: readonly number[],
  options: ModuleOptions & { readonly side: string },
): Matrix {
  const { module, side, seed = 0, density = 1, majoritySign = "total" } = options;
  const method = pruningOf(options.method);
  if (method) {
    const random = (index: number) => new RandomStream(seed, `${module}.${side}.${index}`);
    return mergeTensors(tensors, weights, { method, density, majoritySign, random });
  }
  const sum = zeros(tensors[0]!.rows, tensors[0]!.columns);
  tensors.forEach(({ values }, i) => addScaled(sum.values, values, weights[i]!));
  return sum;
}

/** A = Vᵀ and B = U S, cut to the rank. */
function truncate(
  { sigma, left, right }: SingularVectors,
  parts: readonly ModulePart[],
  { rank, energy, svdClamp = 1 }: ModuleOptions,
  why: string,
): CombinedModule {
  const largest = Math.max(...parts.map(({ factors }) => factors.a.rows));
  const kept = energy === undefined ? Math.min(rank ?? largest, sigma.length) : rankOfEnergy(sigma, energy);
  const whole = { a: firstRows(right, kept), b: firstRows(left, kept) };
  const what = `rank ${kept} of ${sigma.length}`;
  if (svdClamp === 1) return { factors: whole, what, why };
  return { factors: clampFactors(whole, svdClamp), what: `${what}, clipped at the ${svdClamp}-quantile`, why };
}

/** The least rank, from 1, that keeps this share of Σ σ². */
function rankOfEnergy(sigma: Float64Array, energy: number): number {
  const wanted = energy * sigma.reduce((sum, value) => sum + value * value, 0);
  let kept = 0;
  for (const [i, value] of sigma.entries()) {
    kept += value * value;
    if (kept >= wanted) return i + 1;
  }
  return sigma.length;
}
