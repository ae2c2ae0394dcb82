/**
 * Files of `torch.save`: `adapter_model.bin`, `.pt`. Read as data by a restricted reader; nothing in them is executed.
 *
 * @module
 */

import { FormatError, LimitError } from "../errors.ts";
import { bitsPerElement, type StoredTensor } from "./dtype.ts";
import { parseJson } from "./json.ts";
import { type PickledStorage, type PickledTensor, readPickledTensors } from "./pickle.ts";
import { quote } from "./quote.ts";
import { readExactly, type ReadOptions, type Source } from "./source.ts";
import { decodeUtf8 } from "./utf8.ts";
import { readZipDirectory, readZipEntry, type ZipEntry } from "./zip.ts";

/** Options of {@linkcode readTorch}. */
export interface TorchOptions extends ReadOptions {
  /** Longest pickle in bytes; 25,000,000 if absent. */
  readonly maxPickleBytes?: number;
  /** Most tensors; 16,384 if absent. */
  readonly maxTensors?: number;
}

const DEFAULT_MAX_PICKLE = 25_000_000;
/** What the tensors may take beyond the size of the file, where the same elements are asked for again and again. */
const HEAD_ROOM = 2 ** 26;
const PICKLE = "data.pkl";
/** Entry with texts about the tensors, which torch passes over as it does every entry that the pickle does not name. */
export const METADATA = "lowrank/metadata.json";
/** The pickled magic number with which the streams of torch before 1.6 begin. */
const LEGACY_START = [0x80, 0x02, 0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9];

/**
 * Reads a dict of tensors that `torch.save` wrote (torch 1.6 and later), as data: the pickle in it is interpreted by a
 * closed list of opcodes, globals other than those of tensors are refused by name, and nothing is executed.
 *
 * @param source The file.
 * @param options Caps and a signal.
 * @returns The tensors by name, in the dict's order, row-major; tensors of one storage may share memory.
 * @throws {FormatError} If the file is anything but that; the error names opcode, position and global.
 * @throws {LimitError} If a cap is passed, or the tensors take more than the file's size + 64 MiB.
 *
 * @example
 * ```ts
 * import { readTorch } from "@lowrank/lora/adapters";
 * import { folder } from "@lowrank/lora/fs";
 * import assert from "node:assert/strict";
 *
 * const tensors = await readTorch(folder("tests/fixtures/llama-bin/adapter").open("adapter_model.bin"));
 * for (const { dtype } of tensors.values()) assert.equal(dtype, "F32");
 * ```
 */
export async function readTorch(
  source: Source,
  options: TorchOptions = {},
): Promise<ReadonlyMap<string, StoredTensor>> {
  options.signal?.throwIfAborted();
  await refuseLegacy(source, options);
  const entries = await readZipDirectory(source, options);
  const root = findRoot(source, entries);
  await checkByteOrder(source, entries.get(`${root}/byteorder`), options);
  const pickle = await readText(source, entries.get(`${root}/${PICKLE}`)!, options);
  const { maxTensors } = options;
  const tensors = readPickledTensors(pickle, { file: source.name, ...(maxTensors !== undefined && { maxTensors }) });
  const storages = new Map([...entries].map(([name, entry]) => [name.slice(root.length + 1), entry]));
  checkStorages(source, storages, tensors);
  checkTotal(source, tensors, await source.size(options));
  const read = new Map<string, StoredTensor>();
  for (const [key, group] of Map.groupBy(tensors, ([, { storage }]) => storage.key)) {
    const bytes = await readZipEntry(source, storages.get(`data/${key}`)!, options);
    for (const [name, tensor] of group) read.set(name, viewStorage(tensor, bytes));
  }
  return new Map(Array.from(tensors.keys(), (name) => [name, read.get(name)!]));
}

async function refuseLegacy(source: Source, options: ReadOptions): Promise<void> {
  if (await source.size(options) < LEGACY_START.length) return;
  const start = await readExactly(source, 0, LEGACY_START.length, options);
  if (!LEGACY_START.every((byte, i) => byte === start[i])) return;
  const remedy = `torch.save(torch.load("${source.name}", weights_only=True), "${source.name}")`;
  throw new FormatError(
    `Cannot read ${quote(source.name)} as a stream of torch before 1.6: expected a zip file, made where you trust it ` +
      `by: ${remedy}`,
    { code: "torch-legacy", file: source.name, found: "legacy stream", expected: "zip file" },
  );
}

/** All entries lie in one folder, which has the name that the file once had. */
function findRoot(source: Source, entries: ReadonlyMap<string, ZipEntry>): string {
  const roots = new Set([...entries.keys()].map((name) => name.slice(0, Math.max(0, name.indexOf("/")))));
  const [root = ""] = roots;
  if (roots.size === 1 && entries.has(`${root}/${PICKLE}`) && !entries.has(`${root}/constants.pkl`)) return root;
  const found = entries.has(`${root}/constants.pkl`) ? "a program (TorchScript)" : `${entries.size} zip entries`;
  const expected = `one folder with ${quote(PICKLE)}, as torch.save writes it`;
  throw refuse(source, { found, expected });
}

async function checkByteOrder(source: Source, entry: ZipEntry | undefined, options: ReadOptions): Promise<void> {
  // torch before 2.1 wrote none, on little-endian machines.
  if (!entry) return;
  const bytes = entry.size > 6 ? new Uint8Array() : await readZipEntry(source, entry, options);
  const found = String.fromCharCode(...bytes);
  if (found !== "little") throw refuse(source, { field: "byteorder", found: quote(found), expected: '"little"' });
}

/**
 * Reads the texts that `encodeTorch()` put beside the tensors.
 *
 * @param source The file.
 * @param options Caps, of which that on the pickle counts, and a signal.
 * @returns The texts by key; none where the file has none.
 * @throws {FormatError} If the file is malformed, or they are no JSON object of texts.
 * @throws {LimitError} If a cap is passed.
 */
export async function readTorchMetadata(
  source: Source,
  options: TorchOptions = {},
): Promise<ReadonlyMap<string, string>> {
  const entries = await readZipDirectory(source, options);
  const entry = entries.get(`${findRoot(source, entries)}/${METADATA}`);
  if (!entry) return new Map();
  const file = `${METADATA} of ${source.name}`;
  const json = parseJson(decodeUtf8(await readText(source, entry, options), file), { file, maxDepth: 2 });
  const texts = new Map<string, string>();
  for (const [key, value] of json instanceof Map ? json : []) if (typeof value === "string") texts.set(key, value);
  if (json instanceof Map && texts.size === json.size) return texts;
  throw refuse(source, { field: METADATA, found: "that is no object of texts", expected: "one" });
}

async function readText(source: Source, entry: ZipEntry, options: TorchOptions): Promise<Uint8Array> {
  const limit = options.maxPickleBytes ?? DEFAULT_MAX_PICKLE;
  if (entry.size <= limit) return await readZipEntry(source, entry, options);
  const name = entry.name.slice(entry.name.indexOf("/") + 1);
  const what = name === PICKLE ? "a pickle" : quote(name);
  const message = `Cannot read ${quote(source.name)} with ${what} of ${entry.size} bytes: expected at most ${limit}`;
  throw new LimitError(message, { file: source.name, field: name, limit, value: entry.size });
}

function checkStorages(
  source: Source,
  entries: ReadonlyMap<string, ZipEntry>,
  tensors: ReadonlyMap<string, PickledTensor>,
): void {
  for (const [tensor, { storage }] of tensors) {
    const entry = entries.get(`data/${storage.key}`);
    const expected = storage.length * width(storage);
    if (entry?.size === expected) continue;
    const found = `${entry ? `${entry.size} bytes in` : "no"} entry ${quote(`data/${storage.key}`)}`;
    const wanted = `${expected} bytes, ${storage.length} of ${storage.dtype}`;
    throw refuse(source, { tensor, found, expected: wanted });
  }
}

/** Runs of a storage are kept with it, once; other views are copied, and may name the same elements again and again. */
function checkTotal(source: Source, tensors: ReadonlyMap<string, PickledTensor>, size: number): void {
  const kept = new Map<string, number>();
  let total = 0;
  for (const tensor of tensors.values()) {
    const { key, length } = tensor.storage;
    if (isContiguous(tensor)) kept.set(key, length * width(tensor.storage));
    else total += byteLength(tensor);
  }
  for (const bytes of kept.values()) total += bytes;
  const limit = size + HEAD_ROOM;
  if (total <= limit) return;
  const message = `Cannot read ${quote(source.name)} with tensors of ${total} bytes`;
  const details = { code: "torch", file: source.name, field: "strides", limit, value: total };
  throw new LimitError(`${message}: expected at most ${limit}, the size of the file and 64 MiB`, details);
}

function viewStorage(tensor: PickledTensor, bytes: Uint8Array): StoredTensor {
  const { storage: { dtype }, offset, shape } = tensor;
  if (!isContiguous(tensor)) return { dtype, shape, bytes: reorder(tensor, bytes) };
  const start = offset * width(tensor.storage);
  return { dtype, shape, bytes: bytes.subarray(start, start + byteLength(tensor)) };
}

function width(storage: PickledStorage): number {
  return bitsPerElement(storage.dtype) / 8;
}

/** A stride of 0 repeats elements, so this can be any size: a number that is large enough when it is not exact. */
function byteLength({ shape, storage }: PickledTensor): number {
  return shape.includes(0) ? 0 : shape.reduce((product, length) => product * length, width(storage));
}

function isContiguous({ shape, strides }: PickledTensor): boolean {
  let expected = 1;
  for (let dimension = shape.length - 1; dimension >= 0; dimension--) {
    if (shape[dimension] === 0) return true;
    if (shape[dimension] !== 1 && strides[dimension] !== expected) return false;
    expected *= shape[dimension]!;
  }
  return true;
}

/** Copies the elements of a strided view in row-major order. */
function reorder(tensor: PickledTensor, bytes: Uint8Array): Uint8Array {
  const { shape, strides, storage, offset } = tensor;
  const size = width(storage);
  const result = new Uint8Array(byteLength(tensor));
  const index = shape.map(() => 0);
  let from = offset;
  for (let to = 0; to < result.length; to += size) {
    for (let i = 0; i < size; i++) result[to + i] = bytes[from * size + i]!;
    for (let dimension = shape.length - 1; dimension >= 0; dimension--) {
      from += strides[dimension]!;
      if (++index[dimension]! < shape[dimension]!) break;
      from -= shape[dimension]! * strides[dimension]!;
      index[dimension] = 0;
    }
  }
  return result;
}

function refuse(
  source: Source,
  at: { readonly tensor?: string; readonly field?: string; readonly found: string; readonly expected: string },
): FormatError {
  const what = at.tensor === undefined ? quote(source.name) : `tensor ${quote(at.tensor)} of ${quote(source.name)}`;
  const found = at.field === undefined ? at.found : `${at.field} ${at.found}`;
  return new FormatError(`Cannot read ${what} with ${found}: expected ${at.expected}`, {
    file: source.name,
    code: "torch",
    ...at,
  });
}
