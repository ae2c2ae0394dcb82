/**
 * The orders of a convolution's weight: files have channels before positions, patches positions before channels.
 *
 * @module
 */

import type { MatrixValues } from "../backend.ts";
import { floatMatrix } from "./factors.ts";

/** (out, in / groups, k…) as (out, k… · in) with zeros between groups. */
export function packKernel(
  values: Float32Array,
  { out, perGroup, groups, positions }: { out: number; perGroup: number; groups: number; positions: number },
): MatrixValues {
  const channels = perGroup * groups;
  const packed = new Float32Array(out * positions * channels);
  for (let o = 0; o < out; o++) {
    const first = Math.floor(o / (out / groups)) * perGroup;
    for (let c = 0; c < perGroup; c++) {
      for (let k = 0; k < positions; k++) {
        packed[(o * positions + k) * channels + first + c] = values[(o * perGroup + c) * positions + k]!;
      }
    }
  }
  return floatMatrix([out, positions * channels], packed);
}

/** (…, rows, columns) as (…, columns, rows). */
export function swapInner(values: Float32Array, [rows, columns]: readonly [number, number]): Float32Array {
  const swapped = new Float32Array(values.length);
  for (let i = 0; i < values.length; i++) {
    const [matrix, row, column] = [Math.floor(i / (rows * columns)), Math.floor(i / columns) % rows, i % columns];
    swapped[(matrix * columns + column) * rows + row] = values[i]!;
  }
  return swapped;
}
