/**
 * The shapes that the tensors of a module have by its kind: see {@linkcode LoraKind}.
 *
 * @module
 */

import { FormatError, MismatchError } from "../errors.ts";
import type { FloatDtype, StoredTensor } from "../formats/dtype.ts";
import { isFloat8, widenFloat8 } from "../formats/float8.ts";
import { quote } from "../formats/quote.ts";
import { formatShape } from "../shape.ts";
import type { LoraKind, LoraModule } from "./adapter.ts";
import { isFloatTensor } from "../formats/float_bits.ts";
import { finiteTensor, type NamedTensor } from "./full_tensors.ts";
import type { LoraConfig } from "./lora_config.ts";
import type { ModulePlace } from "./module_places.ts";

/** The tensors of one module, unchecked. */
export interface ModuleFactors {
  /** Name of the module. */
  readonly name: string;
  /** A. */
  readonly a: NamedTensor;
  /** B. */
  readonly b: NamedTensor;
  /** Whether A and B are those of an embedding; false if absent. */
  readonly isEmbedding?: boolean;
  /** What the patterns of the config and the names of parameters say about it; a module by its own name if absent. */
  readonly place?: ModulePlace;
  /** The bias of B. */
  readonly loraBias?: NamedTensor | undefined;
  /** DoRA's m. */
  readonly magnitude?: NamedTensor | undefined;
  /** KaSA's d. */
  readonly diagonal?: NamedTensor | undefined;
}

/** The sizes of a module. */
export type ModuleSizes = Pick<LoraModule, "kind" | "rank" | "inFeatures" | "outFeatures" | "experts">;

/**
 * Tells a module's kind and sizes by the shapes of its factors.
 *
 * @param factors Its tensors.
 * @param ranks The ranks that the config allows: the rows of A are a multiple of one of them where experts share A.
 * @param file Name of the file.
 * @returns The sizes.
 * @throws {FormatError} If a factor has a number of dimensions that none has, or no element.
 * @throws {MismatchError} If A and B disagree.
 */
export function measureFactors(factors: ModuleFactors, ranks: readonly number[], file: string): ModuleSizes {
  const { a, b, isEmbedding, place } = factors;
  const isConv = !isEmbedding && !place?.isParameter && a.shape.length > 2 && a.shape.length < 6;
  for (const factor of [a, b]) {
    const { name, shape } = factor;
    const dimensions = isConv ? a.shape.length : 2;
    if (shape.length === dimensions && shape.every((length) => length >= 1)) continue;
    const expected = isConv ? `${dimensions} dimensions, none empty` : "a matrix with at least one element";
    const message = `Cannot load tensor ${quote(name)} of shape ${formatShape(shape)}: expected ${expected}`;
    throw new FormatError(message, { file, tensor: name, found: shape, expected });
  }
  const [rows, inFeatures] = a.shape as readonly [number, number];
  const [outFeatures, columns] = b.shape as readonly [number, number];
  if (isConv ? rows % columns !== 0 || b.shape.slice(2).some((length) => length !== 1) : rows !== columns) {
    throw mismatch(b, columns, rows, { what: "the rows of lora_A", file });
  }
  const kind: LoraKind = isEmbedding ? "embedding" : isConv ? "conv" : "linear";
  const sizes = { kind, rank: rows, inFeatures, outFeatures };
  if (!place?.isParameter) return sizes;
  const rank = ranks.find((r) => rows % r === 0);
  if (rank === undefined) throw mismatch(a, rows, ranks[0]!, { what: "or a multiple of it", file });
  if (rank === rows && place.parameter === "weight") return sizes;
  return { ...sizes, kind: "experts", rank, experts: rows / rank };
}

function mismatch(
  { name }: NamedTensor,
  found: number,
  expected: number,
  { what, file }: { readonly what: string; readonly file: string },
): MismatchError {
  const message = `Cannot load tensor ${quote(name)} of rank ${found}: expected ${expected}, ${what}`;
  return new MismatchError(message, { file, tensor: name, found, expected });
}

/**
 * Checks the values of a factor. 8-bit floats are widened to F16, which holds all of them.
 *
 * @param tensor The factor.
 * @param file Name of the file.
 * @returns The factor without its name.
 * @throws {FormatError} If its type is not computed with.
 * @throws {NumericError} If a value is not finite.
 */
export function factorOf(tensor: NamedTensor, file: string): StoredTensor {
  const { name, dtype, bytes } = tensor;
  if (isFloat8(dtype)) return finiteTensor({ ...tensor, dtype: "F16", bytes: widenFloat8(bytes, dtype) }, file);
  if (isFloatTensor(tensor)) return finiteTensor(tensor, file);
  const expected: readonly FloatDtype[] = ["F32", "F16", "BF16"];
  const message = `Cannot load tensor ${quote(name)} of dtype ${dtype}: expected F32, F16, BF16, F8_E4M3 or F8_E5M2`;
  throw new FormatError(message, { file, tensor: name, field: "dtype", found: dtype, expected });
}

/**
 * Reads what a module has beside its factors: all that its config asks for, and nothing else.
 *
 * @param factors Its tensors.
 * @param sizes Its sizes.
 * @param options The config, and the name of the file.
 * @returns The parts.
 * @throws {MismatchError} If a tensor is missing, or the config does not ask for it, or its shape is another.
 */
export function readExtras(
  factors: ModuleFactors,
  sizes: ModuleSizes,
  { config, file }: { readonly config: LoraConfig; readonly file: string },
): Pick<LoraModule, "loraBias" | "magnitude" | "diagonal"> {
  const { kind, rank, outFeatures } = sizes;
  const ones = factors.b.shape.slice(2).map(() => 1);
  const parts: readonly Extra[] = [
    {
      part: "loraBias",
      field: "lora_bias",
      wanted: config.loraBias && kind !== "embedding",
      key: "lora_B.bias",
      shape: [outFeatures],
    },
    {
      part: "magnitude",
      field: "use_dora",
      wanted: config.useDora,
      key: "lora_magnitude_vector",
      shape: kind === "conv" ? [1, outFeatures, ...ones] : [outFeatures],
    },
    { part: "diagonal", field: "kasa_config", wanted: config.baseChange === "kasa", key: "lora_diag", shape: [rank] },
  ];
  const read: { -readonly [part in Extra["part"]]?: StoredTensor } = {};
  for (const extra of parts) {
    const tensor = factors[extra.part];
    if (tensor || extra.wanted) read[extra.part] = readExtra(factors, extra, file);
  }
  return read;
}

interface Extra {
  readonly part: "loraBias" | "magnitude" | "diagonal";
  readonly field: string;
  readonly wanted: boolean;
  readonly key: string;
  readonly shape: readonly number[];
}

function readExtra(factors: ModuleFactors, { part, field, wanted, key, shape }: Extra, file: string): StoredTensor {
  const tensor = factors[part];
  const { name } = factors;
  if (!tensor) {
    const message = `Cannot load module ${quote(name)} without ${key}: expected that tensor, as ${
      quote(field)
    } is set in the config; save the adapter again with it, or clear the field`;
    throw new MismatchError(message, { file, tensor: factors.a.name, field, missing: [`${name}.${key}`] });
  }
  if (!wanted) {
    const message = `Cannot load tensor ${quote(tensor.name)}: expected ${
      quote(field)
    } in the config, which has it not`;
    throw new MismatchError(message, { file, tensor: tensor.name, field, unexpected: [tensor.name] });
  }
  if (tensor.shape.join() === shape.join()) return factorOf(tensor, file);
  const found = `Cannot load tensor ${quote(tensor.name)} of shape ${formatShape(tensor.shape)}`;
  throw new MismatchError(`${found}: expected ${formatShape(shape)}`, {
    file,
    tensor: tensor.name,
    found: tensor.shape,
    expected: shape,
  });
}
