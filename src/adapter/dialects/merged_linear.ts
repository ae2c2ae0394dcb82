/**
 * loralib's `MergedLinear`: one weight of several slices, as q, k and v, of which some are adapted. A (r n, in),
 * B (n out / slices, r), ΔW of the e-th enabled slice = s B_e A_e.
 *
 * @module
 */

import { MismatchError } from "../../errors.ts";
import { bitsPerElement, isSameTensor, type StoredTensor } from "../../formats/dtype.ts";
import { quote } from "../../formats/quote.ts";
import { valueOf } from "./conv_kernel.ts";

/** The slices of one layer. */
export interface MergedLayer {
  /** Which slices are adapted. */
  readonly slices: readonly boolean[];
  /** How many: n. */
  readonly enabled: number;
}

/** A layer as it stands in the file. */
export interface MergedFactors {
  /** Path of the layer. */
  readonly path: string;
  /** Its `lora_A`. */
  readonly a: StoredTensor;
  /** Its `lora_B`. */
  readonly b: StoredTensor;
  /** Name of the file. */
  readonly file: string;
}

/**
 * Tells whether a layer is merged, and how.
 *
 * @param factors The layer.
 * @param merged `enable_lora` by path or tail of path.
 * @returns Its slices, or null for a plain layer.
 * @throws {MismatchError} If the shapes are those of a merged layer whose slices are not given, or do not fit them.
 */
export function mergedLayer(
  { path, a, b, file }: MergedFactors,
  merged: Readonly<Record<string, readonly boolean[]>>,
): MergedLayer | null {
  const slices = slicesOf(path, merged);
  const [rows = 0, rank = 0] = [a.shape[0], b.shape[1]];
  const ratio = rank === 0 ? 0 : rows / rank;
  const isMatrix = a.shape.length === 2 && b.shape.length === 2;
  if (slices === undefined && !(isMatrix && Number.isInteger(ratio) && ratio > 1)) return null;
  const enabled = slices?.filter(Boolean).length ?? 0;
  if (slices && isMatrix && enabled >= 1 && enabled === ratio && b.shape[0]! % enabled === 0) {
    return { slices, enabled };
  }
  const tensor = `${path}.lora_B`;
  const shapes = `[${a.shape.join(", ")}] and [${b.shape.join(", ")}]`;
  const found = slices ? `${enabled} enabled slices` : `${ratio} slices, of which the file does not tell the places`;
  const message = `Cannot place tensor ${quote(tensor)} of ${quote(file)}, factors of shapes ${shapes} and ${found}`;
  throw new MismatchError(`${message}: expected merged with the enable_lora of this MergedLinear`, {
    code: "merged-linear",
    file,
    tensor,
    field: "merged",
    found: slices,
    expected: `${ratio} enabled slices`,
  });
}

/**
 * Finds the slices of a layer.
 *
 * @param path Path of the layer.
 * @param merged `enable_lora` by path or tail of path.
 * @returns Its slices, or undefined for a plain layer.
 */
export function slicesOf(
  path: string,
  merged: Readonly<Record<string, readonly boolean[]>>,
): readonly boolean[] | undefined {
  return valueOf(path, merged);
}

/**
 * The way back of {@linkcode spreadSlices}.
 *
 * @param b B of a plain module.
 * @param layer The slices.
 * @param module Its path, for messages.
 * @returns B of the file.
 * @throws {MismatchError} If B has anything outside the blocks of the enabled slices.
 */
export function gatherSlices(b: StoredTensor, { slices, enabled }: MergedLayer, module: string): StoredTensor {
  const [rows = 0, rank = 0] = b.shape;
  const [width, own] = [rows / slices.length, rank / enabled];
  const shape = [width * enabled, own];
  const run = own * bitsPerElement(b.dtype) / 8;
  const gathered = new Uint8Array(Number.isInteger(width) && Number.isInteger(own) ? shape[0]! * run : 0);
  let block = 0;
  for (const [slice, isEnabled] of slices.entries()) {
    if (!isEnabled) continue;
    for (let row = 0; row < width; row++) {
      const from = ((slice * width + row) * enabled + block) * run;
      gathered.set(b.bytes.subarray(from, from + run).subarray(0, gathered.length), (block * width + row) * run);
    }
    block++;
  }
  const small = { dtype: b.dtype, shape, bytes: gathered };
  if (gathered.length > 0 && isSameTensor(spreadSlices(small, { slices, enabled }), b)) return small;
  const message = `Cannot write module ${quote(module)} as a MergedLinear of ${enabled} enabled slices`;
  const expected = "B of blocks on the diagonal of these slices, and zeros elsewhere";
  throw new MismatchError(`${message}: expected ${expected}`, {
    code: "merged-linear",
    tensor: module,
    field: "merged",
  });
}

/**
 * Spreads B over all slices: (n w, r) becomes (slices w, r n) with block e in the rows of its slice and columns e r…
 *
 * @param b B of the file.
 * @param layer The slices.
 * @returns B of a plain module.
 */
export function spreadSlices({ dtype, shape, bytes }: StoredTensor, { slices, enabled }: MergedLayer): StoredTensor {
  const [rows = 0, rank = 0] = shape;
  const width = rows / enabled;
  const run = rank * bitsPerElement(dtype) / 8;
  const spread = new Uint8Array(slices.length * width * enabled * run);
  let block = 0;
  for (const [slice, isEnabled] of slices.entries()) {
    if (!isEnabled) continue;
    for (let row = 0; row < width; row++) {
      const from = (block * width + row) * run;
      spread.set(bytes.subarray(from, from + run), ((slice * width + row) * enabled + block) * run);
    }
    block++;
  }
  return { dtype, shape: [slices.length * width, rank * enabled], bytes: spread };
}
