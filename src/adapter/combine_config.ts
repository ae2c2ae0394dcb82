import { MismatchError } from "../errors.ts";
import type { JsonValue } from "../formats/json.ts";
import { quote } from "../formats/quote.ts";
import type { Adapter, LoraModule, ReportLine } from "./adapter.ts";
import type { AdapterLimits } from "./limits.ts";
import { CONFIG_FILE, type LoraConfig, readLoraConfig } from "./lora_config.ts";

/**
 * Makes the config of a combination: the first adapter's, with s = 1 for every reader (no rsLoRA, alpha = rank), its
 * init plain, and the ranks of single modules under their full escaped paths.
 *
 * @param adapters The adapters that were combined.
 * @param modules The modules of the result.
 * @param limits Caps of the config's reader.
 * @returns The config.
 * @throws {MismatchError} If the adapters disagree on how the base stores its weights.
 */
export function combinedConfig(
  adapters: readonly [Adapter, ...Adapter[]],
  modules: ReadonlyMap<string, LoraModule>,
  limits: AdapterLimits | undefined,
): LoraConfig {
  const [first, ...others] = adapters;
  const other = others.find(({ config }) => config.fanInFanOut !== first.config.fanInFanOut);
  if (other) {
    const message = `Cannot combine ${quote(first.name)} with ${quote(other.name)} of another fan_in_fan_out: expected`;
    throw new MismatchError(`${message} adapters of one base`, { file: other.name, field: "fan_in_fan_out" });
  }
  const ranks = Array.from(modules.values(), ({ rank }) => rank);
  const r = commonest(ranks);
  const raw = new Map<string, JsonValue>(first.config.raw);
  raw.set("r", r).set("lora_alpha", r).set("use_rslora", false).set("init_lora_weights", true);
  raw.set("rank_pattern", exactPattern(modules, r)).set("alpha_pattern", exactPattern(modules, r));
  raw.set("eva_config", null).set("lora_bias", [...modules.values()].some(({ loraBias }) => loraBias));
  if (others.some((adapter) => !hasSameModules(adapter, first))) {
    raw.set("target_modules", [...modules.keys()]).set("exclude_modules", null);
    raw.set("layers_to_transform", null).set("layers_pattern", null);
  }
  return readLoraConfig(raw, limits ? { limits } : {});
}

/**
 * Says what the first adapter's config and the others do not have in common.
 *
 * @param adapters The adapters that were combined.
 * @returns The lines.
 */
export function reportInputs(adapters: readonly Adapter[]): readonly ReportLine[] {
  const lines: ReportLine[] = [];
  const bases = new Set(adapters.flatMap(({ config }) => config.baseModel ?? []));
  if (bases.size > 1) {
    const what = `the adapters name ${bases.size} base models: ${[...bases].map(quote).join(", ")}`;
    lines.push({ module: CONFIG_FILE, what, why: "sums of updates make sense over one base only" });
  }
  for (const { name, trainingState } of adapters) {
    if (trainingState.size === 0) continue;
    const what = `${trainingState.size} tensors of ${quote(name)} are left out`;
    lines.push({ module: CONFIG_FILE, what, why: "they act in training only" });
  }
  return lines;
}

function hasSameModules({ modules }: Adapter, other: Adapter): boolean {
  return modules.size === other.modules.size && [...modules.keys()].every((name) => other.modules.has(name));
}

function commonest(numbers: readonly number[]): number {
  const counts = new Map<number, number>();
  for (const number of numbers) counts.set(number, (counts.get(number) ?? 0) + 1);
  return [...counts].reduce((best, entry) => entry[1] > best[1] ? entry : best)[0];
}

/** PEFT takes a key as the end of a path, so one that is the end of another module's path is tied to the start. */
function exactPattern(modules: ReadonlyMap<string, LoraModule>, r: number): Map<string, JsonValue> {
  const ends = new Set<string>();
  for (const name of modules.keys()) {
    for (let dot = name.indexOf("."); dot >= 0; dot = name.indexOf(".", dot + 1)) ends.add(name.slice(dot + 1));
  }
  const pattern = new Map<string, JsonValue>();
  for (const [name, { rank }] of modules) {
    if (rank !== r) pattern.set(`${ends.has(name) ? "^" : ""}${name.replace(/[\\^$.*+?()[\]{}|]/g, "\\$&")}`, rank);
  }
  return pattern;
}
