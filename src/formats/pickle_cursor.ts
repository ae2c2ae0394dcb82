import { decodeUtf8 } from "./utf8.ts";

const MAX_STRING = 4096;
const MAX_LINE = 128;

/** Reads the operands of opcodes; a refusal is thrown by its owner, who knows the position. */
export class PickleCursor {
  /** Next byte. */
  at = 0;
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  readonly #file: string;
  readonly #refuse: (expected: string) => Error;

  /** Starts at the first byte; `refuse` makes the error for bytes that are not as expected. */
  constructor(bytes: Uint8Array, file: string, refuse: (expected: string) => Error) {
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.#file = file;
    this.#refuse = refuse;
  }

  /** A little-endian unsigned integer of 1, 2 or 4 bytes. */
  integer(width: 1 | 2 | 4): number {
    const at = this.#advance(width);
    if (width === 1) return this.#view.getUint8(at);
    return width === 2 ? this.#view.getUint16(at, true) : this.#view.getUint32(at, true);
  }

  /** A signed integer of 4 bytes. */
  signed(): number {
    return this.integer(4) | 0;
  }

  /** A big-endian double. */
  double(): number {
    return this.#view.getFloat64(this.#advance(8));
  }

  /** A signed little-endian integer of up to 8 bytes after its length. */
  long(): number {
    const width = this.integer(1);
    if (width > 8) throw this.#refuse("an integer of at most 8 bytes");
    let value = 0n;
    for (let i = 0; i < width; i++) value |= BigInt(this.integer(1)) << BigInt(8 * i);
    const signed = BigInt.asIntN(8 * width, value);
    if (signed !== BigInt(Number(signed)) || !Number.isSafeInteger(Number(signed))) {
      throw this.#refuse("an integer of at most 2^53 - 1");
    }
    return Number(signed);
  }

  /** UTF-8 after its length of 4 bytes. */
  text(): string {
    const length = this.integer(4);
    if (length > MAX_STRING) throw this.#refuse(`a string of at most ${MAX_STRING} bytes`);
    const at = this.#advance(length);
    return decodeUtf8(this.#bytes.subarray(at, at + length), this.#file);
  }

  /** UTF-8 up to a line break. */
  line(): string {
    const end = this.#bytes.indexOf(0x0a, this.at);
    if (end < 0 || end - this.at > MAX_LINE) throw this.#refuse(`names of at most ${MAX_LINE} bytes`);
    const line = decodeUtf8(this.#bytes.subarray(this.at, end), this.#file);
    this.at = end + 1;
    return line;
  }

  #advance(length: number): number {
    const { at } = this;
    if (at + length > this.#bytes.length) throw this.#refuse(`${length} more bytes`);
    this.at += length;
    return at;
  }
}
