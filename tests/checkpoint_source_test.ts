import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { INDEX_FILE, openCheckpoint, SINGLE_FILE } from "../src/formats/checkpoint.ts";
import { JsonNumber, type JsonValue } from "../src/formats/json.ts";
import { stringifyJson } from "../src/formats/json_writer.ts";
import { memoryFolder, memorySink, memorySource } from "../src/formats/memory.ts";
import { encodeSafetensors } from "../src/formats/safetensors_writer.ts";
import type { Folder, Source } from "../src/formats/source.ts";

const FIRST = "model-00001-of-00002.safetensors";
const SECOND = "model-00002-of-00002.safetensors";

function shard(names: Record<string, number>, metadata = { format: "pt" }): Uint8Array {
  const tensors = Object.entries(names).map(([name, value]) =>
    [name, { dtype: "U8", shape: [1], bytes: new Uint8Array([value]) }] as const
  );
  return encodeSafetensors(new Map(tensors), new Map(Object.entries(metadata)));
}

function folderOf(files: Record<string, Uint8Array | string>): Folder {
  const encode = (file: Uint8Array | string) => typeof file === "string" ? new TextEncoder().encode(file) : file;
  return memoryFolder(new Map(Object.entries(files).map(([name, file]) => [name, encode(file)])), "checkpoint");
}

function index(weightMap: Record<string, unknown>, extra = '"metadata": {"total_size": 3.0}'): string {
  return `{${extra}, "weight_map": ${JSON.stringify(weightMap)}}`;
}

const SHARDS = { [FIRST]: shard({ a: 1, b: 2 }), [SECOND]: shard({ c: 3 }) };
const WEIGHT_MAP = { a: FIRST, b: FIRST, c: SECOND };

test("openCheckpoint() opens one file", async () => {
  const path = new URL("./fixtures/base/llama/model.safetensors", import.meta.url);
  const checkpoint = await openCheckpoint(folderOf({ [SINGLE_FILE]: new Uint8Array(readFileSync(path)) }));
  assert.deepEqual(checkpoint.files, [SINGLE_FILE]);
  assert.equal(checkpoint.index, null);
  assert.equal(checkpoint.metadata.get(SINGLE_FILE)?.get("format"), "pt");
  const tensor = await checkpoint.read("model.norm.weight");
  assert.deepEqual([tensor.dtype, tensor.shape, tensor.bytes.length], ["F32", [48], 192]);
});

test("openCheckpoint() opens shards and keeps what is needed to write them again", async () => {
  const text = index(WEIGHT_MAP);
  const checkpoint = await openCheckpoint(folderOf({ ...SHARDS, [INDEX_FILE]: text }));
  assert.equal(checkpoint.name, "checkpoint");
  assert.deepEqual(checkpoint.files, [FIRST, SECOND]);
  assert.deepEqual([...checkpoint.tensors].map(([name, { file }]) => [name, file]), Object.entries(WEIGHT_MAP));
  assert.deepEqual((await checkpoint.read("c")).bytes, new Uint8Array([3]));
  const total = (checkpoint.index!.get("metadata") as Map<string, JsonValue>).get("total_size");
  assert.ok(total instanceof JsonNumber);
  const rewritten = stringifyJson(new Map(checkpoint.index!));
  assert.deepEqual(JSON.parse(rewritten), JSON.parse(text));
  assert.match(rewritten, /3\.0/);
});

test("openCheckpoint() prefers the single file, as transformers does", async () => {
  const files = { ...SHARDS, [INDEX_FILE]: index(WEIGHT_MAP), [SINGLE_FILE]: shard({ whole: 9 }) };
  assert.deepEqual([...(await openCheckpoint(folderOf(files))).tensors.keys()], ["whole"]);
});

test("openCheckpoint() refuses a folder without weights, or with pickled ones only", async () => {
  await assert.rejects(openCheckpoint(folderOf({ "config.json": "{}" })), {
    name: "MismatchError",
    code: "missing-file",
    missing: [SINGLE_FILE, INDEX_FILE],
  });
  await assert.rejects(openCheckpoint(folderOf({ "pytorch_model.bin": "x" })), {
    name: "FormatError",
    file: "pytorch_model.bin",
    message: /safe_serialization=True/,
  });
});

test("openCheckpoint() refuses unsafe shard names before it opens anything", async () => {
  const names = [
    "../model.safetensors",
    "..%2fmodel.safetensors",
    "%2e%2e/model.safetensors",
    "/etc/model.safetensors",
    "C:model.safetensors",
    "a\\b.safetensors",
    "a..b.safetensors",
    ".hidden.safetensors",
    "a\0.safetensors",
    "a b.safetensors",
    "model.safetensors\n",
    "model.bin",
    ".safetensors",
    `${"a".repeat(202)}.safetensors`,
    "https://example.com/a.safetensors",
    "",
    7,
    null,
    [FIRST],
  ];
  for (const name of names) {
    const opened: string[] = [];
    const inner = folderOf({ [INDEX_FILE]: index({ a: name }) });
    const folder: Folder = {
      name: "checkpoint",
      has: (file) => inner.has(file),
      open: (file): Source => (opened.push(file), inner.open(file)),
    };
    const refusal = { name: "FormatError", tensor: "a", field: "weight_map", file: INDEX_FILE };
    await assert.rejects(openCheckpoint(folder), refusal, JSON.stringify(name));
    assert.deepEqual(opened, [INDEX_FILE]);
  }
});

test("openCheckpoint() refuses an index that is not one", async () => {
  for (const text of ["[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": "x.safetensors"', "null"]) {
    await assert.rejects(openCheckpoint(folderOf({ [INDEX_FILE]: text })), { name: "FormatError", file: INDEX_FILE });
  }
  const twice = `{"weight_map": {"a": "${FIRST}", "a": "${SECOND}"}}`;
  await assert.rejects(openCheckpoint(folderOf({ ...SHARDS, [INDEX_FILE]: twice })), {
    name: "FormatError",
    field: "a",
  });
});

test("openCheckpoint() names a missing shard", async () => {
  const files = { [FIRST]: SHARDS[FIRST]!, [INDEX_FILE]: index(WEIGHT_MAP) };
  await assert.rejects(openCheckpoint(folderOf(files)), { name: "MismatchError", file: SECOND, missing: [SECOND] });
});

test("openCheckpoint() names both shards that hold the same tensor", async () => {
  const files = { ...SHARDS, [SECOND]: shard({ b: 2, c: 3 }), [INDEX_FILE]: index(WEIGHT_MAP) };
  await assert.rejects(openCheckpoint(folderOf(files)), {
    name: "MismatchError",
    tensor: "b",
    found: [FIRST, SECOND],
    message: /00001-of.*00002-of/,
  });
});

test("openCheckpoint() names a tensor that is listed but absent, or in another shard", async () => {
  const absent = { ...SHARDS, [INDEX_FILE]: index({ ...WEIGHT_MAP, d: SECOND }) };
  const missing = { name: "MismatchError", tensor: "d", file: SECOND, missing: ["d"] };
  await assert.rejects(openCheckpoint(folderOf(absent)), missing);
  const moved = { ...SHARDS, [INDEX_FILE]: index({ ...WEIGHT_MAP, b: SECOND }) };
  const other = { name: "MismatchError", tensor: "b", found: FIRST, expected: SECOND };
  await assert.rejects(openCheckpoint(folderOf(moved)), other);
});

test("openCheckpoint() names a tensor that the index does not list", async () => {
  const files = { ...SHARDS, [INDEX_FILE]: index({ a: FIRST, c: SECOND }) };
  await assert.rejects(openCheckpoint(folderOf(files)), { name: "MismatchError", tensor: "b", unexpected: ["b"] });
});

test("openCheckpoint() caps the shards, the index and the headers", async () => {
  const many = Object.fromEntries(Array.from({ length: 4097 }, (_, i) => [`t${i}`, `s${i}.safetensors`]));
  const shards = { name: "LimitError", limit: 4096, value: 4097 };
  await assert.rejects(openCheckpoint(folderOf({ [INDEX_FILE]: index(many) })), shards);
  const single = folderOf({ [SINGLE_FILE]: SHARDS[FIRST]! });
  await assert.rejects(openCheckpoint(single, { maxHeaderBytes: 8 }), {
    name: "LimitError",
    file: SINGLE_FILE,
    limit: 8,
  });
  const large: Folder = {
    name: "large",
    has: (file) => Promise.resolve(file === INDEX_FILE),
    open: (name) => ({
      name,
      size: () => Promise.resolve(64_000_001),
      read: () => Promise.reject(new Error("read")),
    }),
  };
  await assert.rejects(openCheckpoint(large), { name: "LimitError", file: INDEX_FILE, limit: 64_000_000 });
});

test("Checkpoint.read() refuses an unknown name", async () => {
  const checkpoint = await openCheckpoint(folderOf({ [SINGLE_FILE]: SHARDS[FIRST]! }));
  await assert.rejects(checkpoint.read("z"), { name: "MismatchError", tensor: "z", missing: ["z"] });
  await assert.rejects(checkpoint.read("__proto__"), { name: "MismatchError" });
});

test("memorySource() copies what it reads and refuses ranges beyond the end", async () => {
  const bytes = new Uint8Array([1, 2, 3, 4]);
  const source = memorySource("a", bytes);
  const read = await source.read(1, 2);
  bytes.fill(0);
  assert.deepEqual(read, new Uint8Array([2, 3]));
  assert.equal(await source.size(), 4);
  for (const [offset, length] of [[3, 2], [-1, 1], [5, 0], [0, 5], [0, -1]] as const) {
    await assert.rejects(source.read(offset, length), { name: "IntegrityError", file: "a" });
  }
  assert.throws(() => memorySource("a", "text" as never), TypeError);
});

test("memoryFolder() lists its files, and says on first use that one is missing", async () => {
  const folder = memoryFolder(new Map([["b", new Uint8Array()], ["a", new Uint8Array()]]));
  assert.equal(folder.name, "files held in memory");
  assert.deepEqual(await folder.list!(), ["a", "b"]);
  assert.equal(await folder.has("c"), false);
  const missing = { name: "MismatchError", code: "missing-file", missing: ["c"] };
  await assert.rejects(folder.open("c").size(), missing);
  await assert.rejects(folder.open("c").read(0, 0), missing);
  const unsafe = ["", ".", "..", "a/b", "a\\b", "a%2fb", "a:b", "a\0", "a..b", "\ud800", " a", "a.", "x".repeat(256)];
  for (const name of unsafe) assert.throws(() => folder.open(name), { name: "FormatError", field: "file name" });
});

test("memorySink() shows a file only once it is committed", async () => {
  const sink = memorySink();
  const kept = await sink.create("a");
  const chunk = new Uint8Array([1, 2]);
  await kept.write(chunk);
  chunk.fill(9);
  await kept.write(new Uint8Array([3]));
  assert.equal(sink.files.size, 0);
  await kept.commit();
  assert.deepEqual(sink.files.get("a"), new Uint8Array([1, 2, 3]));
  const dropped = await sink.create("b");
  await dropped.write(chunk);
  await dropped.abort();
  assert.deepEqual([...sink.files.keys()], ["a"]);
  await assert.rejects(sink.create("../a"), { name: "FormatError" });
});

test("openCheckpoint() refuses shards whose names differ in case only, which some systems take for one file", async () => {
  const [lower, upper] = ["part.safetensors", "PART.safetensors"];
  const files = { [lower]: shard({ a: 1 }), [upper]: shard({ b: 2 }), [INDEX_FILE]: index({ a: lower, b: upper }) };
  await assert.rejects(openCheckpoint(folderOf(files)), {
    name: "FormatError",
    field: "weight_map",
    message: /"PART.safetensors" and "part.safetensors"/,
  });
});
