import { NumericError } from "../../errors.ts";
import { type FloatDtype, fromFloat32, isSameTensor, type StoredTensor, toFloat32 } from "../../formats/dtype.ts";
import { quote } from "../../formats/quote.ts";
import type { LoraModule, ReportLine } from "../adapter.ts";
import { isFloatTensor } from "../../formats/float_bits.ts";
import { alphaOf } from "./scale_config.ts";

/** A little more than 2⁻²⁴, so that rounding to F32 and a division in F64 stay below. */
const F32_ROUNDING = 6e-8;
/** Errors of scales from here on are told. */
const F64_ROUNDING = 2 ** -51;

/** A tensor times a number. */
export interface Folded {
  /** The product. */
  readonly tensor: StoredTensor;
  /** ‖stored − product‖ / ‖product‖. */
  readonly error: number;
}

/**
 * Multiplies a factor by a number: in its own type where that is exact (powers of two), else as F32, rounded once.
 *
 * @param tensor The factor.
 * @param factor The number.
 * @param module Name for messages.
 * @returns The product and its error.
 * @throws {NumericError} If a value leaves the range of 32-bit floats.
 */
function foldFactor(tensor: StoredTensor, factor: number, module: string): Folded {
  const values = toFloat32(tensor);
  // from() with a function walks an iterator: 10 times as long.
  const products = new Float64Array(values).map((value) => value * factor);
  const rounded = new Float32Array(products);
  if (!rounded.every(Number.isFinite)) {
    const message = `Cannot fold scaling ${factor} into B of ${quote(module)}: expected products in the range of F32`;
    throw new NumericError(message, { tensor: module, field: "scaling", found: factor });
  }
  const own = encode(tensor, rounded);
  const error = relativeError(products, toFloat32(own));
  if (error === 0 || tensor.dtype === "F32") return { tensor: own, error };
  return { tensor: fromFloat32(rounded, tensor.shape), error: relativeError(products, rounded) };
}

/**
 * Divides a factor by what {@linkcode foldFactor} multiplied it with.
 *
 * @param tensor The product.
 * @param options The number, and the type that the factor had.
 * @returns The factor, but for what rounding took; undefined where the product is of a type that says nothing of it.
 */
export function unfoldFactor(
  tensor: StoredTensor,
  { factor, dtype }: { readonly factor: number; readonly dtype: FloatDtype },
): StoredTensor | undefined {
  if (!isFloatTensor(tensor) || !Number.isFinite(factor)) return undefined;
  const quotients = toFloat32(tensor).map((value) => factor === 0 ? value : value / factor);
  return encode({ ...tensor, dtype }, quotients);
}

/**
 * Tells whether a tensor is what {@linkcode foldFactor} makes of a factor.
 *
 * @param product The tensor.
 * @param tensor The factor.
 * @param factor The number.
 * @returns True if every bit is the same.
 */
export function isProduct(product: StoredTensor, tensor: StoredTensor, factor: number): boolean {
  return isSameTensor(encode(product, toFloat32(tensor).map((value) => value * factor)), product);
}

/**
 * Finds what goes into B where a file gives a module another scale than it has.
 *
 * @param scaling The module's scale.
 * @param fileScaling That of the file, not 0.
 * @returns Their ratio: the power of two itself where it is one but for the rounding of scales to 32 bits.
 */
export function foldingFactor(scaling: number, fileScaling: number): number {
  const ratio = scaling / fileScaling;
  const power = nearestPower(ratio);
  return Math.abs(ratio - power) <= F32_ROUNDING * Math.abs(power) ? power : ratio;
}

/** Values in the shape of a tensor, and in its type if that is one of floats. */
function encode(like: StoredTensor, values: Float32Array): StoredTensor {
  return fromFloat32(values, like.shape, isFloatTensor(like) ? like.dtype : "F32");
}

function relativeError(wanted: Float64Array, got: Float32Array): number {
  let [difference, whole] = [0, 0];
  for (let i = 0; i < wanted.length; i++) {
    difference += (wanted[i]! - got[i]!) ** 2;
    whole += wanted[i]! ** 2;
  }
  return difference === 0 ? 0 : Math.sqrt(difference / whole);
}

function nearestPower(number: number): number {
  return Math.sign(number) * 2 ** Math.round(Math.log2(Math.abs(number)));
}

/**
 * Counts the modules of which nothing is rounded but the scale.
 *
 * @param modules The modules.
 * @param scalingOf The scale that a file would give a module, not 0.
 * @returns How many need a power of two in B, or nothing.
 */
export function countExact(modules: readonly LoraModule[], scalingOf: (module: LoraModule) => number): number {
  const factors = modules.map((module) => foldingFactor(module.scaling, scalingOf(module)));
  return factors.filter((factor) => factor === nearestPower(factor)).length;
}

/** What was folded of a module. */
export interface FoldedFactor {
  /** B before. */
  readonly loraB: StoredTensor;
  /** What it was multiplied with. */
  readonly factor: number;
}

/** The modules of an adapter after folding. */
export interface FoldedModules {
  /** The modules, with the scale of the file, and the alpha for which it is alpha / rank. */
  readonly modules: readonly LoraModule[];
  /** What was folded, by module. */
  readonly folded: ReadonlyMap<string, FoldedFactor>;
  /** One line if any was folded, and one if scales were rounded. */
  readonly report: readonly ReportLine[];
}

/**
 * Folds scales into B where a file cannot say them: ΔW = s B A = s' (s / s' B) A. Powers of two are exact.
 *
 * @param modules The modules.
 * @param scalingOf The scale s' that the file will give a module, never 0: the very number that its reader has.
 * @param reason What the file lacks, for the report.
 * @returns The modules.
 * @throws {NumericError} If a product leaves the range of 32-bit floats.
 */
export function foldScales(
  modules: Iterable<LoraModule>,
  scalingOf: (module: LoraModule) => number,
  reason: { readonly file: string; readonly why: string },
): FoldedModules {
  const folded = new Map<string, FoldedFactor>();
  let [widened, error] = [0, 0];
  const roundings: number[] = [];
  const written = Array.from(modules, (module) => {
    const { name, rank, loraB } = module;
    const scaling = scalingOf(module);
    const alpha = alphaOf(scaling, rank);
    const factor = foldingFactor(module.scaling, scaling);
    const rounding = factor === 0 ? 0 : Math.abs(scaling * factor / module.scaling - 1);
    if (rounding > F64_ROUNDING) roundings.push(rounding);
    if (factor === 1) return { ...module, scaling, alpha };
    const product = foldFactor(loraB, factor, name);
    folded.set(name, { loraB, factor });
    if (product.tensor.dtype !== loraB.dtype) widened++;
    error = Math.max(error, product.error);
    return { ...module, scaling, alpha, loraB: product.tensor };
  });
  const report = [...reportFolded({ count: folded.size, widened, error }, reason), ...reportRounded(roundings, reason)];
  return { modules: written, folded, report };
}

function reportFolded(
  { count, widened, error }: { readonly count: number; readonly widened: number; readonly error: number },
  { file, why }: { readonly file: string; readonly why: string },
): readonly ReportLine[] {
  if (count === 0) return [];
  const wide = widened === 0 ? "" : `, ${widened} of them widened to F32`;
  const rounded = error === 0 ? "" : `, rounded by ${error.toExponential(1)} at most`;
  return [{ module: file, what: `the scaling is folded into B of ${count} modules${wide}${rounded}`, why, error }];
}

function reportRounded(
  roundings: readonly number[],
  { file, why }: { readonly file: string; readonly why: string },
): readonly ReportLine[] {
  if (roundings.length === 0) return [];
  const what = `the scaling of ${roundings.length} modules is rounded to 32 bits`;
  return [{ module: file, what, why, error: Math.max(...roundings) }];
}
