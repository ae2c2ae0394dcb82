/**
 * `adapter_config.json` of PEFT: read strictly, kept verbatim.
 *
 * @module
 */

import { FormatError, LimitError, NumericError } from "../errors.ts";
import { JsonNumber, type JsonValue, parseJson } from "../formats/json.ts";
import { quote } from "../formats/quote.ts";
import { ConfigFields } from "./config_fields.ts";
import { type AdapterLimits, completeLimits } from "./limits.ts";
import { type LoraVariants, readVariants, refuseArrow } from "./variant_fields.ts";

/** File name of the config in a PEFT folder. */
export const CONFIG_FILE = "adapter_config.json";
const MAX_DEPTH = 16;

/** How an adapter was made and what it targets: PEFT's LoraConfig, as far as it decides what is computed. */
export interface LoraConfig extends LoraVariants {
  /** Rank of modules that no key of `rankPattern` matches. */
  readonly r: number;
  /** Alpha of modules that no key of `alphaPattern` matches. */
  readonly loraAlpha: number;
  /** Whether s = alpha / √rank instead of alpha / rank. */
  readonly useRslora: boolean;
  /** Ranks by pattern of module path. */
  readonly rankPattern: ReadonlyMap<string, number>;
  /** Alphas by pattern of module path. */
  readonly alphaPattern: ReadonlyMap<string, number>;
  /** Names or tails of paths, one pattern of whole paths, `"all-linear"`, or null for the model type's default. */
  readonly targetModules: readonly string[] | string | null;
  /** Names or tails of paths, or one pattern of whole paths, that are not adapted in any case. */
  readonly excludeModules: readonly string[] | string | null;
  /** Indices of the only layers that are adapted. */
  readonly layersToTransform: readonly number[] | null;
  /** Names of the model's list of layers. */
  readonly layersPattern: readonly string[] | null;
  /** Whether the base stores its weights (in, out). A and B keep their shapes. */
  readonly fanInFanOut: boolean;
  /** Probability of dropout before A, in training. */
  readonly loraDropout: number;
  /** `"CAUSAL_LM"` and the like. */
  readonly taskType: string | null;
  /** Where the base model came from: a hint, never opened. */
  readonly baseModel: string | null;
  /** Every key of the file, verbatim, unknown ones too. */
  readonly raw: ReadonlyMap<string, JsonValue>;
}

/** Options of {@linkcode parseLoraConfig}. */
export interface LoraConfigOptions {
  /** Name of the file, for error messages; `"adapter_config.json"` if absent. */
  readonly file?: string;
  /** Caps; what is absent has its default. */
  readonly limits?: AdapterLimits;
}

/** Options of {@linkcode readLoraConfig}. */
export interface ReadConfigOptions extends LoraConfigOptions {
  /** The options of a caller by the fields that they set, where no file did: errors then speak of them. */
  readonly optionNames?: ReadonlyMap<string, string>;
}

/**
 * Parses `adapter_config.json`. Whatever changes the mathematics is honoured or refused by name.
 *
 * @param text The file.
 * @param options Its name, and caps.
 * @returns The config.
 * @throws {FormatError} If the text is no such config, or asks for what this version does not compute.
 * @throws {LimitError} If a rank or a list is larger than its cap.
 * @throws {NumericError} If an alpha is not finite.
 *
 * @example
 * ```ts
 * import { parseLoraConfig } from "@lowrank/lora";
 * import assert from "node:assert/strict";
 *
 * const config = parseLoraConfig('{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}');
 * assert.deepEqual([config.r, config.loraAlpha, config.targetModules], [4, 8, ["q_proj"]]);
 * ```
 */
export function parseLoraConfig(text: string, options: LoraConfigOptions = {}): LoraConfig {
  const { file = CONFIG_FILE } = options;
  const raw = parseJson(text, { file, maxDepth: MAX_DEPTH, keepNumberText: true });
  if (raw instanceof Map) return readLoraConfig(raw, options);
  throw new FormatError(`Cannot read ${quote(file)}: expected a JSON object`, { file, expected: "object" });
}

/**
 * Reads a config from its parsed keys.
 *
 * @param raw The keys, in file order.
 * @param options Name of the file, or of the options that the keys came from, and caps.
 * @returns The config; it keeps `raw`.
 * @throws {FormatError} If a field has the wrong type or asks for what this version does not compute.
 * @throws {LimitError} If a rank or a list is larger than its cap.
 * @throws {NumericError} If an alpha is not finite.
 */
export function readLoraConfig(raw: ReadonlyMap<string, JsonValue>, options: ReadConfigOptions = {}): LoraConfig {
  const { file = CONFIG_FILE } = options;
  const limits = completeLimits(options.limits);
  const fields = new ConfigFields(raw, file, limits.modules, options.optionNames);
  const kind = fields.string("peft_type");
  if (kind === null) {
    throw fields.refuse("peft_type", '"LORA"; readAdapter() and "lora convert" read the config of mlx-lm');
  }
  if (kind !== "LORA") throw fields.refuse("peft_type", '"LORA"');
  refuseArrow(raw, file);
  const config: LoraConfig = {
    ...readVariants(raw, fields),
    r: rank(fields, "r", raw.get("r") ?? 8, limits.rank),
    loraAlpha: alpha(fields, "lora_alpha", raw.get("lora_alpha") ?? 8),
    useRslora: fields.boolean("use_rslora"),
    rankPattern: fields.map("rank_pattern", (value) => rank(fields, "rank_pattern", value, limits.rank)),
    alphaPattern: fields.map("alpha_pattern", (value) => alpha(fields, "alpha_pattern", value)),
    targetModules: fields.names("target_modules"),
    excludeModules: fields.names("exclude_modules"),
    layersToTransform: fields.indices("layers_to_transform"),
    layersPattern: asList(fields.names("layers_pattern")),
    fanInFanOut: fields.boolean("fan_in_fan_out"),
    loraDropout: fields.probability("lora_dropout"),
    taskType: fields.string("task_type"),
    baseModel: fields.string("base_model_name_or_path"),
    raw,
  };
  checkLayers(config, fields);
  return config;
}

function rank(fields: ConfigFields, field: string, value: JsonValue, limit: number): number {
  const number = value instanceof JsonNumber ? value.value : value;
  if (typeof number === "number" && number > limit) {
    const message = `${fields.cannot(field, String(number), "rank")}: expected at most ${limit}`;
    throw new LimitError(message, { ...fields.place(field), limit, value: number });
  }
  if (typeof value === "number" && Number.isSafeInteger(value) && value >= 1) return value;
  throw fields.refuse(field, "a whole number from 1", value);
}

function alpha(fields: ConfigFields, field: string, value: JsonValue): number {
  const number = value instanceof JsonNumber ? value.value : value;
  if (typeof number !== "number") throw fields.refuse(field, "a number", value);
  if (Number.isFinite(Math.fround(number))) return number;
  const message = `${fields.cannot(field, String(number), "alpha")}: expected a finite 32-bit float`;
  throw new NumericError(message, { ...fields.place(field), found: number });
}

function asList(names: readonly string[] | string | null): readonly string[] | null {
  return typeof names === "string" ? [names] : names;
}

// PEFT refuses both combinations when the config is made.
function checkLayers(config: LoraConfig, fields: ConfigFields): void {
  const hasIndices = config.layersToTransform !== null && config.layersToTransform.length > 0;
  if (hasIndices && typeof config.targetModules === "string") {
    throw fields.refuse("layers_to_transform", "null, where target_modules is a pattern");
  }
  if (!hasIndices && config.layersPattern?.some((name) => name !== "")) {
    throw fields.refuse("layers_pattern", "null, where layers_to_transform names no layer");
  }
}
