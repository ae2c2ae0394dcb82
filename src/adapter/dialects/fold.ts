import { NumericError } from "../../errors.ts";
import { encodeBf16 } from "../../formats/bfloat16.ts";
import { type StoredTensor, toFloat32 } from "../../formats/dtype.ts";
import { encodeF16 } from "../../formats/float16.ts";
import { quote } from "../../formats/quote.ts";
import type { LoraModule, ReportLine } from "../adapter.ts";
import { type FloatDtype, isFloatTensor } from "../factor_values.ts";
import { alphaOf } from "./scale_config.ts";

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
export function foldFactor(tensor: StoredTensor, factor: number, module: string): Folded {
  const values = toFloat32(tensor);
  const products = Float64Array.from(values, (value) => value * factor);
  const rounded = Float32Array.from(products);
  if (!rounded.every(Number.isFinite)) {
    const message = `Cannot fold scaling ${factor} into B of ${quote(module)}: expected products in the range of F32`;
    throw new NumericError(message, { tensor: module, field: "scaling", found: factor });
  }
  const own = encode(tensor, rounded);
  const error = relativeError(products, toFloat32(own));
  if (error === 0 || tensor.dtype === "F32") return { tensor: own, error };
  const wide: StoredTensor = { dtype: "F32", shape: tensor.shape, bytes: new Uint8Array(rounded.buffer) };
  return { tensor: wide, error: relativeError(products, rounded) };
}

/**
 * Divides a factor by what {@linkcode foldFactor} multiplied it with.
 *
 * @param tensor The product.
 * @param options The number, and the type that the factor had.
 * @returns The factor, or undefined where the product is of a type or has values that say nothing of it.
 */
export function unfoldFactor(
  tensor: StoredTensor,
  { factor, dtype }: { readonly factor: number; readonly dtype: FloatDtype },
): StoredTensor | undefined {
  if (!isFloatTensor(tensor) || !Number.isFinite(factor) || factor === 0) return undefined;
  const values = Float32Array.from(toFloat32(tensor), (value) => value / factor);
  return encode({ ...tensor, dtype }, values);
}

function encode({ dtype, shape }: StoredTensor, values: Float32Array): StoredTensor {
  if (dtype === "F16") return { dtype, shape, bytes: encodeF16(values) };
  if (dtype === "BF16") return { dtype, shape, bytes: encodeBf16(values) };
  return { dtype: "F32", shape, bytes: new Uint8Array(values.buffer) };
}

function relativeError(wanted: Float64Array, got: Float32Array): number {
  let [difference, whole] = [0, 0];
  for (let i = 0; i < wanted.length; i++) {
    difference += (wanted[i]! - got[i]!) ** 2;
    whole += wanted[i]! ** 2;
  }
  return difference === 0 ? 0 : Math.sqrt(difference / whole);
}

/** The modules of an adapter after folding. */
export interface FoldedModules {
  /** The modules, with the alpha for which s = alpha / rank. */
  readonly modules: readonly LoraModule[];
  /** How many were folded. */
  readonly count: number;
  /** Types that the folded B had, by module; null if one cannot be restored bit for bit. */
  readonly restorable: ReadonlyMap<string, FloatDtype> | null;
  /** One line if any was folded. */
  readonly report: readonly ReportLine[];
}

/**
 * Folds scales into B where a file cannot say them: ΔW = s B A = s' (s / s' B) A.
 *
 * @param modules The modules.
 * @param scalingOf The scale s' that the file will give a module; its own where nothing is to be folded, never 0.
 * @param reason What the file lacks, for the report.
 * @returns The modules, of which those folded have s'.
 * @throws {NumericError} If a product leaves the range of 32-bit floats.
 */
export function foldScales(
  modules: Iterable<LoraModule>,
  scalingOf: (module: LoraModule) => number,
  reason: { readonly file: string; readonly why: string },
): FoldedModules {
  let [count, widened, error] = [0, 0, 0];
  const restorable = new Map<string, FloatDtype>();
  const written = Array.from(modules, (module) => {
    const scaling = scalingOf(module);
    const { rank } = module;
    if (scaling === module.scaling) return { ...module, alpha: alphaOf(scaling, rank) };
    const factor = module.scaling / scaling;
    const folded = foldFactor(module.loraB, factor, module.name);
    const dtype = module.loraB.dtype as FloatDtype;
    const back = unfoldFactor(folded.tensor, { factor, dtype });
    if (back?.bytes.every((byte, i) => byte === module.loraB.bytes[i])) restorable.set(module.name, dtype);
    count++;
    if (folded.tensor.dtype !== module.loraB.dtype) widened++;
    error = Math.max(error, folded.error);
    return { ...module, scaling, alpha: alphaOf(scaling, rank), loraB: folded.tensor };
  });
  const folded = { modules: written, count, restorable: restorable.size === count ? restorable : null };
  if (count === 0) return { ...folded, report: [] };
  const wide = widened === 0 ? "" : `, ${widened} of them widened to F32`;
  const rounded = error === 0 ? "" : `, rounded by ${error.toExponential(1)} at most`;
  const what = `the scaling is folded into B of ${count} modules${wide}${rounded}`;
  return { ...folded, report: [{ module: reason.file, what, why: reason.why, error }] };
}
