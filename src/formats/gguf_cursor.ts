import { FormatError, LimitError } from "../errors.ts";
import { quote } from "./quote.ts";
import { decodeUtf8, strictDecoder } from "./utf8.ts";

/** A metadata value; integers of 64 bits are bigints only where a number cannot hold them. */
export type GgufValue = number | bigint | boolean | string | readonly GgufValue[];

/** Thrown where the header goes on behind the bytes read so far; `needed` bytes are wanted. */
export class EndOfWindow {
  /** Length that the window must have at least. */
  readonly needed: number;
  /** Asks for `needed` bytes. */
  constructor(needed: number) {
    this.needed = needed;
  }
}

const MAX_STRING = 10_000_000;
/** Of all arrays together: four for each token of the largest vocabulary that tokenizers take. */
const MAX_ELEMENTS = 1 << 22;
/**
 * Longest text of ASCII that is put together byte by byte, which takes a third of a decoder's time: longer ones engines
 * keep in pieces. The most texts of an array are read in 0.4 s so (Node 22).
 */
const SHORT = 12;
const MAX_ARRAY_DEPTH = 4;
const STRING_TYPE = 8;
const ARRAY_TYPE = 9;
/** Bytes that one element of a type takes at least, by the type's number. */
const MIN_BYTES: readonly number[] = [1, 1, 2, 2, 4, 4, 4, 1, 8, 12, 8, 8, 8];

/** Reads a GGUF header from its first bytes; every length is held against the file before anything is made of it. */
export class GgufCursor {
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  readonly #file: string;
  readonly #size: number;
  readonly #decoder: TextDecoder = strictDecoder();
  #at = 0;
  #elements = 0;

  /** Reads from `bytes`, the start of a file of `size` bytes. */
  constructor(bytes: Uint8Array, file: string, size: number) {
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
    this.#file = file;
    this.#size = size;
  }

  /** Where the next byte is read. */
  get position(): number {
    return this.#at;
  }

  /** Reads an unsigned 32-bit integer. */
  u32(field: string): number {
    return this.#view.getUint32(this.#take(4, field), true);
  }

  /** Reads an unsigned 64-bit integer that a number can hold. */
  u64(field: string): number {
    const at = this.#take(8, field);
    // Two halves take a tenth of the time of a bigint.
    const value = this.#view.getUint32(at + 4, true) * 2 ** 32 + this.#view.getUint32(at, true);
    if (value <= Number.MAX_SAFE_INTEGER) return value;
    throw this.refuse(field, String(this.#view.getBigUint64(at, true)), "at most 2^53 - 1");
  }

  /** Reads a count of things that take at least `minBytes` each. */
  count(field: string, minBytes: number, limit: number): number {
    const count = this.u64(field);
    const room = Math.floor((this.#size - this.#at) / minBytes);
    if (count > room) throw this.refuse(field, String(count), `at most ${room}, which fill the file`);
    if (count > limit) throw this.#exceed(field, count, limit);
    return count;
  }

  /** Reads a string. */
  string(field: string): string {
    const length = this.count(field, 1, MAX_STRING);
    const start = this.#take(length, field);
    const short = length <= SHORT ? this.#ascii(start, length) : null;
    return short ?? decodeUtf8(this.#bytes.subarray(start, start + length), this.#file, this.#decoder);
  }

  /** A short text; null if it is not ASCII. */
  #ascii(start: number, length: number): string | null {
    let text = "";
    for (let i = 0; i < length; i++) {
      const code = this.#bytes[start + i]!;
      if (code > 0x7f) return null;
      text += String.fromCharCode(code);
    }
    return text;
  }

  /** Reads a metadata value of a numbered type. */
  value(type: number, field: string, depth = 0): GgufValue {
    if (type === ARRAY_TYPE) return this.#array(field, depth + 1);
    if (type === STRING_TYPE) return this.string(field);
    const width = MIN_BYTES[type];
    if (width === undefined) throw this.refuse(field, `type ${type}`, "a metadata type from 0 to 12");
    return this.#scalar(type, this.#take(width, field), field);
  }

  /** Makes the error for a field that is not as it must be. */
  refuse(field: string, found: string, expected: string): FormatError {
    return new FormatError(`Cannot read ${quote(this.#file)} with ${quote(field)} ${found}: expected ${expected}`, {
      file: this.#file,
      field,
      found,
      expected,
    });
  }

  #array(field: string, depth: number): GgufValue[] {
    if (depth > MAX_ARRAY_DEPTH) throw this.#exceed(field, depth, MAX_ARRAY_DEPTH);
    const type = this.u32(field);
    const width = MIN_BYTES[type];
    if (width === undefined) throw this.refuse(field, `type ${type}`, "a metadata type from 0 to 12");
    const count = this.count(field, width, MAX_ELEMENTS);
    this.#elements += count;
    if (this.#elements > MAX_ELEMENTS) throw this.#exceed(field, this.#elements, MAX_ELEMENTS);
    // What cannot be whole yet is not begun.
    const end = this.#at + count * width;
    if (end > this.#bytes.length) throw new EndOfWindow(end);
    const values: GgufValue[] = [];
    for (let i = 0; i < count; i++) values.push(this.value(type, field, depth));
    return values;
  }

  #scalar(type: number, at: number, field: string): GgufValue {
    const view = this.#view;
    switch (type) {
      case 0:
        return view.getUint8(at);
      case 1:
        return view.getInt8(at);
      case 2:
        return view.getUint16(at, true);
      case 3:
        return view.getInt16(at, true);
      case 4:
        return view.getUint32(at, true);
      case 5:
        return view.getInt32(at, true);
      case 6:
        return view.getFloat32(at, true);
      case 7:
        if (view.getUint8(at) > 1) throw this.refuse(field, String(view.getUint8(at)), "0 or 1 for a boolean");
        return view.getUint8(at) === 1;
      case 10:
        return narrow(view.getBigUint64(at, true));
      case 11:
        return narrow(view.getBigInt64(at, true));
      default:
        return view.getFloat64(at, true);
    }
  }

  #take(length: number, field: string): number {
    const start = this.#at;
    const end = start + length;
    if (end > this.#size) throw this.refuse(field, `beyond the file's ${this.#size} bytes`, `${end} bytes`);
    if (end > this.#bytes.length) throw new EndOfWindow(end);
    this.#at = end;
    return start;
  }

  #exceed(field: string, value: number, limit: number): LimitError {
    return new LimitError(`Cannot read ${quote(this.#file)} with ${quote(field)} ${value}: expected at most ${limit}`, {
      file: this.#file,
      field,
      limit,
      value,
    });
  }
}

function narrow(value: bigint): number | bigint {
  const number = Number(value);
  return Number.isSafeInteger(number) ? number : value;
}
