import { FormatError, LimitError } from "../errors.ts";
import { quote } from "../formats/quote.ts";
import type { LoraModule, ReportLine } from "./adapter.ts";
import { CONFIG_DEFAULTS } from "./config_defaults.ts";
import { isFloatTensor, isZeroTensor } from "../formats/float_bits.ts";
import { CONFIG_FILE, type LoraConfig } from "./lora_config.ts";
import { scaleReader, scalingOf } from "./lora_module.ts";
import { IN_PROJECTION, ownerOf } from "./module_places.ts";
import { ownerPath } from "./paths.ts";
import { listTargets } from "./target_modules.ts";
import { type BaseChange, baseFieldOf, isRepeatable } from "./variant_fields.ts";

/** Fields that act in training only. */
const TRAINING_FIELDS = ["velora_config", "monteclora_config"];
const HEAD = /(?:^|\.)(?:lm_head|embed_out)$/;

/** The parts of an adapter that its report is about. */
export interface ReportedParts {
  /** Its modules. */
  readonly modules: ReadonlyMap<string, LoraModule>;
  /** Its full tensors; none if absent. */
  readonly replacements?: ReadonlyMap<string, unknown>;
  /** How training changed the base, if that counts. */
  readonly baseChange?: BaseChange | null;
}

/**
 * Says what is worth knowing about an adapter that loads: unknown keys, config and file that disagree, patterns that
 * overlap, modules that do nothing.
 *
 * @param config Its config.
 * @param parts Its parts.
 * @returns The lines, config first.
 */
export function reportAdapter(config: LoraConfig, parts: ReportedParts): readonly ReportLine[] {
  return [
    ...reportFields(config),
    ...reportBase(config, parts),
    ...reportTargets(config, parts.modules),
    ...reportModules(config, parts.modules),
    ...reportFull(config, parts),
  ];
}

/** Which base an adapter with such an initialisation fits. */
function reportBase({ baseChange, init }: LoraConfig, parts: ReportedParts): ReportLine[] {
  if (baseChange === null) return [];
  const name = baseChange === "kasa" ? "KaSA" : String(init);
  const what = `${baseFieldOf(baseChange)} is ${name}, which changed the base before training`;
  if (!parts.baseChange) return [{ module: CONFIG_FILE, what, why: "the caller says that it is that changed base" }];
  const why = isRepeatable(baseChange)
    ? "models and merges compute that change again from the base they are given"
    : "the file does not hold that change: it needs the changed base (residualBase), or the initial adapter (initial)";
  return [{ module: CONFIG_FILE, what, why }];
}

function reportFull(config: LoraConfig, { modules, replacements = new Map() }: ReportedParts): ReportLine[] {
  const lines: ReportLine[] = [];
  const saved = config.modulesToSave ?? [];
  for (const name of replacements.keys()) {
    const path = ownerPath(name);
    const isBias = /bias$/.test(name) && (config.bias === "all" || (config.bias === "lora_only" && modules.has(path)));
    const isTable = /(?:^|\.)(?:embed_tokens|lm_head|wte|word_embeddings|embed_in|embed_out)$/.test(path);
    const segments = path.split(".");
    if (isBias || isTable || segments.some((_, i) => endsWithAny(segments.slice(0, i + 1).join("."), saved))) continue;
    const why = "it replaces that tensor of the base, as PEFT's loader does";
    lines.push({ module: name, what: "the config names it neither in modules_to_save nor by bias", why });
  }
  return lines;
}

function endsWithAny(path: string, ends: readonly string[]): boolean {
  return ends.some((end) => path.endsWith(end));
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
    const layers = [...modules.values()].filter(({ kind }) => kind !== "experts");
    const paths = new Map(layers.map((module) => [module.name, targetPath(module, modules)]));
    const { modules: targeted, counts } = listTargets(config, new Set(paths.values()));
    const lines: ReportLine[] = [];
    for (const [entry, count] of counts) {
      if (count > 0) continue;
      lines.push({ module: CONFIG_FILE, what: `target_modules entry ${quote(entry)} names no tensor`, why });
    }
    const known = new Set(targeted);
    for (const [module, path] of paths) {
      // PEFT adapts the tied head with the embedding, and then no longer targets it.
      const follows = config.ensureWeightTying && modules.get(module)!.kind === "linear" && HEAD.test(module);
      if (!known.has(path) && !follows) lines.push({ module, what: "the config does not target it", why });
    }
    return lines;
  } catch (error) {
    if (!(error instanceof FormatError || error instanceof LimitError)) throw error;
    return [{ module: CONFIG_FILE, what: `its targets are not checked: ${error.message}`, why }];
  }
}

/** The paths by which `target_modules` may name a module: a whole attention goes by its own path. */
function targetPath({ name, parameter }: LoraModule, modules: ReadonlyMap<string, LoraModule>): string {
  if (parameter) return ownerOf(name, parameter);
  const attention = ownerPath(name);
  return modules.get(`${attention}.${IN_PROJECTION}`)?.parameter === IN_PROJECTION ? attention : name;
}

function reportModules(config: LoraConfig, modules: ReadonlyMap<string, LoraModule>): ReportLine[] {
  const scaleOf = scaleReader(config);
  const lines: ReportLine[] = [];
  for (const [module, { rank, alpha, scaling, loraB }] of modules) {
    if (scaling !== 0 && scaling === 2 * scalingOf(config, alpha, rank)) {
      const why = "PEFT 0.21.2 adds the update of an attention's output projection twice, in training too";
      lines.push({ module, what: `its scaling is ${scaling}, twice that of its rank and alpha`, why });
    }
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
