/** Protocol Buffers, as much as ONNX files need: varints, fixed floats, and bytes. */
import { concat } from "../../src/formats/concat.ts";

/** A message, or a part of one. */
export type Bytes = Uint8Array<ArrayBufferLike>;

const BYTES_TYPE = 2;
const FIXED32_TYPE = 5;

function varint(value: number | bigint): Bytes {
  const bytes: number[] = [];
  let rest = BigInt.asUintN(64, BigInt(value));
  do {
    bytes.push(Number(rest & 127n) | (rest > 127n ? 128 : 0));
    rest >>= 7n;
  } while (rest > 0n);
  return Uint8Array.from(bytes);
}

/** A whole number. */
export function int(field: number, value: number | bigint): Bytes {
  return concat([varint(field << 3), varint(value)]);
}

/** A 32-bit float. */
export function float(field: number, value: number): Bytes {
  return concat([varint(field << 3 | FIXED32_TYPE), new Uint8Array(Float32Array.of(value).buffer)]);
}

/** Bytes, a text, or a message of parts. */
export function bytes(field: number, content: string | Bytes | readonly Bytes[]): Bytes {
  const parts = typeof content === "string"
    ? [new TextEncoder().encode(content)]
    : content instanceof Uint8Array
    ? [content]
    : content;
  const length = parts.reduce((sum, part) => sum + part.length, 0);
  return concat([varint(field << 3 | BYTES_TYPE), varint(length), ...parts]);
}
