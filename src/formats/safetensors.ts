/**
 * The safetensors reader: every rule of the reference implementation, and four stricter ones (a repeated name, an
 * entry written as an array, a number above 2^53 - 1 and more than 64 dimensions are refused).
 *
 * @module
 */

import { FormatError, LimitError } from "../errors.ts";
import { bitsPerElement, type Dtype, isDtype, type StoredTensor } from "./dtype.ts";
import { JsonNumber, type JsonValue, parseJson } from "./json.ts";
import { quote } from "./quote.ts";
import { readExactly, type ReadOptions, type Source } from "./source.ts";
import { decodeUtf8 } from "./utf8.ts";

/** Where one tensor lies in its file. */
export interface TensorInfo {
  /** Name in the file; any well-formed text. */
  readonly name: string;
  /** Element type. */
  readonly dtype: Dtype;
  /** Row-major shape; `[]` for a scalar, and a dimension may be 0. */
  readonly shape: readonly number[];
  /** First byte, counted from the start of the file. */
  readonly offset: number;
  /** Length in bytes. */
  readonly length: number;
}

/** A validated header. */
export interface SafetensorsHeader {
  /** The tensors by name, in the header's order. */
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  /** `__metadata__`, in the header's order; empty where the file has none. */
  readonly metadata: ReadonlyMap<string, string>;
}

/** Options of {@linkcode readSafetensorsHeader}. */
export interface SafetensorsOptions extends ReadOptions {
  /** Longest header in bytes; 25,000,000 if absent, and never above the format's own 100,000,000. */
  readonly maxHeaderBytes?: number;
}

const DEFAULT_MAX_HEADER = 25_000_000;
const FORMAT_MAX_HEADER = 100_000_000;
const MAX_DIMENSIONS = 64;
// The reference's JSON parser refuses the 128th level.
const MAX_DEPTH = 127;
const METADATA_KEY = "__metadata__";

/**
 * Reads and validates the header of a safetensors file; no tensor data is read.
 *
 * @param source The file.
 * @param options A cap and a signal.
 * @returns The tensors and the metadata.
 * @throws {FormatError} If any rule of the format is broken; the error names the tensor.
 * @throws {LimitError} If the header is longer than the cap, or nests too deep.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * import { memorySource } from "./memory.ts";
 * import { encodeSafetensors } from "./safetensors_writer.ts";
 * const bytes = encodeSafetensors(new Map([["w", { dtype: "U8", shape: [2], bytes: new Uint8Array([1, 2]) }]]));
 * const { tensors } = await readSafetensorsHeader(memorySource("a.safetensors", bytes));
 * assert.deepEqual(tensors.get("w")?.shape, [2]);
 * ```
 */
export async function readSafetensorsHeader(
  source: Source,
  options: SafetensorsOptions = {},
): Promise<SafetensorsHeader> {
  options.signal?.throwIfAborted();
  const file = source.name;
  const size = await source.size(options);
  const length = await readHeaderLength(source, size, options);
  const text = decodeUtf8(await readExactly(source, 8, length, options), file);
  const root = parseJson(text, { file, maxDepth: MAX_DEPTH, keepNumberText: true });
  if (!(root instanceof Map)) throw refuse(file, { field: "header", found: kind(root), expected: "an object" });
  const metadata = readMetadata(file, root.get(METADATA_KEY));
  const tensors = new Map<string, TensorInfo>();
  for (const [name, entry] of root) {
    if (name !== METADATA_KEY) tensors.set(name, readEntry({ file, tensor: name }, entry, 8 + length));
  }
  checkCoverage(file, [...tensors.values()], 8 + length, size);
  return { tensors, metadata };
}

/**
 * Reads the data of one tensor.
 *
 * @param source The file whose header named the tensor.
 * @param info The tensor.
 * @param options A signal.
 * @returns The tensor as stored.
 * @throws {IntegrityError} If the file has become shorter.
 */
export async function readTensor(source: Source, info: TensorInfo, options: ReadOptions = {}): Promise<StoredTensor> {
  const bytes = await readExactly(source, info.offset, info.length, options);
  return { dtype: info.dtype, shape: info.shape, bytes };
}

async function readHeaderLength(source: Source, size: number, options: SafetensorsOptions): Promise<number> {
  const file = source.name;
  if (size < 8) throw refuse(file, { field: "size", found: size, expected: "at least 8 bytes" });
  const bytes = await readExactly(source, 0, 8, options);
  const length = new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true);
  const limit = Math.min(options.maxHeaderBytes ?? DEFAULT_MAX_HEADER, FORMAT_MAX_HEADER);
  if (length > BigInt(limit)) {
    throw new LimitError(`Cannot read ${quote(file)} with a header of ${length} bytes: expected at most ${limit}`, {
      file,
      field: "header length",
      limit,
      value: Number(length),
    });
  }
  if (Number(length) > size - 8) {
    throw refuse(file, { field: "header length", found: Number(length), expected: `at most ${size - 8}` });
  }
  return Number(length);
}

function readMetadata(file: string, value: JsonValue | undefined): ReadonlyMap<string, string> {
  const metadata = new Map<string, string>();
  if (value === undefined || value === null) return metadata;
  if (!(value instanceof Map)) throw refuse(file, { field: METADATA_KEY, found: kind(value), expected: "an object" });
  for (const [key, text] of value) {
    if (typeof text !== "string") {
      throw refuse(file, { field: `${METADATA_KEY}.${key}`, found: kind(text), expected: "a string" });
    }
    metadata.set(key, text);
  }
  return metadata;
}

interface Place {
  readonly file: string;
  readonly tensor: string;
}

function readEntry(place: Place, entry: JsonValue, dataStart: number): TensorInfo {
  const { file, tensor } = place;
  if (!(entry instanceof Map)) throw refuse(file, { tensor, found: kind(entry), expected: "an object" });
  const dtype = entry.get("dtype");
  if (typeof dtype !== "string" || !isDtype(dtype)) {
    const found = typeof dtype === "string" ? quote(dtype) : kind(dtype);
    throw refuse(file, { tensor, field: "dtype", found, expected: "a dtype of safetensors" });
  }
  const shape = readIntegers(place, "shape", entry.get("shape"));
  if (shape.length > MAX_DIMENSIONS) {
    const found = `${shape.length} dimensions`;
    throw refuse(file, { tensor, field: "shape", found, expected: `at most ${MAX_DIMENSIONS}` });
  }
  const offsets = readIntegers(place, "data_offsets", entry.get("data_offsets"));
  const [begin, end] = offsets;
  if (begin === undefined || end === undefined || offsets.length !== 2 || end < begin) {
    const found = `[${offsets.slice(0, 4).join(", ")}]`;
    throw refuse(file, { tensor, field: "data_offsets", found, expected: "[begin, end] with begin <= end" });
  }
  const length = byteLength(place, dtype, shape);
  if (end - begin !== length) {
    const expected = `${length} bytes for ${dtype} of shape [${shape.join(", ")}]`;
    throw refuse(file, { tensor, field: "data_offsets", found: `${end - begin} bytes`, expected });
  }
  return { name: tensor, dtype, shape, offset: dataStart + begin, length };
}

/** Accepts digits only: `1e0`, `1.0` and `-0` are numbers to JavaScript but not to the format. */
function readIntegers({ file, tensor }: Place, field: string, value: JsonValue | undefined): number[] {
  if (!Array.isArray(value)) throw refuse(file, { tensor, field, found: kind(value), expected: "an array" });
  return value.map((item) => {
    if (typeof item === "number" && Number.isSafeInteger(item) && item >= 0) return item;
    throw refuse(file, { tensor, field, found: kind(item), expected: "integers from 0 to 2^53 - 1" });
  });
}

function byteLength({ file, tensor }: Place, dtype: Dtype, shape: readonly number[]): number {
  const bits = bitsPerElement(dtype);
  let total = bits;
  for (const dimension of shape) {
    if (dimension !== 0 && total > Number.MAX_SAFE_INTEGER / dimension) {
      const found = `[${shape.join(", ")}] of ${dtype}`;
      throw refuse(file, { tensor, field: "shape", found, expected: "a size below 2^53 bits" });
    }
    total *= dimension;
  }
  if (total % 8 !== 0) {
    throw refuse(file, { tensor, field: "shape", found: `${total} bits of ${dtype}`, expected: "whole bytes" });
  }
  return total / 8;
}

/** The data follow each other without hole or overlap and end with the file, so nothing can hide in it. */
function checkCoverage(file: string, infos: TensorInfo[], dataStart: number, size: number): void {
  infos.sort((a, b) => a.offset - b.offset || a.length - b.length);
  let end = dataStart;
  for (const { name, offset, length } of infos) {
    if (offset !== end) {
      const found = `begin ${offset - dataStart}`;
      throw refuse(file, { tensor: name, field: "data_offsets", found, expected: `begin ${end - dataStart}` });
    }
    end = offset + length;
  }
  if (end !== size) {
    const tensor = infos.at(-1)?.name;
    throw refuse(file, { tensor, field: "size", found: `${size} bytes`, expected: `${end} bytes` });
  }
}

function kind(value: JsonValue | undefined): string {
  if (value === undefined) return "nothing";
  if (value instanceof JsonNumber) return value.text.slice(0, 40);
  if (Array.isArray(value)) return "an array";
  if (value instanceof Map) return "an object";
  return typeof value === "string" ? quote(value) : String(value);
}

function refuse(
  file: string,
  at: {
    readonly tensor?: string | undefined;
    readonly field?: string;
    readonly found: string | number;
    readonly expected: string;
  },
): FormatError {
  const what = at.tensor === undefined ? quote(file) : `tensor ${quote(at.tensor)} of ${quote(file)}`;
  const found = at.field === undefined ? at.found : `${at.field} ${at.found}`;
  const { tensor, ...details } = at;
  return new FormatError(`Cannot read ${what} with ${found}: expected ${at.expected}`, {
    file,
    ...(tensor === undefined ? {} : { tensor }),
    ...details,
  });
}
