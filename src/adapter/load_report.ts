import { FormatError, LimitError } from "../errors.ts";
import { quote } from "../formats/quote.ts";
import type { LoraModule, ReportLine } from "./adapter.ts";
import { CONFIG_DEFAULTS } from "./config_defaults.ts";
import { isFloatTensor, isZeroTensor } from "./factor_values.ts";
import { CONFIG_FILE, type LoraConfig } from "./lora_config.ts";
import { scaleReader } from "./lora_module.ts";
import { listTargets } from "./target_modules.ts";

/** Fields that act in training only. */
const TRAINING_FIELDS = ["velora_config", "monteclora_config"];

/**
 * Says what is worth knowing about an adapter that loads: unknown keys, config and file that disagree, patterns that
 * overlap, modules that do nothing.
 *
 * @param config Its config.
 * @param modules Its modules.
 * @returns The lines, config first.
 */
export function reportAdapter(config: LoraConfig, modules: ReadonlyMap<string, LoraModule>): readonly ReportLine[] {
  return [...reportFields(config), ...reportTargets(config, modules), ...reportModules(config, modules)];
}

function reportFields({ raw }: LoraConfig): ReportLine[] {
  const lines: ReportLine[] = [];
  for (const key of raw.keys()) {
    if (CONFIG_DEFAULTS.has(key)) continue;
    lines.push({
      module: CONFIG_FILE,
      what: `key ${quote(key)} is none of PEFT 0.21.2`,
      why: "it is kept and has no effect",
    });
  }
  for (const field of TRAINING_FIELDS) {
    if ((raw.get(field) ?? null) === null) continue;
    lines.push({ module: CONFIG_FILE, what: `${field} is set`, why: "it changes training only" });
  }
  return lines;
}

function reportTargets(config: LoraConfig, modules: ReadonlyMap<string, LoraModule>): ReportLine[] {
  const why = "the tensors of the file decide what is adapted";
  if (config.targetModules === null) return [];
  try {
    const { modules: targeted, counts } = listTargets(config, modules.keys());
    const lines: ReportLine[] = [];
    for (const [entry, count] of counts) {
      if (count > 0) continue;
      lines.push({ module: CONFIG_FILE, what: `target_modules entry ${quote(entry)} names no tensor`, why });
    }
    const known = new Set(targeted);
    for (const module of modules.keys()) {
      if (!known.has(module)) lines.push({ module, what: "the config does not target it", why });
    }
    return lines;
  } catch (error) {
    if (!(error instanceof FormatError || error instanceof LimitError)) throw error;
    return [{ module: CONFIG_FILE, what: `its targets are not checked: ${error.message}`, why }];
  }
}

function reportModules(config: LoraConfig, modules: ReadonlyMap<string, LoraModule>): ReportLine[] {
  const scaleOf = scaleReader(config);
  const lines: ReportLine[] = [];
  for (const [module, { rank, scaling, loraB }] of modules) {
    for (const keys of scaleOf(module).conflicts) {
      const what = `${keys.map(quote).join(" and ")} match it with different values`;
      const why = `the tensor decides the rank, ${rank}; the first key in sorted order the alpha, scaling ${scaling}`;
      lines.push({ module, what, why });
    }
    if (isFloatTensor(loraB) && isZeroTensor(loraB)) {
      lines.push({ module, what: "B is zero", why: "the adapter adds nothing here" });
    }
  }
  return lines;
}
