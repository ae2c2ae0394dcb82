/**
 * How adapters are combined: the methods and what each takes.
 *
 * @module
 */

import { checkOptionTypes, type OptionType } from "../formats/check_options.ts";
import { FLOAT_DTYPES, type FloatDtype } from "../formats/dtype.ts";
import { quote } from "../formats/quote.ts";
import type { ReadOptions } from "../formats/source.ts";
import { isClamp } from "./clamp.ts";
import type { AdapterLimits } from "./limits.ts";
import type { MajoritySign, PruningMethod } from "./pruning.ts";

/** Ways to combine adapters, by the names of PEFT's `combination_type`; `"exact"` is its `"cat"`. */
export type CombineMethod = "exact" | "cat" | "svd" | "linear" | PruningMethod | `${PruningMethod}_svd`;

/** Options of `combineAdapters()`. */
export interface CombineOptions extends ReadOptions {
  /**
   * `"exact"`, the default, PEFT's `"cat"`: the sum, of the summed rank. `"svd"`: the best approximation of a rank. The others are
   * PEFT's, under its names: on the factors, with their cross terms, or with `_svd` on the updates, which are then
   * formed in full.
   */
  readonly method?: CombineMethod;
  /** Rank of every module, for `"svd"` and `_svd`; the largest of the module's ranks if absent. */
  readonly rank?: number;
  /** Instead of a rank: the share of Σ σ² that every module keeps, above 0 up to 1. */
  readonly energy?: number;
  /**
   * For `"svd"` and `_svd`: clips U S and V at ± this quantile of their values, above 0.5 up to 1, PEFT's `svd_clamp`.
   * Nothing is clipped if absent; the report's errors tell what it costs.
   */
  readonly svdClamp?: number;
  /** Share of the entries that pruning keeps, above 0 up to 1; required by the methods that prune. */
  readonly density?: number;
  /** How TIES votes over the sign of an entry: `"total"`, the default, or `"frequency"`. */
  readonly majoritySign?: MajoritySign;
  /** Decides what DARE drops; 0 if absent. */
  readonly seed?: number;
  /** Element type of the result, rounded once; F32 if absent. */
  readonly dtype?: FloatDtype;
  /** Name of the result; "combined" if absent. */
  readonly name?: string;
  /** Caps of the result; `rank` is 256 if absent, as in `loadAdapter()`. */
  readonly limits?: AdapterLimits;
}

/** The types of what decides the size and the form of a new adapter. */
export const RESULT_TYPES: Readonly<Record<string, OptionType>> = {
  rank: "number",
  energy: "number",
  svdClamp: "number",
  seed: "number",
  dtype: FLOAT_DTYPES,
  name: "string",
  limits: "object",
};

/** Options of `resizeAdapter()`: a rank or an energy. */
export type ResizeOptions = Pick<CombineOptions, "rank" | "energy" | "dtype" | "name" | "limits" | "signal">;

const PRUNING: readonly PruningMethod[] = ["ties", "dare_linear", "dare_ties", "magnitude_prune"];

/** All methods. */
export const COMBINE_METHODS: readonly CombineMethod[] = [
  ...(["exact", "cat", "svd", "linear"] as const),
  ...PRUNING,
  ...PRUNING.map((name) => `${name}_svd` as const),
];

/** The pruning method in the name of a method, if there is one. */
export function pruningOf(method: CombineMethod): PruningMethod | undefined {
  return PRUNING.find((name) => method === name || method === `${name}_svd`);
}

/** Whether a method gives the best approximation of a rank. */
export function truncates(method: CombineMethod): boolean {
  return method === "svd" || method.endsWith("_svd");
}

/**
 * Checks the options of a combination.
 *
 * @throws {RangeError} If one is out of its range or does nothing for the method.
 * @throws {TypeError} If one is of another type.
 */
export function checkCombineOptions(method: CombineMethod, options: CombineOptions): void {
  checkOptionTypes("combine adapters", options, { ...RESULT_TYPES, method: "string", density: "number" });
  const { rank, energy, svdClamp, density, majoritySign, seed = 0 } = options;
  const refuse = (field: string, expected: string): RangeError => {
    const found = options[field as keyof CombineOptions];
    return new RangeError(`Cannot combine adapters by ${quote(String(method))} with ${field} ${found}: ${expected}`);
  };
  if (!COMBINE_METHODS.includes(method)) {
    const expected = COMBINE_METHODS.join(", ");
    throw new RangeError(`Cannot combine adapters with method ${String(method)}: expected one of ${expected}`);
  }
  const sized = (["rank", "energy", "svdClamp"] as const).find((field) => options[field] !== undefined);
  if (!truncates(method) && sized) throw refuse(sized, "expected none, only svd methods take one");
  if (svdClamp !== undefined && !isClamp(svdClamp)) throw refuse("svdClamp", "expected above 0.5 up to 1");
  if (rank !== undefined && energy !== undefined) throw refuse("energy", "expected it or a rank, not both");
  if (rank !== undefined && !(Number.isSafeInteger(rank) && rank >= 1)) {
    throw refuse("rank", "expected an integer from 1");
  }
  if (energy !== undefined && !(energy > 0 && energy <= 1)) throw refuse("energy", "expected above 0 up to 1");
  if (pruningOf(method) === undefined) {
    if (density !== undefined) throw refuse("density", "expected none, as it prunes nothing");
  } else if (!(density !== undefined && density > 0 && density <= 1)) {
    throw refuse("density", "expected above 0 up to 1");
  }
  if (majoritySign !== undefined && majoritySign !== "total" && majoritySign !== "frequency") {
    throw refuse("majoritySign", 'expected "total" or "frequency"');
  }
  if (!Number.isSafeInteger(seed)) throw refuse("seed", "expected an integer");
}
