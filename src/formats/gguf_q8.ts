import { NumericError } from "../errors.ts";
import { encodeF16 } from "./float16.ts";

const BLOCK = 32;
const BLOCK_BYTES = 34;

/**
 * Quantises to ggml's Q8_0, `d (f16), q (32 × i8)`: d = max |x| / 127, q = x / d rounded half away from zero. The bits are
 * those of ggml's own reference.
 *
 * @param values Whole blocks of 32 finite values.
 * @param tensor Name of the tensor, for the error.
 * @returns 34 bytes for each block.
 * @throws {NumericError} If a scale does not fit an f16.
 */
export function quantizeQ80(values: Float32Array, tensor: string): Uint8Array {
  const count = values.length / BLOCK;
  const scales = new Float32Array(count);
  const blocks = new Uint8Array(count * BLOCK_BYTES);
  const quants = new Int8Array(blocks.buffer);
  for (let block = 0; block < count; block++) {
    const start = block * BLOCK;
    let largest = 0;
    for (let i = start; i < start + BLOCK; i++) largest = Math.max(largest, Math.abs(values[i]!));
    const scale = Math.fround(largest / 127);
    const inverse = scale === 0 ? 0 : Math.fround(1 / scale);
    scales[block] = scale;
    const at = block * BLOCK_BYTES + 2;
    for (let i = 0; i < BLOCK; i++) {
      const quotient = Math.fround(values[start + i]! * inverse);
      quants[at + i] = quotient < 0 ? -Math.floor(0.5 - quotient) : Math.floor(quotient + 0.5);
    }
  }
  const halves = encodeF16(scales);
  for (let block = 0; block < count; block++) {
    if ((halves[2 * block + 1]! & 0x7c) === 0x7c) {
      const message =
        `Cannot write tensor "${tensor}" as Q8_0: a block's largest value is above 127 · 65504; expected smaller ones, or f32`;
      throw new NumericError(message, { tensor, found: scales[block] });
    }
    blocks.set(halves.subarray(2 * block, 2 * block + 2), block * BLOCK_BYTES);
  }
  return blocks;
}
