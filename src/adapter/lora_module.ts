import { LimitError, MismatchError } from "../errors.ts";
import { quote } from "../formats/quote.ts";
import type { LoraModule } from "./adapter.ts";
import type { NamedTensor } from "./full_tensors.ts";
import type { LoraConfig } from "./lora_config.ts";
import { factorOf, measureFactors, type ModuleFactors, readExtras } from "./module_shapes.ts";
import { ownerOf } from "./module_places.ts";
import { MAX_STEPS } from "./pattern.ts";
import { compilePatternMap } from "./target_modules.ts";

/** Rank and alpha of a module by its config. */
export interface ModuleScale {
  /** Ranks that the config allows: one, or more where keys of `rank_pattern` disagree. */
  readonly ranks: readonly number[];
  /** The alpha. */
  readonly alpha: number;
  /** Keys of `rank_pattern`, then of `alpha_pattern`, that match with different values. */
  readonly conflicts: readonly (readonly string[])[];
}

/**
 * Compiles the patterns of a config.
 *
 * @param config The config.
 * @returns Rank and alpha of a module by its path.
 * @throws {FormatError} If a key uses a construct outside the subset of patterns.
 */
export function scaleReader(config: LoraConfig): (module: string) => ModuleScale {
  const work = { steps: MAX_STEPS };
  const rankOf = compilePatternMap(config.rankPattern, config.r, { field: "rank_pattern", work });
  const alphaOf = compilePatternMap(config.alphaPattern, config.loraAlpha, { field: "alpha_pattern", work });
  return (module) => {
    const [rank, alpha] = [rankOf(module), alphaOf(module)];
    const conflicts = [rank.conflict, alpha.conflict].filter((keys) => keys !== undefined);
    return { ranks: rank.candidates, alpha: alpha.value, conflicts };
  };
}

/** s = alpha / rank, or alpha / √rank with rsLoRA. */
export function scalingOf(config: LoraConfig, alpha: number, rank: number): number {
  return config.useRslora ? alpha / Math.sqrt(rank) : alpha / rank;
}

/**
 * Makes the check that turns the tensors of a module into the module.
 *
 * @param config The adapter's config.
 * @param options Name of the file, and the cap on ranks.
 * @returns The check, which throws `FormatError`, `MismatchError`, `LimitError` or `NumericError` by tensor name.
 */
export function moduleReader(
  config: LoraConfig,
  options: { readonly file: string; readonly maxRank: number },
): (factors: ModuleFactors) => LoraModule {
  const scaleOf = scaleReader(config);
  return (factors) => {
    const { name, a, b, place } = factors;
    const { ranks, alpha } = scaleOf(place?.patternPath ?? name);
    const sizes = measureFactors(factors, ranks, options.file);
    const { kind, rank } = sizes;
    checkRank(a, rank, { ...options, ranks });
    const [loraA, loraB] = [factorOf(a, options.file), factorOf(b, options.file)];
    const parameter = kind === "experts" ? place?.parameter ?? null : place?.parameter;
    const { inFeatures, outFeatures, experts } = sizes;
    return {
      name: kind === "linear" && place?.isParameter ? ownerOf(name, place.parameter!) : name,
      kind,
      rank,
      alpha,
      scaling: scalingOf(config, alpha, rank) * (place?.times ?? 1),
      inFeatures,
      outFeatures,
      dtype: loraA.dtype,
      loraA,
      loraB,
      ...readExtras(factors, sizes, { config, file: options.file }),
      ...(experts !== undefined && { experts }),
      ...(parameter !== undefined && (kind === "experts" || !place?.isParameter) && { parameter }),
    };
  };
}

function checkRank(
  a: NamedTensor,
  rank: number,
  { file, maxRank, ranks }: { readonly file: string; readonly maxRank: number; readonly ranks: readonly number[] },
): void {
  if (rank > maxRank) {
    const message = `Cannot load tensor ${quote(a.name)} of rank ${rank}: expected at most ${maxRank}`;
    throw new LimitError(message, { file, tensor: a.name, field: "rank", limit: maxRank, value: rank });
  }
  if (ranks.includes(rank)) return;
  const message = `Cannot load tensor ${quote(a.name)} of rank ${rank}: expected ${ranks[0]}, by the config`;
  throw new MismatchError(message, { file, tensor: a.name, field: "r", found: rank, expected: ranks[0] });
}
