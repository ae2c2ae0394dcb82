/**
 * Dequantisers of ggml's 256-element super-blocks ("K-quants").
 *
 * @module
 */

import { halvesOf } from "./gguf_halves.ts";

/**
 * Dequantises Q4_K: `d, dmin (f16), 8 × (scale, min) of 6 bits in 12 bytes, q (128 bytes)`; x = d·scale·q − dmin·min.
 *
 * @param blocks Whole blocks of 144 bytes.
 * @param out 256 values for each block.
 */
export function dequantizeQ4K(blocks: Uint8Array, out: Float32Array): void {
  const scales = halvesOf(blocks, 144, 0);
  const mins = halvesOf(blocks, 144, 2);
  for (let block = 0; block < scales.length; block++) {
    const from = block * 144;
    for (let part = 0; part < 8; part++) {
      const d = scales[block]! * scaleOf(blocks, from + 4, part);
      const m = mins[block]! * minOf(blocks, from + 4, part);
      const quants = from + 16 + (part >> 1) * 32;
      const shift = (part & 1) * 4;
      const to = block * 256 + part * 32;
      for (let i = 0; i < 32; i++) out[to + i] = d * (blocks[quants + i]! >> shift & 15) - m;
    }
  }
}

/**
 * Dequantises Q5_K: as Q4_K, with the fifth bits of all eight parts in 32 bytes before `q`.
 *
 * @param blocks Whole blocks of 176 bytes.
 * @param out 256 values for each block.
 */
export function dequantizeQ5K(blocks: Uint8Array, out: Float32Array): void {
  const scales = halvesOf(blocks, 176, 0);
  const mins = halvesOf(blocks, 176, 2);
  for (let block = 0; block < scales.length; block++) {
    const from = block * 176;
    for (let part = 0; part < 8; part++) {
      const d = scales[block]! * scaleOf(blocks, from + 4, part);
      const m = mins[block]! * minOf(blocks, from + 4, part);
      const high = from + 16;
      const quants = from + 48 + (part >> 1) * 32;
      const shift = (part & 1) * 4;
      const to = block * 256 + part * 32;
      for (let i = 0; i < 32; i++) {
        const q = blocks[quants + i]! >> shift & 15 | (blocks[high + i]! >> part & 1) << 4;
        out[to + i] = d * q - m;
      }
    }
  }
}

/**
 * Dequantises Q6_K: `low nibbles (128 bytes), high pairs of bits (64 bytes), 16 scales (i8), d (f16)`;
 * x = d·scale·(q − 32).
 *
 * @param blocks Whole blocks of 210 bytes.
 * @param out 256 values for each block.
 */
export function dequantizeQ6K(blocks: Uint8Array, out: Float32Array): void {
  const scales = halvesOf(blocks, 210, 208);
  for (let block = 0; block < scales.length; block++) {
    const from = block * 210;
    // Eight runs of 32: four in each half share 64 low bytes and 32 high bytes.
    for (let run = 0; run < 8; run++) {
      const half = run >> 2;
      const low = from + half * 64 + (run & 1) * 32;
      const lowShift = (run & 2) * 2;
      const high = from + 128 + half * 32;
      const highShift = (run & 3) * 2;
      for (let i = 0; i < 32; i++) {
        const scale = blocks[from + 192 + run * 2 + (i >> 4)]! << 24 >> 24;
        const q = blocks[low + i]! >> lowShift & 15 | (blocks[high + i]! >> highShift & 3) << 4;
        out[block * 256 + run * 32 + i] = scales[block]! * scale * (q - 32);
      }
    }
  }
}

// The first four parts keep six bits in one byte; the others, four bits there and two atop a byte of the first four.
function scaleOf(bytes: Uint8Array, at: number, part: number): number {
  if (part < 4) return bytes[at + part]! & 63;
  return bytes[at + part + 4]! & 15 | bytes[at + part - 4]! >> 6 << 4;
}

function minOf(bytes: Uint8Array, at: number, part: number): number {
  if (part < 4) return bytes[at + part + 4]! & 63;
  return bytes[at + part + 4]! >> 4 | bytes[at + part]! >> 6 << 4;
}
