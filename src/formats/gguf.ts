/**
 * The GGUF reader: versions 2 and 3, little-endian. The header is read in growing windows, tensors one by one.
 *
 * @module
 */

import { FormatError, LimitError } from "../errors.ts";
import type { Dtype, StoredTensor } from "./dtype.ts";
import { EndOfWindow, GgufCursor, type GgufValue } from "./gguf_cursor.ts";
import { dequantizer } from "./gguf_quants.ts";
import { type GgufType, ggufType } from "./gguf_types.ts";
import { quote } from "./quote.ts";
import { readExactly, type ReadOptions, type Source } from "./source.ts";

export type { GgufType, GgufValue };

/** Where one tensor lies in a GGUF file. */
export interface GgufTensorInfo {
  /** Name in the file. */
  readonly name: string;
  /** Element or block type. */
  readonly type: GgufType;
  /** Row-major shape, outermost dimension first: ggml's own order reversed. */
  readonly shape: readonly number[];
  /** First byte, counted from the start of the file. */
  readonly offset: number;
  /** Length in bytes. */
  readonly length: number;
}

/** A validated header. */
export interface Gguf {
  /** Version of the format: 2 or 3. */
  readonly version: number;
  /** The metadata in file order. */
  readonly metadata: ReadonlyMap<string, GgufValue>;
  /** First and last + 1 byte in the file of each metadata entry, with its key and type. */
  readonly entries: ReadonlyMap<string, readonly [number, number]>;
  /** What the data of tensors is aligned to, in bytes. */
  readonly alignment: number;
  /** The tensors by name, in file order. */
  readonly tensors: ReadonlyMap<string, GgufTensorInfo>;
}

/** Options of {@linkcode readGguf}. */
export interface GgufOptions extends ReadOptions {
  /** Longest header in bytes; 64,000,000 if absent. */
  readonly maxHeaderBytes?: number;
}

const MAGIC = 0x46554747;
const FIRST_WINDOW = 1 << 20;
const DEFAULT_MAX_HEADER = 64_000_000;
const DEFAULT_ALIGNMENT = 32;
const MAX_METADATA = 100_000;
const MAX_TENSORS = 10_000_000;
const MAX_DIMENSIONS = 8;
const MAX_DIMENSION = 2 ** 32;
// Shortest entries: key length, type and a byte; name length, dimension count, type and offset.
const MIN_METADATA_BYTES = 13;
const MIN_TENSOR_BYTES = 24;
const STORED: ReadonlySet<string> = new Set(["F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64"]);

/**
 * Reads and validates the header of a GGUF file; no tensor data is read.
 *
 * @param source The file.
 * @param options A cap and a signal.
 * @returns The metadata and the tensors.
 * @throws {FormatError} If the header breaks a rule of the format, or does not fit the file.
 * @throws {LimitError} If a count, a string or the header passes its cap.
 */
export async function readGguf(source: Source, options: GgufOptions = {}): Promise<Gguf> {
  options.signal?.throwIfAborted();
  const size = await source.size(options);
  const limit = options.maxHeaderBytes ?? DEFAULT_MAX_HEADER;
  if (size < 4) {
    throw new GgufCursor(new Uint8Array(0), source.name, size).refuse("magic", `of ${size} bytes`, '"GGUF"');
  }
  let window = await readExactly(source, 0, Math.min(size, FIRST_WINDOW), options);
  for (;;) {
    try {
      return readHeader(new GgufCursor(window, source.name, size), size);
    } catch (error) {
      if (!(error instanceof EndOfWindow)) throw error;
      if (error.needed > limit) {
        throw new LimitError(
          `Cannot read ${quote(source.name)} with a header of ${error.needed} bytes or more: expected at most ${limit}`,
          { file: source.name, field: "header", limit, value: error.needed },
        );
      }
      const length = Math.max(error.needed, Math.min(limit, 2 * window.length));
      window = await grow(source, window, Math.min(size, length), options);
    }
  }
}

/**
 * Reads the data of one tensor: F32, F16, BF16 and the plain integers as stored, quantised types as F32.
 *
 * @param source The file whose header named the tensor.
 * @param info The tensor.
 * @param options A signal.
 * @returns The tensor.
 * @throws {FormatError} If there is no dequantiser for its type; nothing is read then.
 * @throws {IntegrityError} If the file has become shorter.
 */
export async function readGgufTensor(
  source: Source,
  info: GgufTensorInfo,
  options: ReadOptions = {},
): Promise<StoredTensor> {
  const { name, type, shape } = info;
  const dequantize = dequantizer(type);
  if (dequantize === undefined && !STORED.has(type)) {
    throw new FormatError(
      `Cannot read tensor ${quote(name)} of ${quote(source.name)} with type ${type}: ` +
        "expected F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K or Q6_K",
      { file: source.name, tensor: name, field: "type", found: type },
    );
  }
  const bytes = await readExactly(source, info.offset, info.length, options);
  if (dequantize === undefined) return { dtype: type as Dtype, shape, bytes };
  const values = new Float32Array(shape.reduce((product, dimension) => product * dimension, 1));
  dequantize(bytes, values);
  return { dtype: "F32", shape, bytes: new Uint8Array(values.buffer) };
}

async function grow(source: Source, window: Uint8Array, length: number, options: ReadOptions): Promise<Uint8Array> {
  const grown = new Uint8Array(length);
  grown.set(window);
  grown.set(await readExactly(source, window.length, length - window.length, options), window.length);
  return grown;
}

function readHeader(cursor: GgufCursor, size: number): Gguf {
  const magic = cursor.u32("magic");
  if (magic !== MAGIC) throw cursor.refuse("magic", `0x${magic.toString(16)}`, '"GGUF"');
  const version = cursor.u32("version");
  if (version !== 2 && version !== 3) {
    const bigEndian = version !== 0 && version % 2 ** 24 === 0;
    throw cursor.refuse("version", bigEndian ? "in big-endian order" : String(version), "2 or 3, little-endian");
  }
  const tensorCount = cursor.count("tensor count", MIN_TENSOR_BYTES, MAX_TENSORS);
  const metadataCount = cursor.count("metadata count", MIN_METADATA_BYTES, MAX_METADATA);
  const metadata = new Map<string, GgufValue>();
  const entries = new Map<string, readonly [number, number]>();
  for (let i = 0; i < metadataCount; i++) {
    const start = cursor.position;
    const key = cursor.string("metadata key");
    if (metadata.has(key)) throw cursor.refuse(key, "a second time", "every key once");
    metadata.set(key, cursor.value(cursor.u32(key), key));
    entries.set(key, [start, cursor.position]);
  }
  const relative = new Map<string, GgufTensorInfo>();
  for (let i = 0; i < tensorCount; i++) {
    const info = readTensorInfo(cursor);
    if (relative.has(info.name)) throw cursor.refuse(info.name, "a second time", "every tensor name once");
    relative.set(info.name, info);
  }
  const alignment = readAlignment(cursor, metadata.get("general.alignment"));
  return { version, metadata, entries, alignment, tensors: placeTensors(cursor, relative, alignment, size) };
}

function readTensorInfo(cursor: GgufCursor): GgufTensorInfo {
  const name = cursor.string("tensor name");
  const dimensions = cursor.u32(name);
  if (dimensions > MAX_DIMENSIONS) {
    throw cursor.refuse(name, `of ${dimensions} dimensions`, `at most ${MAX_DIMENSIONS}`);
  }
  const shape: number[] = [];
  for (let i = 0; i < dimensions; i++) shape.unshift(cursor.u64(name));
  const id = cursor.u32(name);
  const info = ggufType(id);
  if (info === undefined) throw cursor.refuse(name, `of type ${id}`, "a type of ggml");
  let elements = 1;
  for (const dimension of shape) {
    // Eight bytes per element are the most of any type, so the length is exact too.
    if (dimension > MAX_DIMENSION || dimension > Number.MAX_SAFE_INTEGER / 8 / Math.max(elements, 1)) {
      throw cursor.refuse(name, `of shape [${shape.join(", ")}]`, "a size below 2^53 bytes");
    }
    elements *= dimension;
  }
  const row = shape.at(-1) ?? 1;
  if (row % info.blockSize !== 0) {
    throw cursor.refuse(name, `with rows of ${row} in ${info.type}`, `whole blocks of ${info.blockSize}`);
  }
  const length = elements / info.blockSize * info.blockBytes;
  return { name, type: info.type, shape, offset: cursor.u64(name), length };
}

function readAlignment(cursor: GgufCursor, value: GgufValue | undefined): number {
  if (value === undefined) return DEFAULT_ALIGNMENT;
  if (typeof value === "number" && value >= 1 && value <= 2 ** 31 && Math.log2(value) % 1 === 0) return value;
  throw cursor.refuse("general.alignment", typeof value === "number" ? String(value) : typeof value, "a power of two");
}

/** Makes offsets absolute; tensors must be aligned, inside the file and apart from each other. */
function placeTensors(
  cursor: GgufCursor,
  relative: ReadonlyMap<string, GgufTensorInfo>,
  alignment: number,
  size: number,
): ReadonlyMap<string, GgufTensorInfo> {
  const dataStart = Math.ceil(cursor.position / alignment) * alignment;
  const tensors = new Map<string, GgufTensorInfo>();
  for (const info of relative.values()) {
    if (info.offset % alignment !== 0) {
      throw cursor.refuse(info.name, `at offset ${info.offset}`, `a multiple of ${alignment}`);
    }
    const offset = dataStart + info.offset;
    if (offset + info.length > size) {
      throw cursor.refuse(info.name, `ending at byte ${offset + info.length}`, `at most ${size}`);
    }
    tensors.set(info.name, { ...info, offset });
  }
  let end = dataStart;
  for (const info of [...tensors.values()].sort((a, b) => a.offset - b.offset || a.length - b.length)) {
    if (info.offset < end) {
      throw cursor.refuse(info.name, `at byte ${info.offset}`, `at least ${end}, apart from others`);
    }
    end = info.offset + info.length;
  }
  return tensors;
}
