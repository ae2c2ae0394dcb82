/**
 * A safetensors checkpoint in a folder: one file, or shards with an index.
 *
 * @module
 */

import { FormatError, LimitError, MismatchError } from "../errors.ts";
import type { StoredTensor } from "./dtype.ts";
import type { JsonValue } from "./json.ts";
import { readJson } from "./json_file.ts";
import { quote } from "./quote.ts";
import { readSafetensorsHeader, readTensor, type SafetensorsOptions, type TensorInfo } from "./safetensors.ts";
import type { Folder, ReadOptions, Source } from "./source.ts";

/** Where one tensor lies in a checkpoint. */
export interface CheckpointTensor extends TensorInfo {
  /** The file that holds it. */
  readonly file: string;
}

/** All tensors of a checkpoint, whichever files hold them. */
export interface Checkpoint {
  /** Name of the folder. */
  readonly name: string;
  /** The weight files, sorted. */
  readonly files: readonly string[];
  /** The tensors by name, file after file. */
  readonly tensors: ReadonlyMap<string, CheckpointTensor>;
  /** The metadata of each file's header. */
  readonly metadata: ReadonlyMap<string, ReadonlyMap<string, string>>;
  /** The whole index with its numbers' text, for writing it again; null for a single file. */
  readonly index: ReadonlyMap<string, JsonValue> | null;
  /**
   * Reads one tensor.
   *
   * @throws {MismatchError} If there is no tensor of that name.
   */
  read(name: string, options?: ReadOptions): Promise<StoredTensor>;
}

/** File name of a checkpoint that is one file. */
export const SINGLE_FILE = "model.safetensors";
/** File name of the index of a sharded checkpoint. */
export const INDEX_FILE = "model.safetensors.index.json";

/** What tells an adapter's folder from a model's. */
const ADAPTER_FILE = "adapter_config.json";
const MAX_INDEX_BYTES = 64_000_000;
const MAX_SHARDS = 4096;
const SHARD_NAME = /^[A-Za-z0-9][A-Za-z0-9._-]{0,200}\.safetensors$/;
const PICKLE_FILES = ["pytorch_model.bin", "pytorch_model.bin.index.json"];

/**
 * Opens the checkpoint of a folder: `model.safetensors`, or else the shards of `model.safetensors.index.json`.
 *
 * Reads every header and compares the index with it before any tensor is read.
 *
 * @param folder The folder.
 * @param options The header cap and a signal.
 * @returns The checkpoint.
 * @throws {FormatError} If a file is malformed, a shard's name is unsafe, or the folder holds pickled weights only.
 * @throws {MismatchError} If there is no checkpoint, a shard is missing, or shards and index disagree.
 * @throws {LimitError} If the index or a header passes its cap.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * import { memoryFolder } from "./memory.ts";
 * import { encodeSafetensors } from "./safetensors_writer.ts";
 * const file = encodeSafetensors(new Map([["w", { dtype: "U8", shape: [1], bytes: new Uint8Array([7]) }]]));
 * const checkpoint = await openCheckpoint(memoryFolder(new Map([["model.safetensors", file]])));
 * assert.deepEqual((await checkpoint.read("w")).bytes, new Uint8Array([7]));
 * ```
 */
export async function openCheckpoint(folder: Folder, options: SafetensorsOptions = {}): Promise<Checkpoint> {
  if (await folder.has(SINGLE_FILE, options)) return await openFiles(folder, [SINGLE_FILE], null, options);
  if (await folder.has(INDEX_FILE, options)) return await openSharded(folder, options);
  for (const pickle of PICKLE_FILES) {
    if (await folder.has(pickle, options)) {
      throw new FormatError(
        `Cannot open ${quote(pickle)} in ${quote(folder.name)}: expected safetensors, made by ` +
          "`model.save_pretrained(folder, safe_serialization=True)`",
        { file: pickle, expected: SINGLE_FILE },
      );
    }
  }
  const what = await folder.has(ADAPTER_FILE, options) ? ", which holds an adapter" : " without weights";
  throw new MismatchError(
    `Cannot open a checkpoint in ${quote(folder.name)}${what}: expected ${SINGLE_FILE} or ${INDEX_FILE}`,
    { code: "missing-file", file: folder.name, missing: [SINGLE_FILE, INDEX_FILE] },
  );
}

async function openSharded(folder: Folder, options: SafetensorsOptions): Promise<Checkpoint> {
  const source = folder.open(INDEX_FILE);
  const index = await readJson(source, { ...options, maxBytes: MAX_INDEX_BYTES, keepNumberText: true });
  const file = source.name;
  const weightMap = index instanceof Map ? index.get("weight_map") : undefined;
  if (!(index instanceof Map) || !(weightMap instanceof Map)) {
    throw new FormatError(`Cannot read ${quote(file)} without a weight map: expected an object "weight_map"`, {
      file,
      field: "weight_map",
      expected: "an object",
    });
  }
  const wanted = new Map<string, string>();
  for (const [tensor, shard] of weightMap) wanted.set(tensor, checkShardName(file, tensor, shard));
  const shards = [...new Set(wanted.values())].sort();
  if (shards.length > MAX_SHARDS) {
    throw new LimitError(`Cannot open ${quote(file)} with ${shards.length} shards: expected at most ${MAX_SHARDS}`, {
      file,
      field: "weight_map",
      limit: MAX_SHARDS,
      value: shards.length,
    });
  }
  checkTwins(file, shards);
  await checkPresence(folder, shards, options);
  const checkpoint = await openFiles(folder, shards, index, options);
  compareWithIndex(folder.name, wanted, checkpoint.tensors);
  return checkpoint;
}

function checkShardName(file: string, tensor: string, shard: JsonValue): string {
  if (typeof shard === "string" && SHARD_NAME.test(shard) && !shard.includes("..")) return shard;
  const found = typeof shard === "string" ? quote(shard) : "no text";
  throw new FormatError(
    `Cannot read ${quote(file)} with ${found} as the shard of ${quote(tensor)}: expected a plain .safetensors name`,
    { file, tensor, field: "weight_map", found: shard, expected: SHARD_NAME.source },
  );
}

/** A merge writes files of these names, perhaps where two of them are one file. */
function checkTwins(file: string, shards: readonly string[]): void {
  const seen = new Map<string, string>();
  for (const shard of shards) {
    const twin = seen.get(shard.toLowerCase());
    seen.set(shard.toLowerCase(), shard);
    if (twin === undefined) continue;
    throw new FormatError(
      `Cannot read ${quote(file)} with shards ${quote(twin)} and ${
        quote(shard)
      }: expected names that differ in more than case`,
      { file, field: "weight_map", found: [twin, shard] },
    );
  }
}

async function checkPresence(folder: Folder, shards: readonly string[], options: ReadOptions): Promise<void> {
  const missing: string[] = [];
  for (const shard of shards) {
    if (!await folder.has(shard, options)) missing.push(shard);
  }
  if (missing.length === 0) return;
  throw new MismatchError(
    `Cannot open ${quote(folder.name)} with ${missing.length} of ${shards.length} shards missing: expected ${
      quote(missing[0]!)
    }`,
    { code: "missing-file", file: missing[0]!, missing },
  );
}

async function openFiles(
  folder: Folder,
  files: readonly string[],
  index: ReadonlyMap<string, JsonValue> | null,
  options: SafetensorsOptions,
): Promise<Checkpoint> {
  const sources = new Map<string, Source>();
  const tensors = new Map<string, CheckpointTensor>();
  const metadata = new Map<string, ReadonlyMap<string, string>>();
  for (const file of files) {
    const source = folder.open(file);
    const header = await readSafetensorsHeader(source, options);
    sources.set(file, source);
    metadata.set(file, header.metadata);
    for (const [name, info] of header.tensors) {
      const other = tensors.get(name)?.file;
      if (other !== undefined) {
        throw new MismatchError(
          `Cannot open tensor ${quote(name)} found in both ${quote(other)} and ${quote(file)}: expected one shard`,
          { file, tensor: name, found: [other, file], unexpected: [name] },
        );
      }
      tensors.set(name, { ...info, file });
    }
  }
  return {
    name: folder.name,
    files,
    tensors,
    metadata,
    index,
    read: (name, readOptions) => readNamed(folder.name, sources, tensors.get(name), name, readOptions),
  };
}

async function readNamed(
  checkpoint: string,
  sources: ReadonlyMap<string, Source>,
  tensor: CheckpointTensor | undefined,
  name: string,
  options?: ReadOptions,
): Promise<StoredTensor> {
  if (tensor === undefined) {
    throw new MismatchError(`Cannot read tensor ${quote(name)} of ${quote(checkpoint)}: there is no such tensor`, {
      file: checkpoint,
      tensor: name,
      missing: [name],
    });
  }
  return await readTensor(sources.get(tensor.file)!, tensor, options);
}

function compareWithIndex(
  folder: string,
  wanted: ReadonlyMap<string, string>,
  found: ReadonlyMap<string, CheckpointTensor>,
): void {
  for (const [tensor, shard] of wanted) {
    const file = found.get(tensor)?.file;
    if (file === shard) continue;
    const state = file === undefined ? "absent from its shard" : `in ${quote(file)}`;
    throw new MismatchError(
      `Cannot open ${quote(folder)} with tensor ${quote(tensor)} ${state}: ${INDEX_FILE} names ${quote(shard)}`,
      { file: shard, tensor, found: file, expected: shard, missing: [tensor] },
    );
  }
  for (const [tensor, { file }] of found) {
    if (wanted.has(tensor)) continue;
    throw new MismatchError(
      `Cannot open ${quote(folder)} with tensor ${quote(tensor)} in ${quote(file)}: ${INDEX_FILE} does not list it`,
      { file, tensor, unexpected: [tensor] },
    );
  }
}
