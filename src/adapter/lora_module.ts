import { FormatError, LimitError, MismatchError, NumericError } from "../errors.ts";
import type { StoredTensor } from "../formats/dtype.ts";
import { quote } from "../formats/quote.ts";
import type { LoraModule } from "./adapter.ts";
import { type FloatDtype, isFiniteTensor, isFloatTensor } from "./factor_values.ts";
import type { LoraConfig } from "./lora_config.ts";
import { MAX_STEPS } from "./pattern.ts";
import { compilePatternMap } from "./target_modules.ts";

/** A factor with its name in the file. */
export interface NamedFactor extends StoredTensor {
  /** Name of the tensor. */
  readonly name: string;
}

/** The two factors of one module, unchecked. */
export interface ModuleFactors {
  /** Path of the module. */
  readonly name: string;
  /** A (rank, in). */
  readonly a: NamedFactor;
  /** B (out, rank). */
  readonly b: NamedFactor;
}

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
 * Makes the check that turns two factors into a module.
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
  return ({ name, a, b }) => {
    const { file } = options;
    const [rank, inFeatures] = matrixShape(a, file);
    const [outFeatures, columns] = matrixShape(b, file);
    if (rank > options.maxRank) {
      const message = `Cannot load tensor ${quote(a.name)} of rank ${rank}: expected at most ${options.maxRank}`;
      throw new LimitError(message, { file, tensor: a.name, field: "rank", limit: options.maxRank, value: rank });
    }
    if (columns !== rank) {
      const message = `Cannot load tensor ${quote(b.name)} of rank ${columns}: expected ${rank}, the rows of lora_A`;
      throw new MismatchError(message, { file, tensor: b.name, found: columns, expected: rank });
    }
    const { ranks, alpha } = scaleOf(name);
    if (!ranks.includes(rank)) {
      const message = `Cannot load tensor ${quote(a.name)} of rank ${rank}: expected ${ranks[0]}, by the config`;
      throw new MismatchError(message, { file, tensor: a.name, field: "r", found: rank, expected: ranks[0] });
    }
    const loraA = finiteFactor(a, file);
    const loraB = finiteFactor(b, file);
    const scaling = scalingOf(config, alpha, rank);
    return { name, kind: "linear", rank, alpha, scaling, inFeatures, outFeatures, dtype: a.dtype, loraA, loraB };
  };
}

function matrixShape({ name, shape }: NamedFactor, file: string): readonly [number, number] {
  const [rows, columns] = shape;
  if (shape.length === 2 && rows! >= 1 && columns! >= 1) return [rows!, columns!];
  const message = `Cannot load tensor ${quote(name)} of shape [${shape.join(", ")}]`;
  throw new FormatError(`${message}: expected a matrix with at least one element`, {
    file,
    tensor: name,
    found: shape,
    expected: "two dimensions",
  });
}

function finiteFactor({ name, dtype, shape, bytes }: NamedFactor, file: string): StoredTensor {
  const tensor = { dtype, shape, bytes };
  if (!isFloatTensor(tensor)) {
    const expected: readonly FloatDtype[] = ["F32", "F16", "BF16"];
    const message = `Cannot load tensor ${quote(name)} of dtype ${dtype}: expected F32, F16 or BF16`;
    throw new FormatError(message, { file, tensor: name, field: "dtype", found: dtype, expected });
  }
  if (isFiniteTensor(tensor)) return tensor;
  const message = `Cannot load tensor ${quote(name)} with NaN or infinity: expected finite values`;
  throw new NumericError(message, { file, tensor: name });
}
