/**
 * What rounding took from a tensor that was multiplied: with it, division gives every bit again.
 *
 * ```text
 * 2 bits per element, the low ones of a byte first: what the quotient's bits, as a number, need
 *   0  nothing     1  plus one     2  minus one     3  they are the next of the words that follow
 * the words, little-endian, of the size of an element
 * ```
 *
 * The product of an F32 has one or two factors that round to it, neighbours: a quotient is off by one bit, or by none.
 * Words are needed where the product left the range in which floats are dense, and where it is 0.
 *
 * @module
 */

import type { StoredTensor } from "../../formats/dtype.ts";
import { floatWords, isFloatTensor } from "../../formats/float_bits.ts";

const SAME = 0;
const NEXT = 1;
const PREVIOUS = 2;
const OTHER = 3;
const CODES_PER_BYTE = 4;

/**
 * Tells how a tensor differs from a quotient that should be it.
 *
 * @param wanted The tensor.
 * @param quotient As many elements of the same type.
 * @returns The difference, or null if there is none.
 */
export function encodeRounding(wanted: StoredTensor, quotient: StoredTensor): Uint8Array | null {
  if (!isFloatTensor(wanted) || !isFloatTensor(quotient)) return null;
  const [words, found] = [floatWords(wanted), floatWords(quotient)];
  const codes = new Uint8Array(Math.ceil(words.length / CODES_PER_BYTE));
  const others: number[] = [];
  for (let i = 0; i < words.length; i++) {
    const code = codeOf(words[i]! - found[i]!);
    if (code === OTHER) others.push(words[i]!);
    codes[Math.floor(i / CODES_PER_BYTE)]! |= code << 2 * (i % CODES_PER_BYTE);
  }
  if (codes.every((byte) => byte === 0)) return null;
  const tail = words instanceof Uint32Array ? Uint32Array.from(others) : Uint16Array.from(others);
  const rounding = new Uint8Array(codes.length + tail.byteLength);
  rounding.set(codes);
  rounding.set(new Uint8Array(tail.buffer), codes.length);
  return rounding;
}

function codeOf(difference: number): number {
  return difference === 0 ? SAME : difference === 1 ? NEXT : difference === -1 ? PREVIOUS : OTHER;
}

/**
 * Makes the tensor of a quotient: the inverse of {@linkcode encodeRounding}.
 *
 * @param quotient The quotient.
 * @param rounding The difference.
 * @returns The tensor, or undefined where the difference is one of another number of elements.
 */
export function applyRounding(quotient: StoredTensor, rounding: Uint8Array): StoredTensor | undefined {
  if (!isFloatTensor(quotient)) return undefined;
  const words = floatWords(quotient).slice();
  const width = words.BYTES_PER_ELEMENT;
  let at = Math.ceil(words.length / CODES_PER_BYTE);
  const view = new DataView(rounding.buffer, rounding.byteOffset, rounding.length);
  for (let i = 0; i < words.length; i++) {
    const code = (rounding[Math.floor(i / CODES_PER_BYTE)] ?? 0) >> 2 * (i % CODES_PER_BYTE) & 3;
    if (code === NEXT) words[i]!++;
    else if (code === PREVIOUS) words[i]!--;
    else if (code === OTHER) {
      if (at + width > rounding.length) return undefined;
      words[i] = width === 4 ? view.getUint32(at, true) : view.getUint16(at, true);
      at += width;
    }
  }
  const { dtype, shape } = quotient;
  return at === rounding.length ? { dtype, shape, bytes: new Uint8Array(words.buffer) } : undefined;
}
