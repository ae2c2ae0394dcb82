/**
 * The bits of floats as files store them.
 *
 * @module
 */

import { alignedView } from "./aligned.ts";
import type { FloatDtype, FloatTensor } from "./dtype.ts";

const EXPONENT_MASKS: Readonly<Record<FloatDtype, number>> = { F32: 0x7f800000, F16: 0x7c00, BF16: 0x7f80 };

/** Tells whether a stored tensor holds floats that can be computed with. */
export function isFloatTensor(tensor: { readonly dtype: string }): tensor is { readonly dtype: FloatDtype } {
  return Object.hasOwn(EXPONENT_MASKS, tensor.dtype);
}

/**
 * Finds NaN and infinity by their bits: all ones in the exponent.
 *
 * @param tensor Its dtype and bytes.
 * @returns Whether all elements are finite.
 */
export function isFiniteTensor(tensor: FloatTensor): boolean {
  const mask = EXPONENT_MASKS[tensor.dtype];
  const words = floatWords(tensor);
  for (let i = 0; i < words.length; i++) {
    if ((words[i]! & mask) === mask) return false;
  }
  return true;
}

/** Tells whether every element is 0 or -0. */
export function isZeroTensor(tensor: FloatTensor): boolean {
  const magnitude = tensor.dtype === "F32" ? 0x7fffffff : 0x7fff;
  return floatWords(tensor).every((word) => (word & magnitude) === 0);
}

/**
 * Views a tensor of floats as the bits of its elements.
 *
 * @param tensor Its dtype and bytes.
 * @returns A word per element.
 */
export function floatWords({ dtype, bytes }: FloatTensor): Uint32Array | Uint16Array {
  return dtype === "F32" ? alignedView(bytes, Uint32Array) : alignedView(bytes, Uint16Array);
}
