/**
 * What files of other dialects carry for their way back, under keys that the tools they are for do not know: the PEFT
 * config, which modules have their scale in B, and what rounding took from these.
 *
 * ```text
 * scaling_folded_into_lora_B  in the config: { module: { dtype, sha256 } } of B as it was
 * lowrank.rounding.0, .1 …    beside it, a text in parts: { module: base64 }, see rounding.ts; none where division
 *                             gives B again
 * ```
 *
 * Nothing of it changes what a file means. B is restored where it has that digest, and gives the B of the file again, bit
 * for bit; a file that was changed since means what it says.
 *
 * @module
 */

import { decodeBase64, encodeBase64 } from "../../formats/base64.ts";
import type { FloatDtype, StoredTensor } from "../../formats/dtype.ts";
import { type JsonValue, parseJson } from "../../formats/json.ts";
import { stringifyJson } from "../../formats/json_writer.ts";
import { sha256, toHex } from "../../formats/sha256.ts";
import { CONFIG_DEFAULTS } from "../config_defaults.ts";
import { isFloatTensor } from "../../formats/float_bits.ts";
import type { AdapterLimits } from "../limits.ts";
import { type LoraConfig, readLoraConfig } from "../lora_config.ts";
import { scaleReader, scalingOf } from "../lora_module.ts";
import { rankOf, type ScaledPair } from "./factor_pairs.ts";
import { type FoldedModules, foldingFactor, isProduct, unfoldFactor } from "./fold.ts";
import { applyRounding, encodeRounding } from "./rounding.ts";
import { alphaOf } from "./scale_config.ts";

/** A config on its way through another dialect. */
export interface CarriedConfig {
  /** The adapter's config before anything was folded. */
  readonly config: LoraConfig;
  /** What B was, by module, where its scale is in B. */
  readonly folded: ReadonlyMap<string, FoldedMark>;
}

/** What a file says of a B that has a scale in it. */
export interface FoldedMark {
  /** Element type that it had. */
  readonly dtype: FloatDtype;
  /** sha256 of the bytes that it had, in hexadecimal. */
  readonly digest: string;
  /** What rounding took; null for nothing. */
  readonly rounding: Uint8Array | null;
}

/** What {@linkcode readCarried} reads from. */
export interface CarryingFile {
  /** Name of the file. */
  readonly file: string;
  /** Its metadata. */
  readonly metadata: ReadonlyMap<string, unknown>;
  /** Caps; what is absent has its default. */
  readonly limits?: AdapterLimits | undefined;
}

/** Key of the config in metadata. */
export const CONFIG_KEY = "peft_config";
/** Key beside those of PEFT, which ignores it. */
const FOLDED_KEY = "scaling_folded_into_lora_B";
const ROUNDING_KEY = "lowrank.rounding";
/** Headers have caps, here and in other tools. This is enough for all B of a file as large as the default cap. */
const MAX_ROUNDING = 22_000_000;
/** Longest text of a GGUF file that readers take, with room. */
const PART = 8_000_000;

/**
 * Makes the config that a file carries.
 *
 * @param config The config of what is written.
 * @param folded What was folded.
 * @returns Its keys.
 */
export async function carryConfig(config: LoraConfig, { folded }: FoldedModules): Promise<Map<string, JsonValue>> {
  const raw = new Map([...CONFIG_DEFAULTS, ...config.raw]);
  const marks = new Map<string, JsonValue>();
  for (const [module, { loraB: { dtype, bytes } }] of folded) {
    marks.set(module, new Map([["dtype", dtype], ["sha256", toHex(await sha256(bytes))]]));
  }
  return marks.size === 0 ? raw : raw.set(FOLDED_KEY, marks);
}

/**
 * Makes the metadata that a file carries beside the config.
 *
 * @param folded What was folded.
 * @returns A text by key, where rounding took something; none above 22 MB, of more than 64 million elements.
 */
export function carryRoundings({ modules, folded }: FoldedModules): ReadonlyMap<string, string> {
  const texts = new Map<string, JsonValue>();
  for (const { name, loraB: product } of modules) {
    const original = folded.get(name);
    if (!original) continue;
    const { loraB, factor } = original;
    const quotient = unfoldFactor(product, { factor, dtype: loraB.dtype as FloatDtype });
    const rounding = quotient && encodeRounding(loraB, quotient);
    if (rounding) texts.set(name, encodeBase64(rounding));
  }
  const text = stringifyJson(texts);
  if (texts.size === 0 || text.length > MAX_ROUNDING) return new Map();
  const parts = Array.from({ length: Math.ceil(text.length / PART) }, (_, i) => text.slice(i * PART, (i + 1) * PART));
  return new Map(parts.map((part, i) => [`${ROUNDING_KEY}.${i}`, part]));
}

function readRoundings({ file, metadata }: CarryingFile): ReadonlyMap<string, JsonValue> {
  const parts: string[] = [];
  for (let part = metadata.get(`${ROUNDING_KEY}.0`); typeof part === "string";) {
    part = metadata.get(`${ROUNDING_KEY}.${parts.push(part)}`);
  }
  if (parts.length === 0) return new Map();
  const json = parseJson(parts.join(""), { file: `${ROUNDING_KEY} of ${file}`, maxDepth: 1 });
  return json instanceof Map ? json : new Map();
}

/**
 * Makes all that a file carries, as metadata.
 *
 * @param config The config of what is written.
 * @param folded What was folded.
 * @param key Key of the config.
 * @returns The texts by key.
 */
export async function carryTexts(
  config: LoraConfig,
  folded: FoldedModules,
  key: string = CONFIG_KEY,
): Promise<Map<string, string>> {
  const text = stringifyJson(await carryConfig(config, folded), { indent: 2, sortKeys: true });
  return new Map([[key, text], ...carryRoundings(folded)]);
}

/**
 * Reads what a file carries.
 *
 * @param carried The config as JSON or its text; anything else is none.
 * @param from The file.
 * @returns The config, or null.
 * @throws {FormatError} If it is none, or asks for what is not computed.
 */
export function readCarried(carried: unknown, from: CarryingFile): CarriedConfig | null {
  const { file, limits } = from;
  const name = `${CONFIG_KEY} of ${file}`;
  const json = typeof carried === "string"
    ? parseJson(carried, { file: name, maxDepth: 16, keepNumberText: true })
    : carried;
  if (typeof carried !== "string" && !(json instanceof Map)) return null;
  const raw = new Map(json instanceof Map ? json as ReadonlyMap<string, JsonValue> : []);
  const marks = raw.get(FOLDED_KEY);
  raw.delete(FOLDED_KEY);
  const folded = new Map<string, FoldedMark>();
  const roundings = readRoundings(from);
  for (const [module, mark] of marks instanceof Map ? marks : []) {
    const [dtype, digest] = mark instanceof Map ? [mark.get("dtype"), mark.get("sha256")] : [];
    if (typeof dtype !== "string" || !isFloatTensor({ dtype }) || typeof digest !== "string") continue;
    const text = roundings.get(module);
    const rounding = typeof text === "string" ? decodeBase64(text) : null;
    folded.set(module, { dtype: dtype as FloatDtype, digest, rounding });
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
export async function restoreFolded(
  pairs: readonly ScaledPair[],
  { config, folded }: CarriedConfig,
): Promise<readonly ScaledPair[]> {
  const scaleOf = scaleReader(config);
  const restored: ScaledPair[] = [];
  for (const pair of pairs) {
    const mark = folded.get(pair.name);
    const rank = rankOf(pair);
    const scaling = scalingOf(config, scaleOf(pair.name).alpha, rank);
    const b = mark ? await restoreB(pair.b, foldingFactor(scaling, pair.alpha / rank), mark) : pair.b;
    if (!b) return pairs;
    restored.push(mark ? { ...pair, b: { ...b, name: pair.b.name }, alpha: alphaOf(scaling, rank) } : pair);
  }
  return restored;
}

async function restoreB(
  product: StoredTensor,
  factor: number,
  { dtype, digest, rounding }: FoldedMark,
): Promise<StoredTensor | undefined> {
  const quotient = unfoldFactor(product, { factor, dtype });
  const b = quotient && rounding ? applyRounding(quotient, rounding) : quotient;
  return b && isProduct(product, b, factor) && toHex(await sha256(b.bytes)) === digest ? b : undefined;
}
