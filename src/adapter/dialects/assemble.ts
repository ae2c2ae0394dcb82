/**
 * An adapter of what a dialect's file holds, with all checks of a PEFT folder.
 *
 * @module
 */

import type { JsonValue } from "../../formats/json.ts";
import { quote } from "../../formats/quote.ts";
import type { Adapter, ReportLine } from "../adapter.ts";
import { type AdapterLimits, DEFAULT_LIMITS } from "../limits.ts";
import { reportAdapter } from "../load_report.ts";
import { CONFIG_FILE, type LoraConfig } from "../lora_config.ts";
import { moduleReader, scaleReader, scalingOf } from "../lora_module.ts";
import { newAdapter } from "../new_adapter.ts";
import { type CarriedConfig, restoreFolded } from "./carried.ts";
import { rankOf, type ScaledPair } from "./factor_pairs.ts";
import { scaleConfig } from "./scale_config.ts";

/** What {@linkcode assembleAdapter} takes. */
export interface AssembleParts {
  /** Name of the adapter. */
  readonly name: string;
  /** Name of the file, for messages. */
  readonly file: string;
  /** Its modules. */
  readonly pairs: readonly ScaledPair[];
  /** The PEFT config that the file carries, where it does: it counts if it agrees with the file. */
  readonly carried?: CarriedConfig | null;
  /** The config that decides ranks and scales, instead of `alpha`. */
  readonly config?: LoraConfig | null;
  /** Keys for the config, where the file carries none. */
  readonly fields?: ReadonlyMap<string, JsonValue>;
  /** Tokens that switch the adapter on, or null; absent where the dialect has no place for them. */
  readonly invocationTokens?: readonly number[] | null;
  /** Full tensors by their name in the base. */
  readonly replacements?: Adapter["replacements"];
  /** New rows by path of the embedding. */
  readonly tokenRows?: Adapter["tokenRows"];
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
  const { name, file, carried, invocationTokens, limits, replacements = new Map(), tokenRows = new Map() } = parts;
  const pairs = carried?.folded.size ? await restoreFolded(parts.pairs, carried) : parts.pairs;
  const report = [...parts.report ?? []];
  const alphas = pairs.map((pair) => ({ name: pair.name, rank: rankOf(pair), alpha: pair.alpha }));
  const variants = new Map<string, JsonValue>([
    ["use_dora", pairs.some(({ magnitude }) => magnitude)],
    ["lora_bias", pairs.some(({ loraBias }) => loraBias)],
  ]);
  let config = parts.config ?? carried?.config ?? null;
  const difference = config && !parts.config && findDifference(config, { alphas, variants, invocationTokens });
  if (difference) {
    const what = `the PEFT config in ${quote(file)} gives it ${difference.what} than the file itself`;
    report.push({ module: difference.at, what, why: "the file counts, as it does for the tools it is made for" });
    config = null;
  }
  config ??= scaleConfig(alphas, new Map([...variants, ...ownFields(pairs, parts)]), limits);
  const read = moduleReader(config, { file, maxRank: limits?.rank ?? DEFAULT_LIMITS.rank });
  const modules = new Map(pairs.map((pair) => [pair.name, read(pair)]));
  report.push(...reportAdapter(config, { modules, replacements }));
  return await newAdapter({ name, config, modules, replacements, tokenRows, report });
}

/** Keys of the config for what is told by the file. */
function ownFields(pairs: readonly ScaledPair[], { invocationTokens, fields = new Map() }: AssembleParts) {
  const own = new Map<string, JsonValue>(fields);
  if (invocationTokens) own.set("alora_invocation_tokens", [...invocationTokens]);
  const [parameters = [], modules = []] = [true, false].map((isParameter) =>
    pairs.filter(({ place }) => (place?.isParameter ?? false) === isParameter).map(({ name }) => name)
  );
  return parameters.length === 0 ? own : own.set("target_modules", modules).set("target_parameters", parameters);
}

interface FileFacts {
  readonly alphas: readonly { readonly name: string; readonly rank: number; readonly alpha: number }[];
  readonly variants: ReadonlyMap<string, JsonValue>;
  readonly invocationTokens: readonly number[] | null | undefined;
}

function findDifference(
  config: LoraConfig,
  { alphas, variants, invocationTokens }: FileFacts,
): { readonly at: string; readonly what: string } | undefined {
  const scaleOf = scaleReader(config);
  const module = alphas.find(({ name, rank, alpha }) => {
    const own = scaleOf(name);
    const scaling = alpha / rank;
    const difference = Math.abs(scalingOf(config, own.alpha, rank) - scaling);
    return !own.ranks.includes(rank) || !(difference <= SCALE_TOLERANCE * Math.abs(scaling));
  });
  if (module) return { at: module.name, what: "another rank or scale" };
  if (invocationTokens !== undefined && invocationTokens?.join() !== config.invocationTokens?.join()) {
    return { at: CONFIG_FILE, what: "other alora_invocation_tokens" };
  }
  // A config that asks for more than the file has is no mistake to pass over: something was lost.
  const variant = [...variants].find(([field, isThere]) => isThere && config.raw.get(field) !== true);
  return variant && { at: CONFIG_FILE, what: `another ${variant[0]}` };
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
