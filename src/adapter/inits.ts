/**
 * The values with which PEFT's initialisations begin: A (r, in) and B (out, r) in float64.
 *
 * ```text
 * true        A uniform in ±1/√in, B = 0
 * false       A uniform in ±1/√in, B uniform in ±1/√r
 * gaussian    A normal with variance 1/r², B = 0
 * orthogonal  Q of a random (r, r): A = (R₁ Q[0::2])ᵀ / 10, B = (R₂ᵀ Q[1::2]) / 10, so B A = 0; r is even
 * mica        B = the r left singular vectors of W with the smallest values, A = 0
 * pissa …     what they take from W: see base_change.ts
 * loftq       N times: quantise W − B A, decompose the rest as U S Vᵀ: B = U √S, A = √S Vᵀ
 * ```
 *
 * @module
 */

import { MismatchError } from "../errors.ts";
import { quote } from "../formats/quote.ts";
import { balance, takenFactors } from "./base_change.ts";
import { leadingVectors, randomVectors, trailingVectors } from "./leading_vectors.ts";
import { type Matrix, multiply, orthogonalize, rowOf, scale, sum, transpose, zeros } from "./linear_algebra.ts";
import { quantise } from "./loftq.ts";
import type { RandomStream } from "./random.ts";
import type { Factors } from "./svd.ts";

/** The initialisations that need no more than a seed and the base's weights. */
export type InitName = "gaussian" | "orthogonal" | "mica" | "pissa" | `pissa_niter_${number}` | "olora" | "loftq";

/** What an initialisation begins from. */
export interface InitContext {
  /** Path of the module. */
  readonly name: string;
  /** r. */
  readonly rank: number;
  /** s. */
  readonly scaling: number;
  /** Columns of W. */
  readonly inFeatures: number;
  /** Rows of W. */
  readonly outFeatures: number;
  /** Random numbers of this module. */
  readonly random: RandomStream;
  /** W (out, in); null if the caller has not given it. */
  readonly weight: Matrix | null;
  /** Bits and iterations of LoftQ. */
  readonly loftq: { readonly bits: 4 | 8; readonly iterations: number };
}

/** First values, and the base that they are for. */
export interface FirstValues extends Factors {
  /** The weight over which the adapter begins; absent if it is the original. */
  readonly base?: Matrix;
}

/**
 * Makes the first values of a module.
 *
 * @param init The initialisation.
 * @param context What it begins from.
 * @returns The factors.
 * @throws {MismatchError} If it needs the weight, or the rank does not suit it.
 */
export function firstValues(init: boolean | InitName, context: InitContext): FirstValues {
  const { rank, inFeatures, outFeatures, random } = context;
  const b = zeros(rank, outFeatures);
  if (typeof init === "boolean") {
    // Kaiming-uniform with slope √5 is uniform in ±1/√in.
    const uniform = (width: number) => {
      const bound = 1 / Math.sqrt(width);
      return () => bound * (2 * random.uniform() - 1);
    };
    const a = filled(rank, inFeatures, uniform(inFeatures));
    return { a, b: init ? b : filled(rank, outFeatures, uniform(rank)) };
  }
  if (init === "gaussian") return { a: filled(rank, inFeatures, () => random.normal() / rank), b };
  if (init === "orthogonal") return orthogonal(context);
  const weight = requireWeight(init, context);
  if (init === "mica") return { a: zeros(rank, inFeatures), b: minorVectors(weight, { name: context.name, rank }) };
  if (init === "loftq") return loftq(weight, context);
  const factors = init === "pissa" || init === "olora"
    ? takenFactors(init, weight, context)
    : balance(randomVectors(weight, rank, Number(init.slice("pissa_niter_".length)), random), 1 / context.scaling);
  return { ...factors, base: sum(weight, scale(multiply(transpose(factors.b), factors.a), -context.scaling)) };
}

/**
 * MiCA's B: the left singular vectors of a weight with the smallest values, as rows.
 *
 * @param weight W (out, in).
 * @param sizes Path of the module, and how many.
 * @throws {MismatchError} If it has fewer.
 */
export function minorVectors(weight: Matrix, { name, rank }: { readonly name: string; readonly rank: number }): Matrix {
  requireWeight("mica", { name, rank, weight, inFeatures: weight.columns, outFeatures: weight.rows });
  const { sigma, left } = trailingVectors(weight, rank, name);
  return { ...left, values: left.values.map((value, i) => value / (sigma[Math.floor(i / left.columns)]! || 1)) };
}

type WeightContext = Pick<InitContext, "name" | "rank" | "inFeatures" | "outFeatures" | "weight">;

function requireWeight(init: string, { name, rank, inFeatures, outFeatures, weight }: WeightContext): Matrix {
  if (weight && rank <= Math.min(inFeatures, outFeatures)) return weight;
  const what = weight ? `of rank ${rank}` : "without its weight";
  const expected = weight ? `at most ${Math.min(inFeatures, outFeatures)}` : "weightOf";
  const message = `Cannot create ${quote(name)} ${what} by init ${quote(init)}: expected ${expected}`;
  throw new MismatchError(message, { tensor: name, field: "init", found: init, expected });
}

function orthogonal({ name, rank, inFeatures, outFeatures, random }: InitContext): Factors {
  if (rank % 2 !== 0) {
    const message = `Cannot create ${quote(name)} with r ${rank} by init "orthogonal": expected an even rank`;
    throw new MismatchError(message, { tensor: name, field: "r", found: rank, expected: "even" });
  }
  const q = orthogonalize(filled(rank, rank, () => random.normal())).q;
  const half = (first: number): Matrix => {
    const rows = zeros(rank / 2, rank);
    for (let i = 0; i < rank / 2; i++) rowOf(rows, i).set(rowOf(q, 2 * i + first));
    return rows;
  };
  const normal = (width: number) => filled(width, rank / 2, () => random.normal());
  const [a, b] = [multiply(normal(inFeatures), half(0)), multiply(normal(outFeatures), half(1))];
  return { a: scale(transpose(a), 0.1), b: scale(transpose(b), 0.1) };
}

function loftq(weight: Matrix, { rank, loftq: { bits, iterations } }: InitContext): FirstValues {
  let rest = weight;
  for (let i = 1;; i++) {
    const base = quantise(rest, bits);
    const factors = balance(leadingVectors(sum(weight, scale(base, -1)), rank), 1);
    if (i === iterations) return { ...factors, base };
    rest = sum(weight, scale(multiply(transpose(factors.b), factors.a), -1));
  }
}

function filled(rows: number, columns: number, next: () => number): Matrix {
  const matrix = zeros(rows, columns);
  for (let i = 0; i < matrix.values.length; i++) matrix.values[i] = next();
  return matrix;
}
