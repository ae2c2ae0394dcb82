/**
 * Adapters whose training began with a changed base, as plain LoRA over the original one.
 *
 * @module
 */

import { MismatchError } from "../errors.ts";
import { checkOptionTypes } from "../formats/check_options.ts";
import { type StoredTensor, toFloat32 } from "../formats/dtype.ts";
import type { JsonValue } from "../formats/json.ts";
import { quote } from "../formats/quote.ts";
import { Adapter, type LoraModule, type ReportLine } from "./adapter.ts";
import { alphaOf } from "./dialects/scale_config.ts";
import { baseFieldOf, isRepeatable } from "./variant_fields.ts";
import { isBaseTable } from "./base_tables.ts";
import { exactKeys } from "./exact_keys.ts";
import { readFactors, storeFactors } from "./factors.ts";
import { scale, stackRows } from "./linear_algebra.ts";
import { CONFIG_FILE, type LoraConfig, readLoraConfig } from "./lora_config.ts";
import { newAdapter } from "./new_adapter.ts";
import type { Factors } from "./svd.ts";
import { readWeight } from "./weight_matrix.ts";

/** What the change of the base is known from. */
export interface ToPlainOptions {
  /**
   * The adapter as it was before training, for any initialisation: PEFT's `path_initial_model_for_weight_conversion`.
   * What it adds is taken away whatever the configs say, which PEFT's users set to `init_lora_weights: true` meanwhile.
   */
  readonly initial?: Adapter;
  /** The weights of the original base by module path, for `pissa`, `olora` and `kasa`. */
  readonly weightOf?: (module: string) => StoredTensor | Promise<StoredTensor>;
  /** Whether the weight of a module is stored (in, out), where it is square; as the config says if absent. */
  readonly isTransposed?: (module: LoraModule) => boolean;
}

const PLAIN_ALREADY = "its factors hold those of the initial adapter: it was made plain when it was saved";
const CAN_BE_READ = { rank: Infinity, modules: Infinity };

/**
 * Converts an adapter whose initialisation changed the base (PiSSA, OLoRA, CorDA, LoRA-GA, KaSA) to plain LoRA over the
 * original base: A' = [A; A₀], B' = [B, −B₀], with twice the rank and the same s.
 *
 * @param adapter The adapter.
 * @param options The initial adapter, or the original base.
 * @returns The plain adapter; the same one if its base did not change, or if it holds the initial one already, as what
 *   PEFT saves with `path_initial_model_for_weight_conversion`.
 * @throws {MismatchError} If neither tells how the base changed, or they do not fit the adapter.
 *
 * @example
 * ```ts
 * import { fromFloat32 } from "@lowrank/lora";
 * import { createAdapter } from "@lowrank/lora/adapters";
 * import assert from "node:assert/strict";
 *
 * const weight = fromFloat32(Float32Array.of(3, 0, 0, 1), [2, 2]);
 * const modules = [{ name: "q", inFeatures: 2, outFeatures: 2 }];
 * const weightOf = () => weight;
 * const pissa = await createAdapter({ modules, targetModules: ["q"], r: 1, init: "pissa", weightOf });
 * const plain = await toPlainLora(pissa, { weightOf });
 * assert.deepEqual([plain.baseChange, plain.modules.get("q")!.rank], [null, 2]);
 * ```
 */
export async function toPlainLora(adapter: Adapter, options: ToPlainOptions): Promise<Adapter> {
  checkOptionTypes("make an adapter plain", options, { initial: "object", weightOf: "function" });
  const { baseChange } = adapter;
  const { initial } = options;
  if (baseChange === null) {
    if (!initial) return adapter;
    if (holdsInitial(adapter, initial)) {
      return withLine(adapter, "the initial adapter is not subtracted", PLAIN_ALREADY);
    }
  }
  const modules = new Map<string, LoraModule>();
  for (const [name, module] of adapter.modules) {
    modules.set(name, await plainModule(adapter, module, options));
  }
  const config = plainConfig(adapter.config, modules);
  const what = `it is plain LoRA of twice the rank now, over the base before ${baseChange ?? "its initialisation"}`;
  const why = initial ? "its initial factors are subtracted" : "what the initialisation took is computed again";
  const report = adapter.report.filter(({ what }) => !isBaseLine(what));
  return withLine(await newAdapter({ ...adapter, config, modules, baseChange: null, report }), what, why);
}

function withLine(adapter: Adapter, what: string, why: string): Adapter {
  const line: ReportLine = { module: CONFIG_FILE, what, why };
  return new Adapter({ ...adapter, report: [...adapter.report, line] });
}

/** Whether a conversion has put the initial A below its own, in every linear layer. */
function holdsInitial({ modules }: Adapter, initial: Adapter): boolean {
  const linear = [...modules.values()].filter(({ kind }) => kind === "linear");
  return linear.every(({ name, rank, loraA }) => {
    const first = initial.modules.get(name);
    if (!first || rank !== 2 * first.rank || loraA.shape[1] !== first.loraA.shape[1]) return false;
    const [own, wanted] = [toFloat32(loraA), toFloat32(first.loraA)];
    // both may have been rounded to BF16 or F16 since
    return wanted.every((value, i) =>
      Math.abs(own[wanted.length + i]! - value) <= 2 ** -7 * Math.abs(value) + 2 ** -24
    );
  });
}

/**
 * A module over the original base. PEFT begins embeddings with B A = 0 whatever the initialisation is: they took nothing
 * from theirs, and only their alpha is told without rsLoRA. So it is where the file holds the weight that the
 * initialisation left, as PEFT saves a head's.
 */
async function plainModule(adapter: Adapter, module: LoraModule, options: ToPlainOptions): Promise<LoraModule> {
  const { name, kind, scaling, rank } = module;
  const isWhole = kind === "embedding" && adapter.baseChange !== "kasa";
  if (isWhole || hasTable(adapter, `${name}.weight`)) return { ...module, alpha: alphaOf(scaling, rank) };
  return join(module, await takenFrom(adapter, module, options));
}

function hasTable(adapter: Adapter, tensor: string): boolean {
  return isBaseTable(adapter, tensor) && adapter.replacements.has(tensor);
}

/** The line that {@linkcode reportAdapter} has for such an adapter. */
function isBaseLine(what: string): boolean {
  return what.endsWith("changed the base before training");
}

async function takenFrom(
  adapter: Adapter,
  module: LoraModule,
  { initial, weightOf, isTransposed: isTurned = () => adapter.config.fanInFanOut }: ToPlainOptions,
): Promise<Factors> {
  const { baseChange } = adapter;
  if (initial) return initialFactors(adapter, module, initial);
  const { takenFactors } = await import("./base_change.ts");
  if (!weightOf || !isRepeatable(baseChange)) {
    const expected = isRepeatable(baseChange) ? "the initial adapter or the base's weights" : "the initial adapter";
    const field = baseFieldOf(baseChange!);
    const message = `Cannot convert ${quote(adapter.name)} with ${field} ${quote(baseChange!)} to plain LoRA`;
    throw new MismatchError(`${message}: expected ${expected}`, {
      field,
      found: baseChange,
      expected,
    });
  }
  if (module.kind !== "linear") throw refuseKind(adapter, module);
  const { matrix, isTransposed } = readWeight(await weightOf(module.name), module, isTurned(module));
  if (isTransposed && baseChange !== "pissa") {
    const message =
      `Cannot convert ${quote(module.name)} of ${quote(adapter.name)}: PEFT's ${baseChange} is not defined ` +
      "for a weight that is stored (in, out); expected the initial adapter";
    throw new MismatchError(message, { tensor: module.name, field: "fan_in_fan_out", found: true });
  }
  return takenFactors(baseChange, matrix, module);
}

function initialFactors(adapter: Adapter, module: LoraModule, initial: Adapter): Factors {
  const other = initial.modules.get(module.name);
  const fits = other?.kind === "linear" && module.kind === "linear" && other.rank === module.rank &&
    other.inFeatures === module.inFeatures && other.outFeatures === module.outFeatures;
  if (fits && other.scaling === module.scaling) return readFactors(other);
  const message = `Cannot convert ${quote(module.name)} of ${quote(adapter.name)} with ${quote(initial.name)}`;
  throw new MismatchError(`${message}: expected the same linear layer with its rank and scale`, {
    tensor: module.name,
  });
}

/** [A; A₀] and [B, −B₀], rounded once to F32; alpha = s r, so that s is the same without rsLoRA. */
function join(module: LoraModule, taken: Factors): LoraModule {
  const own = readFactors(module);
  const { inFeatures, outFeatures, scaling, diagonal: _, ...rest } = module;
  const a = stackRows([own.a, taken.a], inFeatures);
  const b = stackRows([own.b, scale(taken.b, -1)], outFeatures);
  const { loraA, loraB, rank, dtype } = storeFactors(module, { a, b }, "F32");
  return { ...rest, inFeatures, outFeatures, scaling, rank, alpha: alphaOf(scaling, rank), dtype, loraA, loraB };
}

function plainConfig(config: LoraConfig, modules: ReadonlyMap<string, LoraModule>): LoraConfig {
  const keyOf = exactKeys(modules.keys());
  const r = 2 * config.r;
  const loraAlpha = config.useRslora ? alphaOf(config.loraAlpha / Math.sqrt(config.r), r) : 2 * config.loraAlpha;
  const all = [...modules.values()];
  const ranks = all.filter(({ rank }) => rank !== r).map(({ name, rank }) => [keyOf(name), rank] as const);
  const alphas = all.filter(({ alpha }) => alpha !== loraAlpha).map(({ name, alpha }) => [keyOf(name), alpha] as const);
  const raw = new Map<string, JsonValue>(config.raw);
  raw.set("r", r).set("lora_alpha", loraAlpha).set("use_rslora", false).set("init_lora_weights", true);
  raw.set("rank_pattern", new Map(ranks)).set("alpha_pattern", new Map(alphas));
  for (const field of ["kasa_config", "corda_config", "lora_ga_config"]) raw.set(field, null);
  return readLoraConfig(raw, { limits: CAN_BE_READ });
}

function refuseKind(adapter: Adapter, { name, kind }: LoraModule): MismatchError {
  const message = `Cannot convert ${quote(name)} of ${quote(adapter.name)}, a module of kind ${kind}, to plain LoRA`;
  return new MismatchError(`${message}: expected a linear layer`, { tensor: name, found: kind, expected: "linear" });
}
