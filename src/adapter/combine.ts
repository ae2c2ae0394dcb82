/**
 * Combines adapters into one: exactly, to a rank, or by the formulas of PEFT 0.21.2; what is lost is reported.
 *
 * @module
 */

import { LimitError, MismatchError, NumericError } from "../errors.ts";
import { checkOptionTypes } from "../formats/check_options.ts";
import { type FloatDtype, type StoredTensor, toFloat32 } from "../formats/dtype.ts";
import { quote } from "../formats/quote.ts";
import { Adapter, type LoraModule, type ReportLine } from "./adapter.ts";
import { requireAdditive } from "./additive.ts";
import { sharedTables } from "./base_tables.ts";
import { combinedConfig, reportInputs } from "./combine_config.ts";
import { combineModule, concatenate, type ModulePart } from "./combine_module.ts";
import { checkCombineOptions, type CombineOptions, type ResizeOptions, RESULT_TYPES } from "./combine_options.ts";
import { readFactors, storeFactors, storeMatrix } from "./factors.ts";
import { DEFAULT_LIMITS } from "./limits.ts";
import { addScaled, isEqual, scale, stackRows, sum } from "./linear_algebra.ts";
import { CONFIG_FILE } from "./lora_config.ts";
import { newAdapter } from "./new_adapter.ts";
import { type Factors, productNorm } from "./svd.ts";
import { checkWeighted, type WeightedAdapter } from "./weighted_adapter.ts";

export type { CombineOptions, ResizeOptions };

const LOST_BIASES: ReportLine = {
  module: CONFIG_FILE,
  what: "PEFT 0.21.2 would lose the biases of B",
  why: "it combines A and B only; here they are summed as their updates are",
};

/**
 * Combines adapters of linear layers, embeddings and convolutions: ΔW = Σ weight · s B A per module, and so for biases of
 * B; an adapter without a module adds nothing there.
 *
 * The result has s = 1 for every reader: alpha = rank, no rsLoRA, and the ranks of single modules by their paths. Its
 * `report` has a line for each module with the error ‖wanted − got‖ / ‖wanted‖ of the stored factors against that sum.
 *
 * @param adapters The adapters with their weights; the first one's config is the result's.
 * @param options The method and what it takes.
 * @returns The combination.
 * @throws {MismatchError} If the adapters fit no common base, hold different tables of one, are more than such sums, or
 * their ranks differ where the method adds factors.
 * @throws {LimitError} If a rank passes the cap, or a `_svd` method would have to decompose too large an update.
 * @throws {NumericError} If a weight is not finite, or a value does not fit `dtype`.
 * @throws {RangeError} If an option is out of its range or does nothing for the method.
 * @throws {TypeError} If an option is of another type.
 *
 * @example
 * ```ts
 * import { loadAdapter } from "@lowrank/lora";
 * import { combineAdapters } from "@lowrank/lora/adapters";
 * import { folder } from "@lowrank/lora/fs";
 * import assert from "node:assert/strict";
 *
 * const news = await loadAdapter(folder("examples/models/tiny/news"));
 * const tweets = await loadAdapter(folder("examples/models/tiny/tweets"));
 * const half = await combineAdapters([{ adapter: news, weight: 0.5 }, { adapter: tweets, weight: 0.5 }]);
 * assert.equal(half.modules.get("model.layers.0.self_attn.q_proj")?.rank, 8 + 4);
 * ```
 */
export async function combineAdapters(
  adapters: readonly WeightedAdapter[],
  options: CombineOptions = {},
): Promise<Adapter> {
  const { method = "exact", dtype = "F32", name = "combined" } = options;
  checkAdapters(adapters);
  checkCombineOptions(method, options);
  const plain = adapters.map(({ adapter }) => adapter) as [Adapter, ...Adapter[]];
  const hasBias = plain.some(({ config }) => config.loraBias);
  const isOfPeft = adapters.length > 1 && options.energy === undefined;
  const modules = new Map<string, LoraModule>();
  const report: ReportLine[] = [...reportInputs(plain)];
  for (const module of new Set(plain.flatMap((adapter) => [...adapter.modules.keys()]))) {
    await breathe(options.signal);
    const parts = readParts(adapters, module);
    const { factors, what, why } = combineModule(parts, { ...options, method, module });
    checkRank(module, factors.a.rows, options.limits?.rank ?? DEFAULT_LIMITS.rank);
    const stored = storeFactors(parts[0]!.module, factors, dtype);
    const loraBias = hasBias ? combineBiases(parts, dtype) : undefined;
    modules.set(module, { ...stored, ...(loraBias && { loraBias }) });
    report.push({ module, what, why, error: relativeError(concatenate(parts), readFactors(stored)) });
    if (isOfPeft && plain[0].config.useRslora) report.push(reportScale(stored));
  }
  if (hasBias && isOfPeft) report.push(LOST_BIASES);
  const config = combinedConfig(plain, modules, options.limits);
  return await newAdapter({ name, config, modules, replacements: sharedTables(plain), report });
}

/**
 * Lowers the rank of an adapter: the best approximation of every module, with the error in the report.
 *
 * @param adapter The adapter.
 * @param options The rank of every module, or the share of Σ σ² that each keeps.
 * @returns The smaller adapter; modules whose rank is no larger keep theirs.
 * @throws {MismatchError} If the adapter is more than sums of B A.
 * @throws {RangeError} If neither or both of rank and energy are given, or one is out of its range.
 *
 * @example
 * ```ts
 * import { loadAdapter } from "@lowrank/lora";
 * import { resizeAdapter } from "@lowrank/lora/adapters";
 * import { folder } from "@lowrank/lora/fs";
 * import assert from "node:assert/strict";
 *
 * const small = await resizeAdapter(await loadAdapter(folder("examples/models/tiny/tweets")), { rank: 2 });
 * for (const { error = 0 } of small.report) assert.ok(error < 1);
 * ```
 */
export async function resizeAdapter(adapter: Adapter, options: ResizeOptions): Promise<Adapter> {
  checkOptionTypes("resize an adapter", options, RESULT_TYPES);
  if (options.rank === undefined && options.energy === undefined) {
    throw new RangeError("Cannot resize an adapter without a size: expected rank or energy");
  }
  if (adapter instanceof Adapter) requireAdditive(adapter, "resize");
  return await combineAdapters([{ adapter }], { name: adapter.name, ...options, method: "svd" });
}

function checkAdapters(adapters: readonly WeightedAdapter[]): void {
  if (adapters.length === 0) throw new RangeError("Cannot combine 0 adapters: expected at least one");
  checkWeighted("combine", adapters);
  for (const { adapter, weight = 1 } of adapters) {
    requireAdditive(adapter, "combine");
    if (Number.isFinite(weight)) continue;
    const message = `Cannot combine ${quote(adapter.name)} with weight ${weight}: expected a finite number`;
    throw new NumericError(message, { file: adapter.name, field: "weight", found: weight });
  }
}

function readParts(adapters: readonly WeightedAdapter[], module: string): readonly ModulePart[] {
  const parts: ModulePart[] = [];
  for (const [index, { adapter, weight = 1 }] of adapters.entries()) {
    const found = adapter.modules.get(module);
    if (!found) continue;
    const factors = readFactors(found);
    const [shape, expected] = [updateShape(found), updateShape(parts[0]?.module ?? found)];
    if (shape !== expected) {
      const message = `Cannot combine module ${quote(module)} of shape ${shape} in ${quote(adapter.name)}`;
      throw new MismatchError(`${message}: expected ${expected}, as in the adapters before it`, {
        file: adapter.name,
        tensor: module,
        found: shape,
        expected,
      });
    }
    parts.push({ index, weight, scaling: found.scaling, factors, module: found });
  }
  return parts;
}

/** Shape of the update, with its kind where that is not linear. */
function updateShape({ kind, outFeatures, loraA }: LoraModule): string {
  return `[${[outFeatures, ...loraA.shape.slice(1)].join(", ")}]${kind === "linear" ? "" : ` (${kind})`}`;
}

/** Σ weight · s · b_B; an adapter without a bias adds nothing. Embeddings have none. */
function combineBiases(parts: readonly ModulePart[], dtype: FloatDtype): StoredTensor | undefined {
  const { name, kind, outFeatures } = parts[0]!.module;
  if (kind === "embedding") return undefined;
  const values = new Float64Array(outFeatures);
  for (const { module, weight, scaling } of parts) {
    if (module.loraBias) addScaled(values, Float64Array.from(toFloat32(module.loraBias)), weight * scaling);
  }
  return storeMatrix({ values }, [outFeatures], { dtype, module: name });
}

function checkRank(module: string, value: number, limit: number): void {
  if (value <= limit) return;
  const message = `Cannot combine module ${quote(module)} to rank ${value}: expected at most ${limit}`;
  throw new LimitError(`${message}; "svd" with a rank gives the best approximation`, {
    tensor: module,
    field: "rank",
    limit,
    value,
  });
}

/** ‖wanted − got‖ / ‖wanted‖, by the factors of the difference: B_w A_w − B_g A_g = [B_w B_g] [A_w; −A_g]. */
function relativeError(wanted: Factors, got: Factors): number {
  const minus = scale(got.a, -1);
  const difference = productNorm(
    // An exact sum differs by the rounding of A only.
    isEqual(wanted.b, got.b) ? { a: sum(wanted.a, minus), b: got.b } : {
      a: stackRows([wanted.a, minus], wanted.a.columns),
      b: stackRows([wanted.b, got.b], wanted.b.columns),
    },
  );
  return difference === 0 ? 0 : difference / productNorm(wanted);
}

function reportScale({ name, rank }: LoraModule): ReportLine {
  return {
    module: name,
    what: `PEFT 0.21.2 would scale this by ${Number(Math.sqrt(rank).toPrecision(3))}`,
    why: "its result keeps use_rslora of the first adapter; ours has s = 1",
  };
}

/** Lets the host run: a signal is set by something else than this computation. */
async function breathe(signal: AbortSignal | undefined): Promise<void> {
  await new Promise((resolve) => setTimeout(resolve));
  signal?.throwIfAborted();
}
