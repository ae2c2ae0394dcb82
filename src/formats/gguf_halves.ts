import { decodeF16 } from "./float16.ts";

/**
 * Collects one 16-bit float of every block, decoded.
 *
 * @param blocks Whole blocks.
 * @param stride Bytes per block.
 * @param at Where the float lies in a block.
 * @returns One value for each block.
 */
export function halvesOf(blocks: Uint8Array, stride: number, at: number): Float32Array {
  const count = Math.floor(blocks.length / stride);
  const bytes = new Uint8Array(2 * count);
  for (let block = 0; block < count; block++) {
    bytes[2 * block] = blocks[block * stride + at]!;
    bytes[2 * block + 1] = blocks[block * stride + at + 1]!;
  }
  return decodeF16(bytes);
}
