/**
 * The safetensors writer: byte for byte what the reference implementation writes.
 *
 * @module
 */

import { LimitError, ShapeError } from "../errors.ts";
import { concat } from "./concat.ts";
import { bitsPerElement, type Dtype, DTYPES, type StoredTensor } from "./dtype.ts";
import { compareCodePoints } from "./json_writer.ts";
import { quote } from "./quote.ts";

/** Name, type and shape of a tensor that is to be written. */
export interface TensorSpec {
  /** Name in the file. */
  readonly name: string;
  /** Element type. */
  readonly dtype: Dtype;
  /** Row-major shape. */
  readonly shape: readonly number[];
}

/** The start of a safetensors file, and what follows it. */
export interface SafetensorsLayout {
  /** The file up to its data: eight length bytes and the padded header. */
  readonly header: Uint8Array;
  /** The names in the order in which their data follow, without gaps. */
  readonly order: readonly string[];
}

const MAX_HEADER = 100_000_000;

/**
 * Lays out a safetensors file: descending dtype alignment, then name; the header padded with spaces to eight bytes.
 *
 * @param tensors The tensors, in any order.
 * @param metadata Written first, in its own order; left out if empty.
 * @returns The header and the order of the data.
 * @throws {ShapeError} If a name is taken twice, reserved or not well-formed, or a shape is not one of whole bytes.
 * @throws {LimitError} If the header would be longer than the format allows.
 */
export function layoutSafetensors(
  tensors: Iterable<TensorSpec>,
  metadata?: ReadonlyMap<string, string>,
): SafetensorsLayout {
  const sorted = [...tensors].sort((a, b) =>
    DTYPES.indexOf(b.dtype) - DTYPES.indexOf(a.dtype) || compareCodePoints(a.name, b.name)
  );
  const members: string[] = [];
  if (metadata !== undefined && metadata.size > 0) {
    const pairs = [...metadata].map(([key, text]) => `${literal(key)}:${literal(text)}`);
    members.push(`"__metadata__":{${pairs.join(",")}}`);
  }
  const names = new Set(["__metadata__"]);
  let end = 0;
  for (const { name, dtype, shape } of sorted) {
    if (names.has(name)) {
      throw new ShapeError(`Cannot write tensor ${quote(name)} twice: expected every name once`, { tensor: name });
    }
    names.add(name);
    const begin = end;
    end += byteLength(name, dtype, shape);
    members.push(`${literal(name)}:{"dtype":"${dtype}","shape":[${shape.join(",")}],"data_offsets":[${begin},${end}]}`);
  }
  return { header: frameHeader(`{${members.join(",")}}`), order: sorted.map(({ name }) => name) };
}

/**
 * Encodes a whole safetensors file.
 *
 * @param tensors The tensors by name.
 * @param metadata The file's metadata, if any.
 * @returns The file.
 * @throws {ShapeError} If a tensor's bytes do not match its dtype and shape, or as for {@linkcode layoutSafetensors}.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * const file = encodeSafetensors(new Map([["w", { dtype: "U8", shape: [2], bytes: new Uint8Array([1, 2]) }]]));
 * assert.deepEqual(file.slice(-2), new Uint8Array([1, 2]));
 * ```
 */
export function encodeSafetensors(
  tensors: ReadonlyMap<string, StoredTensor>,
  metadata?: ReadonlyMap<string, string>,
): Uint8Array {
  const specs = [...tensors].map(([name, { dtype, shape, bytes }]) => {
    const length = byteLength(name, dtype, shape);
    if (bytes.length !== length) {
      throw new ShapeError(
        `Cannot write tensor ${quote(name)} with ${bytes.length} bytes: expected ${length} for ${dtype} of shape [${
          shape.join(", ")
        }]`,
        { field: name, found: bytes.length, expected: length },
      );
    }
    return { name, dtype, shape };
  });
  const { header, order } = layoutSafetensors(specs, metadata);
  return concat([header, ...order.map((name) => tensors.get(name)!.bytes)]);
}

function frameHeader(json: string): Uint8Array {
  const text = new TextEncoder().encode(json);
  const length = Math.ceil(text.length / 8) * 8;
  if (length > MAX_HEADER) {
    throw new LimitError(`Cannot write a header of ${length} bytes: expected at most ${MAX_HEADER}`, {
      field: "header",
      limit: MAX_HEADER,
      value: length,
    });
  }
  const header = new Uint8Array(8 + length).fill(0x20);
  new DataView(header.buffer).setBigUint64(0, BigInt(length), true);
  header.set(text, 8);
  return header;
}

function literal(text: string): string {
  if (!text.isWellFormed()) {
    throw new ShapeError(`Cannot write ${quote(text)}: expected surrogates in pairs`, { tensor: text });
  }
  return JSON.stringify(text);
}

function byteLength(name: string, dtype: Dtype, shape: readonly number[]): number {
  const bits = shape.reduce((product, dimension) => product * dimension, bitsPerElement(dtype));
  const valid = shape.every((dimension) => Number.isSafeInteger(dimension) && dimension >= 0);
  if (!valid || !Number.isSafeInteger(bits) || bits % 8 !== 0) {
    throw new ShapeError(
      `Cannot write tensor ${quote(name)} of ${dtype} and shape [${shape.join(", ")}]: expected whole bytes`,
      { field: name, found: shape, expected: "whole bytes" },
    );
  }
  return bits / 8;
}
