/**
 * What loralib's files do not tell of their layers: which are of `MergedLinear` or of `Conv2d`. Files of this package carry
 * it in their metadata.
 *
 * @module
 */

import { FormatError } from "../../errors.ts";
import { type JsonValue, parseJson } from "../../formats/json.ts";
import { quote } from "../../formats/quote.ts";
import type { KernelSizes } from "./conv_kernel.ts";
import type { TensorFile } from "./tensor_file.ts";

/** The layers that are more than linear. */
export interface LoralibLayers {
  /** `enable_lora` by path or tail of path. */
  readonly merged: Readonly<Record<string, readonly boolean[]>>;
  /** `kernel_size` by path or tail of path. */
  readonly kernels: KernelSizes;
}

const LAYERS_KEY = "lowrank.layers";

/**
 * Makes the metadata that a file carries of its layers.
 *
 * @param layers By path.
 * @returns A text by key; none where all layers are linear.
 */
export function carryLayers({ merged, kernels }: LoralibLayers): ReadonlyMap<string, string> {
  if (Object.keys(merged).length + Object.keys(kernels).length === 0) return new Map();
  return new Map([[LAYERS_KEY, JSON.stringify({ enable_lora: merged, kernel_size: kernels })]]);
}

/**
 * Reads what a file carries of its layers.
 *
 * @param file The file.
 * @returns The layers; none where it carries nothing.
 * @throws {FormatError} If it is no text of {@linkcode carryLayers}.
 */
export function carriedLayers({ name, metadata }: TensorFile): LoralibLayers {
  const text = metadata.get(LAYERS_KEY);
  if (text === undefined) return { merged: {}, kernels: {} };
  const json = parseJson(text, { file: `${LAYERS_KEY} of ${name}`, maxDepth: 3 });
  const merged = recordOf(json, "enable_lora", (item) => typeof item === "boolean");
  const kernels = recordOf(json, "kernel_size", (item) => typeof item === "number");
  if (merged && kernels) {
    return { merged: merged as LoralibLayers["merged"], kernels: kernels as LoralibLayers["kernels"] };
  }
  const expected = "enable_lora and kernel_size, lists by path";
  const message = `Cannot read ${quote(LAYERS_KEY)} of ${quote(name)}: expected ${expected}`;
  throw new FormatError(message, { file: name, field: LAYERS_KEY, expected });
}

function recordOf(json: JsonValue, field: string, isItem: (item: JsonValue) => boolean): object | undefined {
  const map = json instanceof Map ? json.get(field) : undefined;
  if (!(map instanceof Map)) return undefined;
  const isRecord = [...map.values()].every((list) => Array.isArray(list) && list.every(isItem));
  return isRecord ? Object.fromEntries(map) : undefined;
}
