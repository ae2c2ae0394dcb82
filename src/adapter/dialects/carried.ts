/**
 * The PEFT config that files of other dialects carry for their way back, and what it says of scales that are in B.
 *
 * @module
 */

import type { StoredTensor } from "../../formats/dtype.ts";
import { type JsonValue, parseJson } from "../../formats/json.ts";
import { stringifyJson } from "../../formats/json_writer.ts";
import { CONFIG_DEFAULTS } from "../config_defaults.ts";
import { type FloatDtype, isFloatTensor } from "../factor_values.ts";
import type { AdapterLimits } from "../limits.ts";
import { type LoraConfig, readLoraConfig } from "../lora_config.ts";
import { scaleReader, scalingOf } from "../lora_module.ts";
import type { ScaledPair } from "./factor_pairs.ts";
import { type FoldedModules, foldFactor, unfoldFactor } from "./fold.ts";
import { alphaOf, scaleConfig } from "./scale_config.ts";

/** A config on its way through another dialect. */
export interface CarriedConfig {
  /** The adapter's config before anything was folded. */
  readonly config: LoraConfig;
  /** Element type that B had, by module, where its scale is in B. */
  readonly folded: ReadonlyMap<string, FloatDtype>;
}

/** Key beside those of PEFT, which ignores it. */
const FOLDED_KEY = "scaling_folded_into_lora_B";

/**
 * Makes what a file carries: the config as it was if folding can be undone, else one with the scales of the file.
 *
 * @param config The config of what is written.
 * @param folded What was folded.
 * @returns The keys of the config.
 */
export function carryConfig(config: LoraConfig, { modules, restorable }: FoldedModules): Map<string, JsonValue> {
  const raw = new Map([...CONFIG_DEFAULTS, ...restorable ? config.raw : scaleConfig(modules, config.raw).raw]);
  return restorable?.size ? raw.set(FOLDED_KEY, new Map(restorable)) : raw;
}

/**
 * Writes what a file carries as text.
 *
 * @param config The config of what is written.
 * @param folded What was folded.
 * @returns JSON.
 */
export function carryText(config: LoraConfig, folded: FoldedModules): string {
  return stringifyJson(carryConfig(config, folded), { indent: 2, sortKeys: true });
}

/**
 * Reads what a file carries.
 *
 * @param carried The JSON or its text; anything else is none.
 * @param file Name of the file.
 * @param limits Caps.
 * @returns The config, or null.
 * @throws {FormatError} If it is none, or asks for what is not computed.
 */
export function readCarried(carried: unknown, file: string, limits?: AdapterLimits): CarriedConfig | null {
  const name = `peft_config of ${file}`;
  const json = typeof carried === "string"
    ? parseJson(carried, { file: name, maxDepth: 16, keepNumberText: true })
    : carried;
  if (typeof carried !== "string" && !(json instanceof Map)) return null;
  const raw = new Map(json instanceof Map ? json as ReadonlyMap<string, JsonValue> : []);
  const marks = raw.get(FOLDED_KEY);
  raw.delete(FOLDED_KEY);
  const folded = new Map<string, FloatDtype>();
  for (const [module, dtype] of marks instanceof Map ? marks : []) {
    if (typeof dtype === "string" && isFloatTensor({ dtype })) folded.set(module, dtype as FloatDtype);
  }
  return { config: readLoraConfig(raw, { file: name, ...(limits && { limits }) }), folded };
}

/**
 * Takes scales out of B again, where that gives B as it was: a file that was changed since keeps what it says.
 *
 * @param pairs The modules of the file.
 * @param carried What it carries.
 * @returns The modules as they were, or as they are.
 */
export function restoreFolded(pairs: readonly ScaledPair[], { config, folded }: CarriedConfig): readonly ScaledPair[] {
  const scaleOf = scaleReader(config);
  const restored = pairs.map((pair) => {
    const dtype = folded.get(pair.name);
    if (dtype === undefined) return pair;
    const rank = pair.a.shape[0]!;
    const scaling = scalingOf(config, scaleOf(pair.name).alpha, rank);
    const factor = scaling / (pair.alpha / rank);
    const b = unfoldFactor(pair.b, { factor, dtype });
    if (!b || !isSame(foldFactor(b, factor, pair.name).tensor, pair.b)) return null;
    return { ...pair, b: { ...b, name: pair.b.name }, alpha: alphaOf(scaling, rank) };
  });
  return restored.every((pair) => pair !== null) ? restored : pairs;
}

function isSame(x: StoredTensor, y: StoredTensor): boolean {
  return x.dtype === y.dtype && x.bytes.every((byte, i) => byte === y.bytes[i]);
}
