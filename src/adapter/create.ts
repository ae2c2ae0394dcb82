import { MismatchError } from "../errors.ts";
import type { StoredTensor } from "../formats/dtype.ts";
import type { JsonValue } from "../formats/json.ts";
import { Adapter, type LoraModule } from "./adapter.ts";
import { CONFIG_DEFAULTS } from "./config_defaults.ts";
import { identify } from "./identity.ts";
import { type LoraConfig, readLoraConfig } from "./lora_config.ts";
import { scaleReader, scalingOf } from "./lora_module.ts";
import { RandomStream } from "./random.ts";
import { encodeWeights } from "./save.ts";
import { listTargets } from "./target_modules.ts";

/** A linear layer of a base model. */
export interface BaseModule {
  /** Path in the model. */
  readonly name: string;
  /** Columns of its weight (out, in). */
  readonly inFeatures: number;
  /** Rows of its weight (out, in). */
  readonly outFeatures: number;
}

/** What a new adapter is to be. Fields that are PEFT's have PEFT's meaning and defaults. */
export interface CreateAdapterOptions {
  /** The linear layers of the base model. */
  readonly modules: Iterable<BaseModule>;
  /** Names or tails of paths, one pattern of whole paths, or `"all-linear"`. */
  readonly targetModules: readonly string[] | string;
  /** Rank; 8 if absent. */
  readonly r?: number;
  /** Alpha; 8 if absent. */
  readonly loraAlpha?: number;
  /** Whether s = alpha / √rank; false if absent. */
  readonly useRslora?: boolean;
  /** Ranks by pattern of module path. */
  readonly rankPattern?: Readonly<Record<string, number>>;
  /** Alphas by pattern of module path. */
  readonly alphaPattern?: Readonly<Record<string, number>>;
  /** Modules that are not adapted in any case. */
  readonly excludeModules?: readonly string[] | string;
  /** Indices of the only layers that are adapted. */
  readonly layersToTransform?: readonly number[];
  /** Names of the model's list of layers. */
  readonly layersPattern?: readonly string[];
  /** Whether the base stores its weights (in, out). */
  readonly fanInFanOut?: boolean;
  /** Probability of dropout in training; 0 if absent. */
  readonly loraDropout?: number;
  /** `"CAUSAL_LM"` and the like. */
  readonly taskType?: string;
  /** Name of the base model, as a hint for readers. */
  readonly baseModel?: string;
  /** A uniform in ±1/√in, or `"gaussian"`: normal with variance 1/r². B is zero. */
  readonly init?: true | "gaussian";
  /** A whole number that decides A; 0 if absent. */
  readonly seed?: number;
  /** Name of the adapter; "adapter" if absent. */
  readonly name?: string;
}

const FIELDS: readonly (readonly [keyof CreateAdapterOptions, string])[] = [
  ["targetModules", "target_modules"],
  ["r", "r"],
  ["loraAlpha", "lora_alpha"],
  ["useRslora", "use_rslora"],
  ["rankPattern", "rank_pattern"],
  ["alphaPattern", "alpha_pattern"],
  ["excludeModules", "exclude_modules"],
  ["layersToTransform", "layers_to_transform"],
  ["layersPattern", "layers_pattern"],
  ["fanInFanOut", "fan_in_fan_out"],
  ["loraDropout", "lora_dropout"],
  ["taskType", "task_type"],
  ["baseModel", "base_model_name_or_path"],
  ["init", "init_lora_weights"],
];

/**
 * Creates an adapter that changes nothing yet: A random, B zero, in 32-bit floats.
 *
 * The same options give the same bits in every runtime; a module's A depends on seed and path only. (`"gaussian"` uses
 * `Math.log` and `Math.cos`, whose last bit may differ between engines.)
 *
 * @param options The base's layers, the fields of the config, and a seed.
 * @returns The adapter.
 * @throws {MismatchError} If the base has none of the targets.
 * @throws {FormatError} If a field has the wrong type, or a pattern uses a construct outside the subset.
 * @throws {LimitError} If a rank is above 256.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * const modules = [{ name: "layers.0.q_proj", inFeatures: 4, outFeatures: 6 }];
 * const adapter = await createAdapter({ modules, targetModules: ["q_proj"], r: 2, loraAlpha: 4 });
 * assert.deepEqual(adapter.modules.get("layers.0.q_proj")?.scaling, 2);
 * ```
 */
export async function createAdapter(options: CreateAdapterOptions): Promise<Adapter> {
  const { seed = 0, init = true, name = "adapter" } = options;
  if (!Number.isSafeInteger(seed)) {
    throw new RangeError(`Cannot create an adapter with seed ${seed}: expected an integer`);
  }
  const base = new Map([...options.modules].map((module) => [module.name, module]));
  const config = configOf(options, base);
  const scaleOf = scaleReader(config);
  const modules = new Map<string, LoraModule>();
  for (const target of listTargets(config, base.keys()).modules) {
    const { inFeatures, outFeatures } = base.get(target)!;
    const { ranks: [rank = config.r], alpha } = scaleOf(target);
    modules.set(target, {
      name: target,
      kind: "linear",
      rank,
      alpha,
      scaling: scalingOf(config, alpha, rank),
      inFeatures,
      outFeatures,
      dtype: "F32",
      loraA: randomFactor(rank, inFeatures, init, new RandomStream(seed, target)),
      loraB: { dtype: "F32", shape: [outFeatures, rank], bytes: new Uint8Array(4 * outFeatures * rank) },
    });
  }
  const weights = encodeWeights(modules.values());
  const { sha256, id } = await identify(weights, config);
  const trainingState = new Map<string, StoredTensor>();
  return new Adapter({ name, config, modules, trainingState, sha256, id, bytes: weights.length, report: [] });
}

/** Makes the config as PEFT would save it: all keys, and `"all-linear"` as the names that it means. */
function configOf(options: CreateAdapterOptions, base: ReadonlyMap<string, BaseModule>): LoraConfig {
  const raw = new Map(CONFIG_DEFAULTS);
  for (const [option, field] of FIELDS) {
    if (options[option] !== undefined) raw.set(field, asJson(options[option]));
  }
  const config = readLoraConfig(raw);
  const targets = listTargets(config, base.keys()).modules;
  if (targets.length === 0) {
    throw new MismatchError(
      `Cannot create an adapter for target_modules ${
        JSON.stringify(options.targetModules)
      }: none of the ${base.size} ` +
        "modules of the base matches",
      { field: "target_modules", found: [...base.keys()], expected: options.targetModules },
    );
  }
  if (typeof config.targetModules !== "string" || config.targetModules.toLowerCase() !== "all-linear") return config;
  return readLoraConfig(raw.set("target_modules", [...targets]));
}

function asJson(value: unknown): JsonValue {
  if (Array.isArray(value)) return value.map(asJson);
  if (typeof value === "object" && value !== null) {
    return new Map(Object.entries(value).map(([key, item]) => [key, asJson(item)]));
  }
  return value as JsonValue;
}

function randomFactor(rank: number, inFeatures: number, init: true | "gaussian", random: RandomStream): StoredTensor {
  const values = new Float32Array(rank * inFeatures);
  // Kaiming-uniform with slope √5 is uniform in ±1/√in.
  const bound = 1 / Math.sqrt(inFeatures);
  for (let i = 0; i < values.length; i++) {
    values[i] = init === "gaussian" ? random.normal() / rank : bound * (2 * random.uniform() - 1);
  }
  return { dtype: "F32", shape: [rank, inFeatures], bytes: new Uint8Array(values.buffer) };
}
