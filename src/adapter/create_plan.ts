import { FormatError, MismatchError } from "../errors.ts";
import type { JsonValue } from "../formats/json.ts";
import { quote } from "../formats/quote.ts";
import { CONFIG_DEFAULTS } from "./config_defaults.ts";
import type { BaseModule, CreateAdapterOptions } from "./create_options.ts";
import type { NewModule } from "./create_module.ts";
import { exactKeys } from "./exact_keys.ts";
import { type LoraConfig, readLoraConfig } from "./lora_config.ts";
import { nearestName } from "./match.ts";
import { registeredFirst } from "./module_places.ts";
import { lastName } from "./paths.ts";
import { compilePatternKey, MAX_STEPS } from "./pattern.ts";
import { compilePatternMap, listTargets } from "./target_modules.ts";

const FIELDS: readonly (readonly [keyof CreateAdapterOptions, string])[] = [
  ["targetModules", "target_modules"],
  ["targetParameters", "target_parameters"],
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
  ["useDora", "use_dora"],
  ["loraBias", "lora_bias"],
];

/** The heads that PEFT trains and saves in full, whatever else a config of that task says. */
export const SAVED_HEADS: ReadonlyMap<string, readonly string[]> = new Map([
  ["SEQ_CLS", ["classifier", "score"]],
  ["TOKEN_CLS", ["classifier", "score"]],
  ["QUESTION_ANS", ["qa_outputs"]],
]);

/** The options by the fields of PEFT's config that they are. */
export const OPTION_NAMES: ReadonlyMap<string, string> = new Map(FIELDS.map(([option, field]) => [field, option]));

/** What a new adapter will be. */
export interface AdapterPlan {
  /** Its config. */
  readonly config: LoraConfig;
  /** The layers that it adapts. */
  readonly targets: readonly BaseModule[];
  /** Entries of `targetModules` by which none is adapted. */
  readonly idle: readonly string[];
}

/**
 * Makes the config as PEFT would save it, all keys and `"all-linear"` as the names that it means, and finds its targets.
 *
 * @param options What is asked for.
 * @param base The layers of the base by name.
 * @returns The plan.
 * @throws {FormatError} If an option has a value that its field cannot have.
 * @throws {MismatchError} If the base has none of the targets.
 */
export function planAdapter(options: CreateAdapterOptions, base: ReadonlyMap<string, BaseModule>): AdapterPlan {
  const raw = new Map(CONFIG_DEFAULTS);
  for (const [option, field] of FIELDS) {
    if (options[option] !== undefined) raw.set(field, asJson(options[option]));
  }
  const heads = SAVED_HEADS.get(options.taskType ?? "");
  if (heads) raw.set("modules_to_save", [...heads]);
  if (options.targetModules === undefined && options.targetParameters !== undefined) raw.set("target_modules", []);
  if (options.init === "loftq") {
    const { loftqBits = 4, loftqIterations = 1 } = options;
    raw.set("loftq_config", asJson({ loftq_bits: loftqBits, loftq_iter: loftqIterations }));
  }
  const config = readLoraConfig(raw, { optionNames: OPTION_NAMES });
  if (config.targetModules === null) {
    const message = 'Cannot create an adapter without targetModules: expected names, a pattern or "all-linear"';
    throw new FormatError(message, { field: "targetModules", found: null });
  }
  const all = isAllLinear(config);
  const layers = [...base.values()].filter(({ kind = "linear" }) => all ? kind === "linear" : kind !== "experts");
  const { modules, counts } = listTargets(config, layers.map(({ name }) => name));
  const targets = modules.map((name) => base.get(name)!);
  if (targets.length === 0 && !isEmpty(config.targetModules)) {
    throw noTarget("targetModules", options.targetModules, base);
  }
  const whole = [...targets, ...expertTargets(config, base)];
  if (whole.length === 0) throw noTarget("targetModules", options.targetModules, base);
  if (all) raw.set("target_modules", targets.map(({ name }) => name));
  const names = whole.map(({ name }) => name);
  raw.set("rank_pattern", settlePatterns(config.rankPattern, names, { field: "rank_pattern", fallback: config.r }));
  const alphas = { field: "alpha_pattern", fallback: config.loraAlpha };
  raw.set("alpha_pattern", settlePatterns(config.alphaPattern, names, alphas));
  const idle = [...counts].flatMap(([entry, count]) => count === 0 && !all ? [entry] : []);
  return { config: readLoraConfig(raw, { optionNames: OPTION_NAMES }), targets: whole, idle };
}

/**
 * The first key that matches counts, in the order given; in a file, where they are sorted, that may be another one. Then
 * every layer has a key of its own.
 */
function settlePatterns(
  patterns: ReadonlyMap<string, number>,
  names: readonly string[],
  { field, fallback }: { readonly field: string; readonly fallback: number },
): Map<string, JsonValue> {
  const options = { field, work: { steps: MAX_STEPS } };
  const tests = [...patterns].map(([key, value]) => ({ value, test: compilePatternKey(key, options) }));
  const values = new Map(names.map((name) => [name, tests.find(({ test }) => test(name))?.value ?? fallback]));
  const stored = compilePatternMap(patterns, fallback, options);
  if (names.every((name) => stored(name).value === values.get(name))) return new Map(patterns);
  const keyOf = exactKeys(names);
  return new Map([...values].filter(([, value]) => value !== fallback).map(([name, value]) => [keyOf(name), value]));
}

function isAllLinear({ targetModules }: LoraConfig): boolean {
  return typeof targetModules === "string" && targetModules.toLowerCase() === "all-linear";
}

function isEmpty(targets: LoraConfig["targetModules"]): boolean {
  return Array.isArray(targets) && targets.length === 0;
}

function expertTargets(config: LoraConfig, base: ReadonlyMap<string, BaseModule>): readonly BaseModule[] {
  const entries = config.targetParameters ?? [];
  const found = [...base.values()].filter(({ name, kind }) => {
    return kind === "experts" && entries.some((entry) => `.${name}`.endsWith(`.${entry}`));
  });
  if (entries.length > 0 && found.length === 0) throw noTarget("targetParameters", entries, base);
  return registeredFirst(found);
}

function noTarget(field: string, expected: unknown, base: ReadonlyMap<string, BaseModule>): MismatchError {
  const kind = field === "targetParameters" ? "experts" : "modules";
  const [first] = Array.isArray(expected) ? expected : [];
  return new MismatchError(
    `Cannot create an adapter for ${field} ${JSON.stringify(expected)}: none of the ${base.size} modules of the base ` +
      `matches, expected names of its ${kind}${typeof first === "string" ? hintOf(first, base) : ""}`,
    { field, found: [...base.keys()], expected },
  );
}

/** What may have been meant, as far as a slip of the pen goes: a tied head, which is no layer, is like none of them. */
function hintOf(target: string, base: ReadonlyMap<string, BaseModule>): string {
  const nearest = nearestName(target, new Set([...base.keys()].map(lastName)), 2);
  const isExperts = [...base.values()].some(({ name, kind }) => kind === "experts" && lastName(name) === target);
  if (isExperts) return "; targetParameters names its experts";
  return nearest === undefined || nearest === target ? "" : `; the nearest is ${quote(nearest)}`;
}

/**
 * Checks what a caller says of a layer.
 *
 * @param module The layer.
 * @returns Its kind and sizes.
 * @throws {RangeError} If a size is no natural number, or one that its kind needs is missing.
 */
export function sizesOf(module: BaseModule): Omit<NewModule, "rank" | "alpha" | "scaling"> {
  const { name, kind = "linear", inFeatures, outFeatures, kernel = [], groups = 1, experts = 1, parameter } = module;
  const refuse = (expected: string) =>
    new RangeError(`Cannot create an adapter for ${quote(name)}: expected ${expected}`);
  const numbers = { inFeatures, outFeatures, kernel: [...kernel], groups, experts };
  for (const [field, value] of Object.entries(numbers)) {
    const isNatural = [value].flat().every((number) => Number.isSafeInteger(number) && number >= 1);
    if (!isNatural) throw refuse(`${field} in whole numbers from 1, found ${JSON.stringify(value)}`);
  }
  if (kind === "linear" || kind === "embedding") return { name, kind, inFeatures, outFeatures };
  if (kind === "experts") {
    const ends = parameter && name.endsWith(`.${parameter}`);
    if (module.experts === undefined || !ends) throw refuse("experts, and the parameter with which its name ends");
    return { name, kind, inFeatures, outFeatures, experts, parameter };
  }
  const fits = kernel.length >= 1 && kernel.length <= 3 && inFeatures % groups === 0 && outFeatures % groups === 0;
  if (kind !== "conv") throw refuse(`the kind linear, embedding, conv or experts, found ${JSON.stringify(kind)}`);
  const sizes = `found kernel ${JSON.stringify(kernel)} and groups ${groups}`;
  if (!fits) throw refuse(`a kernel of 1 to 3 lengths, and groups that divide its channels, ${sizes}`);
  return { name, kind, inFeatures, outFeatures, kernel, groups };
}

function asJson(value: unknown): JsonValue {
  if (Array.isArray(value)) return value.map(asJson);
  if (typeof value === "object" && value !== null) {
    return new Map(Object.entries(value).map(([key, item]) => [key, asJson(item)]));
  }
  const isJson = value === null || ["number", "string", "boolean"].includes(typeof value);
  return isJson ? value as JsonValue : value === undefined ? null : String(value);
}
