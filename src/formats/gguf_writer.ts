/**
 * The GGUF writer: version 3, little-endian, aligned to 32 bytes, metadata of the types that adapters use.
 *
 * @module
 */

import { ShapeError } from "../errors.ts";
import { concat } from "./concat.ts";
import { bitsPerElement, type Dtype, type StoredTensor } from "./dtype.ts";
import { quote } from "./quote.ts";

/** A metadata value: a text, a whole number (u32), a 32-bit float or a list of whole numbers (u32). */
export type GgufField =
  | { readonly type: "string"; readonly value: string }
  | { readonly type: "u32" | "f32"; readonly value: number }
  | { readonly type: "u32s"; readonly value: readonly number[] };

const ALIGNMENT = 32;
/** ggml keeps names in 64 bytes, the last of which is 0. */
const MAX_NAME = 63;
const MAX_DIMENSIONS = 4;
const TYPES: ReadonlyMap<Dtype, number> = new Map<Dtype, number>([["F32", 0], ["F16", 1], ["F64", 28], ["BF16", 30]]);

/**
 * Encodes a whole GGUF file.
 *
 * @param metadata The metadata by key, in order.
 * @param tensors The tensors by name, in order: F32, F16, BF16 or F64.
 * @returns The file.
 * @throws {ShapeError} If ggml has no such tensor: a name above 63 bytes, more than 4 dimensions, another type, or bytes
 * that do not fill its shape.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * import { readGguf } from "./gguf.ts";
 * import { memorySource } from "./memory.ts";
 * const file = encodeGguf(new Map([["general.type", { type: "string", value: "adapter" }]]), new Map());
 * const { metadata } = await readGguf(memorySource("a.gguf", file));
 * assert.equal(metadata.get("general.type"), "adapter");
 * ```
 */
export function encodeGguf(
  metadata: ReadonlyMap<string, GgufField>,
  tensors: ReadonlyMap<string, StoredTensor>,
): Uint8Array {
  const parts = [text8("GGUF"), u32(3), u64(tensors.size), u64(metadata.size)];
  for (const [key, field] of metadata) parts.push(...string(key), ...value(field));
  const data: Uint8Array[] = [];
  let offset = 0;
  for (const [name, tensor] of tensors) {
    const type = typeOf(name, tensor);
    const { shape, bytes } = tensor;
    parts.push(...string(name), u32(shape.length), ...shape.toReversed().map(u64), u32(type), u64(offset));
    data.push(bytes, padding(bytes.length));
    offset += Math.ceil(bytes.length / ALIGNMENT) * ALIGNMENT;
  }
  const header = concat(parts);
  return concat([header, padding(header.length), ...data]);
}

function typeOf(name: string, { dtype, shape, bytes }: StoredTensor): number {
  const type = TYPES.get(dtype);
  const length = shape.reduce((product, dimension) => product * dimension, bitsPerElement(dtype) / 8);
  const isNamed = text8(name).length <= MAX_NAME;
  if (type !== undefined && isNamed && shape.length <= MAX_DIMENSIONS && bytes.length === length) return type;
  const found = `${dtype} of shape [${shape.join(", ")}] in ${bytes.length} bytes`;
  throw new ShapeError(
    `Cannot write tensor ${quote(name)} as GGUF with ${found}: expected F32, F16, BF16 or F64 of at most ` +
      `${MAX_DIMENSIONS} dimensions that fill its bytes, and a name of at most ${MAX_NAME} bytes`,
    { field: name, found, expected: "a tensor of ggml" },
  );
}

function value(field: GgufField): Uint8Array[] {
  if (field.type === "string") return [u32(8), ...string(field.value)];
  if (field.type === "u32s") return [u32(9), u32(4), u64(field.value.length), ...field.value.map(u32)];
  return field.type === "u32" ? [u32(4), u32(field.value)] : [u32(6), f32(field.value)];
}

function string(text: string): Uint8Array[] {
  const bytes = text8(text);
  return [u64(bytes.length), bytes];
}

function text8(text: string): Uint8Array {
  return new TextEncoder().encode(text);
}

function u32(value: number): Uint8Array {
  return new Uint8Array(Uint32Array.of(value).buffer);
}

function u64(value: number): Uint8Array {
  return new Uint8Array(BigUint64Array.of(BigInt(value)).buffer);
}

function f32(value: number): Uint8Array {
  return new Uint8Array(Float32Array.of(value).buffer);
}

function padding(length: number): Uint8Array {
  return new Uint8Array(-length & (ALIGNMENT - 1));
}
