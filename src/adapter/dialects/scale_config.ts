/**
 * The PEFT config that says what a dialect says: rank and alpha of every module.
 *
 * @module
 */

import type { JsonValue } from "../../formats/json.ts";
import { CONFIG_DEFAULTS } from "../config_defaults.ts";
import type { AdapterLimits } from "../limits.ts";
import { type LoraConfig, readLoraConfig } from "../lora_config.ts";

/** Rank and alpha of a module: s = alpha / rank. */
export interface ModuleAlpha {
  /** Path of the module. */
  readonly name: string;
  /** r. */
  readonly rank: number;
  /** The alpha. */
  readonly alpha: number;
}

/**
 * Makes a config without rsLoRA in which the commonest rank and alpha are the defaults, and the others are patterns.
 *
 * @param modules The modules.
 * @param fields Further keys of the config; the modules are its `target_modules` where it has none.
 * @param limits Caps.
 * @returns The config, with all keys of PEFT's.
 */
export function scaleConfig(
  modules: readonly ModuleAlpha[],
  fields: ReadonlyMap<string, JsonValue> = new Map(),
  limits?: AdapterLimits,
): LoraConfig {
  const r = commonest(modules.map(({ rank }) => rank));
  const alpha = commonest(modules.map(({ alpha }) => alpha));
  const names = modules.map(({ name }) => name);
  const keyOf = patternKeys(names);
  const pattern = (values: readonly (readonly [name: string, value: number])[], usual: number) =>
    new Map(values.filter(([, value]) => value !== usual).map(([name, value]) => [keyOf(name), value]));
  const raw = new Map<string, JsonValue>([...CONFIG_DEFAULTS, ["target_modules", names], ...fields]);
  raw.set("r", r).set("lora_alpha", alpha).set("use_rslora", false);
  raw.set("rank_pattern", pattern(modules.map(({ name, rank }) => [name, rank]), r));
  raw.set("alpha_pattern", pattern(modules.map(({ name, alpha }) => [name, alpha]), alpha));
  return readLoraConfig(raw, limits ? { limits } : {});
}

/**
 * Finds the alpha of a scale: alpha / rank is that very number, where there is such an alpha.
 *
 * @param scaling s.
 * @param rank r.
 * @returns The alpha; a round one if it will do.
 */
export function alphaOf(scaling: number, rank: number): number {
  const product = scaling * rank;
  const step = product * 2 ** -52;
  const candidates = [Math.round(product), Math.fround(product), product, product + step, product - step];
  return candidates.find((alpha) => alpha / rank === scaling) ?? product;
}

/**
 * Finds the number that occurs most often.
 *
 * @param numbers At least one.
 * @returns It; the first among equals.
 */
export function commonest(numbers: readonly number[]): number {
  const counts = new Map<number, number>();
  for (const number of numbers) counts.set(number, (counts.get(number) ?? 0) + 1);
  return [...counts].reduce((best, entry) => entry[1] > best[1] ? entry : best)[0];
}

/**
 * Finds the number for a file that has one for all modules: the commonest of those to which most others have a power of
 * two as their ratio, so that few have to be rounded.
 *
 * @param numbers Alphas or scales of the modules.
 * @returns It; 1 if all are 0 or not finite.
 */
export function sharedNumber(numbers: readonly number[]): number {
  const usable = numbers.filter((number) => number !== 0 && Number.isFinite(number));
  if (usable.length === 0) return 1;
  const common = commonest(usable.map(significand));
  return commonest(usable.filter((number) => significand(number) === common));
}

/** |number| without its power of two: from 1 to below 2. */
function significand(number: number): number {
  const size = Math.abs(number);
  const digits = size / 2 ** Math.floor(Math.log2(size));
  return digits < 1 ? digits * 2 : digits >= 2 ? digits / 2 : digits;
}

/** PEFT takes a key as the end of a path, so one that is the end of another module's path is tied to the start. */
function patternKeys(names: readonly string[]): (name: string) => string {
  const ends = new Set<string>();
  for (const name of names) {
    for (let dot = name.indexOf("."); dot >= 0; dot = name.indexOf(".", dot + 1)) ends.add(name.slice(dot + 1));
  }
  return (name) => `${ends.has(name) ? "^" : ""}${name.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&")}`;
}
