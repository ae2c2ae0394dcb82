/**
 * Factors of 16 bits as F32, for llama.cpp, which rounds the inputs of a product to the type of the factor: of bf16 that
 * takes all but two digits of the logits. Its own converter writes F32 too.
 *
 * ```text
 * lowrank.dtypes   in the metadata, a text: { tensor: dtype } of those that were widened
 * ```
 *
 * @module
 */

import { type FloatDtype, fromFloat32, isSameTensor, type StoredTensor, toFloat32 } from "../../formats/dtype.ts";
import { parseJson } from "../../formats/json.ts";
import { stringifyJson } from "../../formats/json_writer.ts";
import type { ReportLine } from "../adapter.ts";

/** Key of what {@linkcode narrowReader} reads. */
export const DTYPES_KEY = "lowrank.dtypes";
const NARROW: readonly FloatDtype[] = ["F16", "BF16"];

/** Factors in F32. */
export interface WideFactors {
  /** The factors by name. */
  readonly tensors: ReadonlyMap<string, StoredTensor>;
  /** For the metadata, where any was widened. */
  readonly dtypes: string | null;
  /** One line if any was. */
  readonly report: readonly ReportLine[];
}

/**
 * Widens factors to F32.
 *
 * @param tensors The factors by name.
 * @param file Name of the file, for the report.
 * @returns The same values.
 */
export function widenFactors(tensors: ReadonlyMap<string, StoredTensor>, file: string): WideFactors {
  const dtypes = new Map([...tensors].flatMap(([name, { dtype }]) => dtype === "F32" ? [] : [[name, dtype] as const]));
  if (dtypes.size === 0) return { tensors, dtypes: null, report: [] };
  const wide = new Map(Array.from(tensors, ([name, tensor]) => [name, widen(tensor)]));
  const what = `${dtypes.size} factors of ${[...new Set(dtypes.values())].join(", ")} are written as F32`;
  const why = "llama.cpp rounds the inputs of a product to the type of the factor; the values are the same";
  return { tensors: wide, dtypes: stringifyJson(dtypes), report: [{ module: file, what, why }] };
}

function widen(tensor: StoredTensor): StoredTensor {
  return fromFloat32(toFloat32(tensor), tensor.shape);
}

/**
 * Takes back what {@linkcode widenFactors} widened, where that loses nothing.
 *
 * @param text What the metadata has under its key.
 * @param file Name of the file, for messages.
 * @returns What gives the factor of a name its type back.
 * @throws {FormatError} If it is a text, but not of JSON.
 */
export function narrowReader(text: unknown, file: string): (name: string, tensor: StoredTensor) => StoredTensor {
  const dtypes = typeof text === "string" ? parseJson(text, { file: `${DTYPES_KEY} of ${file}`, maxDepth: 1 }) : null;
  return (name, tensor) => {
    const dtype = NARROW.find((one) => dtypes instanceof Map && dtypes.get(name) === one);
    if (dtype === undefined || tensor.dtype !== "F32") return tensor;
    const narrow = fromFloat32(toFloat32(tensor), tensor.shape, dtype);
    return isSameTensor(widen(narrow), tensor) ? narrow : tensor;
  };
}
