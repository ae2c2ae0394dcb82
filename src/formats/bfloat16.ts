import { alignedView } from "./aligned.ts";

/**
 * Decodes bfloat16, the upper halves of 32-bit floats; every value is exact and a NaN becomes a quiet NaN.
 *
 * @param bytes Little-endian bfloat16 values.
 * @returns One 32-bit float for every two bytes.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * assert.deepEqual(decodeBf16(new Uint8Array([0x80, 0x3f])), new Float32Array([1]));
 * ```
 */
export function decodeBf16(bytes: Uint8Array): Float32Array {
  const halves = alignedView(bytes, Uint16Array);
  const values = new Float32Array(halves.length);
  const bits = new Uint32Array(values.buffer);
  for (let i = 0; i < halves.length; i++) {
    const half = halves[i]!;
    bits[i] = (half & 0x7fff) > 0x7f80 ? (half | 0x40) << 16 : half << 16;
  }
  return values;
}

/**
 * Encodes 32-bit floats as bfloat16, rounded to nearest with ties to even; a NaN becomes a quiet NaN.
 *
 * @param values 32-bit floats.
 * @returns Little-endian bfloat16 values, two bytes for each value.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * assert.deepEqual(encodeBf16(new Float32Array([1])), new Uint8Array([0x80, 0x3f]));
 * ```
 */
export function encodeBf16(values: Float32Array): Uint8Array {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const halves = new Uint16Array(values.length);
  for (let i = 0; i < bits.length; i++) {
    const word = bits[i]!;
    const isNaN = (word & 0x7fffffff) > 0x7f800000;
    halves[i] = isNaN ? (word >>> 16) | 0x40 : (word + 0x7fff + ((word >>> 16) & 1)) >>> 16;
  }
  return new Uint8Array(halves.buffer);
}
