/**
 * Dequantisers of ggml's 32-element blocks, and the table of all. Every product fits a 32-bit float, so that the
 * results equal ggml's own bit for bit.
 *
 * @module
 */

import { halvesOf } from "./gguf_halves.ts";
import { dequantizeQ4K, dequantizeQ5K, dequantizeQ6K } from "./gguf_k_quants.ts";
import type { GgufType } from "./gguf_types.ts";

/** Turns whole blocks into 32-bit floats: fills all of `out`. */
export type Dequantize = (blocks: Uint8Array, out: Float32Array) => void;

const DEQUANTIZERS: ReadonlyMap<GgufType, Dequantize> = new Map<GgufType, Dequantize>([
  ["Q4_0", dequantizeQ40],
  ["Q4_1", dequantizeQ41],
  ["Q5_0", dequantizeQ50],
  ["Q5_1", dequantizeQ51],
  ["Q8_0", dequantizeQ80],
  ["Q4_K", dequantizeQ4K],
  ["Q5_K", dequantizeQ5K],
  ["Q6_K", dequantizeQ6K],
]);

/**
 * Finds the dequantiser of a block format.
 *
 * @param type The tensor type.
 * @returns The function, or undefined where there is none.
 */
export function dequantizer(type: GgufType): Dequantize | undefined {
  return DEQUANTIZERS.get(type);
}

/** `d (f16), q (32 × i8)`: x = d q. */
function dequantizeQ80(blocks: Uint8Array, out: Float32Array): void {
  const scales = halvesOf(blocks, 34, 0);
  const quants = new Int8Array(blocks.buffer, blocks.byteOffset, blocks.length);
  for (let block = 0; block < scales.length; block++) {
    const d = scales[block]!;
    const from = block * 34 + 2;
    const to = block * 32;
    for (let i = 0; i < 32; i++) out[to + i] = d * quants[from + i]!;
  }
}

/** `d (f16), q (16 bytes: elements 0–15 low, 16–31 high)`: x = d (q − 8). */
function dequantizeQ40(blocks: Uint8Array, out: Float32Array): void {
  const scales = halvesOf(blocks, 18, 0);
  for (let block = 0; block < scales.length; block++) {
    const d = scales[block]!;
    const from = block * 18 + 2;
    const to = block * 32;
    for (let i = 0; i < 16; i++) {
      const pair = blocks[from + i]!;
      out[to + i] = d * ((pair & 15) - 8);
      out[to + 16 + i] = d * ((pair >> 4) - 8);
    }
  }
}

/** `d (f16), m (f16), q (16 bytes)`: x = d q + m. */
function dequantizeQ41(blocks: Uint8Array, out: Float32Array): void {
  const scales = halvesOf(blocks, 20, 0);
  const mins = halvesOf(blocks, 20, 2);
  for (let block = 0; block < scales.length; block++) {
    const d = scales[block]!;
    const m = mins[block]!;
    const from = block * 20 + 4;
    const to = block * 32;
    for (let i = 0; i < 16; i++) {
      const pair = blocks[from + i]!;
      out[to + i] = d * (pair & 15) + m;
      out[to + 16 + i] = d * (pair >> 4) + m;
    }
  }
}

/** `d (f16), fifth bits (u32), q (16 bytes)`: x = d (q − 16). */
function dequantizeQ50(blocks: Uint8Array, out: Float32Array): void {
  const scales = halvesOf(blocks, 22, 0);
  for (let block = 0; block < scales.length; block++) {
    const d = scales[block]!;
    const from = block * 22 + 2;
    const high = word(blocks, from);
    const to = block * 32;
    for (let i = 0; i < 16; i++) {
      const pair = blocks[from + 4 + i]!;
      out[to + i] = d * ((pair & 15 | (high >>> i & 1) << 4) - 16);
      out[to + 16 + i] = d * ((pair >> 4 | (high >>> (i + 16) & 1) << 4) - 16);
    }
  }
}

/** `d (f16), m (f16), fifth bits (u32), q (16 bytes)`: x = d q + m. */
function dequantizeQ51(blocks: Uint8Array, out: Float32Array): void {
  const scales = halvesOf(blocks, 24, 0);
  const mins = halvesOf(blocks, 24, 2);
  for (let block = 0; block < scales.length; block++) {
    const d = scales[block]!;
    const m = mins[block]!;
    const from = block * 24 + 4;
    const high = word(blocks, from);
    const to = block * 32;
    for (let i = 0; i < 16; i++) {
      const pair = blocks[from + 4 + i]!;
      out[to + i] = d * (pair & 15 | (high >>> i & 1) << 4) + m;
      out[to + 16 + i] = d * (pair >> 4 | (high >>> (i + 16) & 1) << 4) + m;
    }
  }
}

function word(bytes: Uint8Array, at: number): number {
  return bytes[at]! | bytes[at + 1]! << 8 | bytes[at + 2]! << 16 | bytes[at + 3]! << 24;
}
