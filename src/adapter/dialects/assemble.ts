/**
 * An adapter of what a dialect's file holds, with all checks of a PEFT folder.
 *
 * @module
 */

import type { JsonValue } from "../../formats/json.ts";
import { quote } from "../../formats/quote.ts";
import { Adapter, type ReportLine } from "../adapter.ts";
import { identify } from "../identity.ts";
import { type AdapterLimits, DEFAULT_LIMITS } from "../limits.ts";
import { reportAdapter } from "../load_report.ts";
import { type LoraConfig, parseLoraConfig } from "../lora_config.ts";
import { moduleReader, scaleReader, scalingOf } from "../lora_module.ts";
import { encodeConfig, encodeWeights } from "../save.ts";
import type { FactorPair } from "./factor_pairs.ts";
import { scaleConfig } from "./scale_config.ts";

/** A pair of factors with its alpha: s = alpha / rank. */
export interface ScaledPair extends FactorPair {
  /** The alpha that the file means. */
  readonly alpha: number;
}

/** What {@linkcode assembleAdapter} takes. */
export interface AssembleParts {
  /** Name of the adapter. */
  readonly name: string;
  /** Name of the file, for messages. */
  readonly file: string;
  /** Its modules. */
  readonly pairs: readonly ScaledPair[];
  /** The PEFT config that the file carries, where it does. */
  readonly config?: LoraConfig | null;
  /** Whether that config decides the scales, instead of `alpha`; false if absent. */
  readonly configDecides?: boolean;
  /** Keys for the config, where the file carries none. */
  readonly fields?: ReadonlyMap<string, JsonValue>;
  /** What reading found. */
  readonly report?: readonly ReportLine[];
  /** Caps; what is absent has its default. */
  readonly limits?: AdapterLimits | undefined;
}

/** Alphas of files are 32-bit floats, so an rsLoRA scale comes back with such an error. */
const SCALE_TOLERANCE = 2 ** -20;

/**
 * Makes an adapter. Its digests are those of the PEFT folder that it would be saved as.
 *
 * A config that the file carries counts only where its ranks and scales are those of the file, which other tools obey.
 *
 * @param parts What was read.
 * @returns The adapter.
 * @throws {FormatError} If a factor has a type that is not computed with.
 * @throws {NumericError} If a factor or an alpha is not finite.
 */
export async function assembleAdapter(parts: AssembleParts): Promise<Adapter> {
  const { name, file, pairs, limits } = parts;
  const report = [...parts.report ?? []];
  const alphas = pairs.map(({ name, a, alpha }) => ({ name, rank: a.shape[0]!, alpha }));
  let config = parts.config ?? null;
  if (config && !parts.configDecides) {
    const differing = findDifference(config, alphas);
    if (differing !== undefined) {
      const what = `the PEFT config in ${quote(file)} gives it another rank or scale than the file itself`;
      report.push({ module: differing, what, why: "the file counts, as it does for the tools it is made for" });
      config = null;
    }
  }
  config ??= scaleConfig(alphas, parts.fields, limits);
  const read = moduleReader(config, { file, maxRank: limits?.rank ?? DEFAULT_LIMITS.rank });
  const modules = new Map(pairs.map((pair) => [pair.name, read(pair)]));
  const weights = encodeWeights(modules.values());
  const { sha256, id } = await identify(weights, config);
  return new Adapter({
    name,
    config,
    modules,
    trainingState: new Map(),
    sha256,
    id,
    bytes: weights.length,
    report: [...report, ...reportAdapter(config, { modules })],
  });
}

function findDifference(
  config: LoraConfig,
  modules: readonly { readonly name: string; readonly rank: number; readonly alpha: number }[],
): string | undefined {
  const scaleOf = scaleReader(config);
  return modules.find(({ name, rank, alpha }) => {
    const own = scaleOf(name);
    const scaling = alpha / rank;
    const difference = Math.abs(scalingOf(config, own.alpha, rank) - scaling);
    return !own.ranks.includes(rank) || !(difference <= SCALE_TOLERANCE * Math.abs(scaling));
  })?.name;
}

/**
 * Reads the PEFT config that a file carries for its way back.
 *
 * @param text The config, or undefined.
 * @param file Name of the file.
 * @param limits Caps.
 * @returns The config, or null.
 * @throws {FormatError} If it is none, or asks for what this version does not compute.
 */
export function carriedConfig(text: unknown, file: string, limits?: AdapterLimits): LoraConfig | null {
  if (typeof text !== "string") return null;
  return parseLoraConfig(text, { file: `peft_config of ${file}`, ...(limits && { limits }) });
}

/**
 * Writes a PEFT config for a file to carry.
 *
 * @param config The config.
 * @returns Its text.
 */
export function carryConfig(config: LoraConfig): string {
  return new TextDecoder().decode(encodeConfig(config));
}

/**
 * Says what a file of another dialect cannot take along.
 *
 * @param adapter The adapter.
 * @returns A line for tensors that act in training only.
 */
export function reportTrainingState(adapter: Adapter): readonly ReportLine[] {
  const { size } = adapter.trainingState;
  if (size === 0) return [];
  return [{ module: adapter.name, what: `${size} tensors are left out`, why: "they act in training only" }];
}
