import { alignedView } from "./aligned.ts";

/** 2^-24, the smallest positive 16-bit float: every subnormal is a multiple of it. */
const SUBNORMAL_STEP = 2 ** -24;
/** Adding and subtracting 2^52 rounds a small positive double to the nearest integer, ties to even. */
const ROUND_TO_INTEGER = 2 ** 52;

/**
 * Decodes IEEE 754 half-precision floats; every value is exact and a NaN becomes a quiet NaN.
 *
 * @param bytes Little-endian 16-bit floats.
 * @returns One 32-bit float for every two bytes.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * assert.deepEqual(decodeF16(new Uint8Array([0x00, 0x3c])), new Float32Array([1]));
 * ```
 */
export function decodeF16(bytes: Uint8Array): Float32Array {
  const halves = alignedView(bytes, Uint16Array);
  const values = new Float32Array(halves.length);
  const bits = new Uint32Array(values.buffer);
  for (let i = 0; i < halves.length; i++) {
    const half = halves[i]!;
    const sign = (half & 0x8000) << 16;
    const magnitude = half & 0x7fff;
    if (magnitude >= 0x0400 && magnitude < 0x7c00) {
      bits[i] = sign | ((magnitude << 13) + 0x38000000);
    } else if (magnitude < 0x0400) {
      values[i] = (sign === 0 ? SUBNORMAL_STEP : -SUBNORMAL_STEP) * magnitude;
    } else {
      const quiet = magnitude === 0x7c00 ? 0 : 0x400000;
      bits[i] = sign | 0x7f800000 | quiet | ((magnitude & 0x3ff) << 13);
    }
  }
  return values;
}

/**
 * Encodes 32-bit floats as IEEE 754 half-precision floats, rounded to nearest with ties to even.
 *
 * Magnitudes of 65520 and above become infinity; a NaN becomes a quiet NaN.
 *
 * @param values 32-bit floats.
 * @returns Little-endian 16-bit floats, two bytes for each value.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * assert.deepEqual(encodeF16(new Float32Array([1])), new Uint8Array([0x00, 0x3c]));
 * ```
 */
export function encodeF16(values: Float32Array): Uint8Array {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const halves = new Uint16Array(values.length);
  for (let i = 0; i < bits.length; i++) {
    const sign = (bits[i]! >>> 16) & 0x8000;
    const magnitude = bits[i]! & 0x7fffffff;
    if (magnitude >= 0x38800000 && magnitude < 0x477ff000) {
      halves[i] = sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >>> 13) & 1)) >>> 13);
    } else if (magnitude < 0x38800000) {
      const steps = Math.abs(values[i]!) / SUBNORMAL_STEP;
      halves[i] = sign | (steps + ROUND_TO_INTEGER - ROUND_TO_INTEGER);
    } else if (magnitude <= 0x7f800000) {
      halves[i] = sign | 0x7c00;
    } else {
      halves[i] = sign | 0x7e00 | ((magnitude >>> 13) & 0x3ff);
    }
  }
  return new Uint8Array(halves.buffer);
}
