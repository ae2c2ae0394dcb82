/**
 * The two 8-bit floats of the OCP specification (OFP8, 2023), read only.
 *
 * ```text
 * E4M3  s eeee mmm  bias 7   no infinity, NaN where all of e and m are ones, largest 448
 * E5M2  s eeeee mm  bias 15  the upper half of an F16
 * ```
 *
 * @module
 */

/** Names of the 8-bit floats that can be read. */
export type Float8 = "F8_E4M3" | "F8_E5M2";

/** Tells whether a dtype is one of the 8-bit floats that can be read. */
export function isFloat8(dtype: string): dtype is Float8 {
  return dtype === "F8_E4M3" || dtype === "F8_E5M2";
}

/**
 * Widens 8-bit floats to F16, exactly: F16 has all their values, infinities and NaN.
 *
 * @param bytes The values.
 * @param dtype Which of the two they are.
 * @returns Little-endian F16 values.
 */
export function widenFloat8(bytes: Uint8Array, dtype: Float8): Uint8Array {
  const wide = new Uint8Array(2 * bytes.length);
  const view = new DataView(wide.buffer);
  for (let i = 0; i < bytes.length; i++) {
    view.setUint16(2 * i, dtype === "F8_E5M2" ? bytes[i]! << 8 : widenE4m3(bytes[i]!), true);
  }
  return wide;
}

function widenE4m3(byte: number): number {
  const sign = (byte & 0x80) << 8;
  const magnitude = byte & 0x7f;
  if (magnitude === 0x7f) return sign | 0x7e00;
  // Exponents from 1 keep their mantissa; the bias grows from 7 to 15.
  if (magnitude >= 8) return sign | ((magnitude << 7) + (8 << 10));
  if (magnitude === 0) return sign;
  // m · 2^-9 with m from 1 to 7 is normal in F16: shift until the leading bit is the hidden one.
  const shift = Math.clz32(magnitude) - 28;
  return sign | ((9 - shift) << 10) | (((magnitude << (shift - 1)) & 3) << 8);
}
