/**
 * One rank for all layers: mlx-lm makes every layer with the rank of its config and takes no other shapes. Zeros that a
 * smaller one is filled up with change nothing, and are cut off again:
 *
 * ```text
 * lowrank.ranks   in the header of the tensors, a text: { path: rank } of the layers that were filled up
 * ```
 *
 * @module
 */

import { bitsPerElement, isSameTensor, type StoredTensor } from "../../formats/dtype.ts";
import { type JsonValue, parseJson } from "../../formats/json.ts";
import { stringifyJson } from "../../formats/json_writer.ts";
import type { ReportLine } from "../adapter.ts";
import { isFloatTensor } from "../../formats/float_bits.ts";
import type { SwitchFactors } from "./switch_experts.ts";
import type { TensorFile } from "./tensor_file.ts";

const RANKS_KEY = "lowrank.ranks";

/** Layers of one rank. */
export interface EvenLayers {
  /** The rank. */
  readonly rank: number;
  /** The factors by path. */
  readonly layers: ReadonlyMap<string, SwitchFactors>;
  /** For the header, so that {@linkcode cutRanks} finds what was filled up. */
  readonly metadata: ReadonlyMap<string, string>;
  /** One line if any was. */
  readonly report: readonly ReportLine[];
}

/**
 * Fills factors up to the largest of their ranks.
 *
 * @param layers Factors as mlx-lm has them, by path: a (in, r) and b (r, out); of experts a (E, r, in) and b (E, out, r).
 * @param file Name of the file, for the report.
 * @returns The same layers, of one rank.
 */
export function evenRanks(layers: ReadonlyMap<string, SwitchFactors>, file: string): EvenLayers {
  const rank = Math.max(...Array.from(layers.values(), ({ a }) => a.shape[1]!));
  const ranks = new Map([...layers].map(([path, { a }]) => [path, a.shape[1]!] as const).filter(([, r]) => r < rank));
  const even = new Map(Array.from(layers, ([path, { a, b }]) => [path, {
    a: resizeAxis(a, 1, rank),
    b: resizeAxis(b, rankAxis(b), rank),
  }]));
  if (ranks.size === 0) return { rank, layers: even, metadata: new Map(), report: [] };
  const what = `${ranks.size} layers of lower rank are filled up with zeros to rank ${rank}`;
  const why = "mlx-lm makes all layers with the one rank of its config";
  return {
    rank,
    layers: even,
    metadata: new Map([[RANKS_KEY, stringifyJson(ranks)]]),
    report: [{ module: file, what, why }],
  };
}

/**
 * Cuts off what {@linkcode evenRanks} filled up, where it still is zero.
 *
 * @param file The file.
 * @returns Its tensors by name.
 */
export function cutRanks({ name, tensors, metadata }: TensorFile): ReadonlyMap<string, StoredTensor> {
  const text = metadata.get(RANKS_KEY);
  const ranks = text === undefined ? null : parseJson(text, { file: `${RANKS_KEY} of ${name}`, maxDepth: 1 });
  const cut = new Map(tensors);
  for (const [path, rank] of ranks instanceof Map ? ranks : []) {
    const [a, b] = [cut.get(`${path}.lora_a`), cut.get(`${path}.lora_b`)];
    const ownA = a && cutAxis(a, 1, rank);
    const ownB = b && cutAxis(b, rankAxis(b), rank);
    if (ownA && ownB) cut.set(`${path}.lora_a`, ownA).set(`${path}.lora_b`, ownB);
  }
  return cut;
}

/** The tensor without the end of an axis; undefined where that is not all zeros. */
function cutAxis(tensor: StoredTensor, axis: number, rank: JsonValue): StoredTensor | undefined {
  const whole = tensor.shape[axis] ?? 0;
  const isLower = typeof rank === "number" && Number.isSafeInteger(rank) && rank >= 1 && rank < whole;
  if (!isLower || !isFloatTensor(tensor)) return undefined;
  const cut = resizeAxis(tensor, axis, rank);
  return isSameTensor(resizeAxis(cut, axis, whole), tensor) ? cut : undefined;
}

/** Which axis of b the rank is. */
function rankAxis({ shape }: StoredTensor): number {
  return shape.length === 3 ? 2 : 0;
}

/** The tensor with zeros at the end of an axis, or without what is there. */
function resizeAxis(tensor: StoredTensor, axis: number, length: number): StoredTensor {
  const { dtype, shape, bytes } = tensor;
  const own = shape[axis];
  if (own === undefined || own === length) return tensor;
  const count = shape.slice(0, axis).reduce((product, size) => product * size, 1);
  const step = shape.slice(axis + 1).reduce((product, size) => product * size, bitsPerElement(dtype) / 8);
  const resized = new Uint8Array(count * length * step);
  for (let i = 0; i < count; i++) {
    resized.set(bytes.subarray(i * own * step, (i * own + Math.min(own, length)) * step), i * length * step);
  }
  return { dtype, shape: shape.with(axis, length), bytes: resized };
}
