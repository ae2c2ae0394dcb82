/**
 * The quantisations that LoftQ begins from, as values: NF4 in blocks of 64 (QLoRA, Dettmers et al. 2023), and 8-bit
 * integers per row.
 *
 * @module
 */

import type { Matrix } from "./linear_algebra.ts";

const BLOCK = 64;
/** The 16 values of NF4: quantiles of the normal distribution, scaled to ±1. */
const NF4: readonly number[] = [
  -1,
  -0.6961928009986877,
  -0.5250730514526367,
  -0.39491748809814453,
  -0.28444138169288635,
  -0.18477343022823334,
  -0.09105003625154495,
  0,
  0.07958029955625534,
  0.16093020141124725,
  0.24611230194568634,
  0.33791524171829224,
  0.44070982933044434,
  0.5626170039176941,
  0.7229568362236023,
  1,
];

/**
 * Rounds a weight to what a quantised base holds.
 *
 * @param weight W (out, in).
 * @param bits 4: NF4 in blocks of 64 along the rows, one after the other; 8: integers with one scale per row.
 * @returns The values that the quantised weight stands for.
 */
export function quantise({ rows, columns, values }: Matrix, bits: 4 | 8): Matrix {
  const quantised = new Float64Array(values.length);
  const block = bits === 4 ? BLOCK : columns;
  for (let start = 0; start < values.length; start += block) {
    const part = values.subarray(start, start + block);
    // Scales are 32-bit floats.
    const largest = Math.fround(part.reduce((most, value) => Math.max(most, Math.abs(value)), 0));
    if (largest === 0) continue;
    part.forEach((value, i) => {
      const share = value / largest;
      quantised[start + i] = Math.fround(largest * (bits === 4 ? nearest(share) : Math.round(127 * share) / 127));
    });
  }
  return { rows, columns, values: quantised };
}

function nearest(share: number): number {
  let best = NF4[0]!;
  for (const value of NF4) {
    if (Math.abs(value - share) < Math.abs(best - share)) best = value;
  }
  return best;
}
