/**
 * Fuzz targets of the file formats: safetensors, shard indexes, JSON, GGUF, and what torch.save writes.
 *
 * @module
 */
import assert from "node:assert/strict";
import fc from "fast-check";
import { FormatError } from "../src/errors.ts";
import { openCheckpoint } from "../src/formats/checkpoint.ts";
import { concat } from "../src/formats/concat.ts";
import { bitsPerElement, type StoredTensor } from "../src/formats/dtype.ts";
import { readGguf, readGgufTensor } from "../src/formats/gguf.ts";
import { parseJson } from "../src/formats/json.ts";
import { memoryFolder, memorySource } from "../src/formats/memory.ts";
import { readPickledTensors } from "../src/formats/pickle.ts";
import { readSafetensorsHeader, readTensor } from "../src/formats/safetensors.ts";
import { readTorch } from "../src/formats/torch.ts";
import { type Edit, editBytes, editFields, edits, editTree, EXTREMES, parseTree, stringifyTree } from "./fuzz_edits.ts";
import type { Target } from "./fuzz_run.ts";
import { type EndChange, type EntryChange, op, orderedDict, zip } from "./torch_writer.ts";

const encode = (text: string): Uint8Array => new TextEncoder().encode(text);
const u32 = (value: number): Uint8Array => new Uint8Array(Uint32Array.of(value).buffer);
const u64 = (value: number): Uint8Array => new Uint8Array(BigUint64Array.of(BigInt(value)).buffer);

/** What a target with a structure and bytes changes. */
interface FileEdits {
  readonly structure: readonly Edit[];
  readonly bytes: readonly Edit[];
}

/** Mostly the structure: bytes are noise that the first check finds. */
const FILE_EDITS: fc.Arbitrary<FileEdits> = fc.record({
  structure: edits(),
  bytes: fc.oneof({ weight: 3, arbitrary: fc.constant([]) }, { weight: 1, arbitrary: edits() }),
});

/** A safetensors file of a header's text. */
export function safetensorsFile(header: string, data: Uint8Array): Uint8Array {
  const text = encode(header);
  return concat([u64(text.length), text, data]);
}

/** Holds when the bytes of a tensor fill its shape. */
function assertFilled({ dtype, shape, bytes }: StoredTensor): void {
  const bits = shape.reduce((product, length) => product * length, bitsPerElement(dtype));
  assert.equal(8 * bytes.length, bits);
}

const HEADER = parseTree(JSON.stringify({
  __metadata__: { format: "pt" },
  a: { dtype: "F32", shape: [2, 3], data_offsets: [0, 24] },
  b: { dtype: "BF16", shape: [3], data_offsets: [24, 30] },
  c: { dtype: "F4", shape: [2, 2], data_offsets: [30, 32] },
  d: { dtype: "I64", shape: [0, 5], data_offsets: [32, 32] },
}));

const safetensors: Target<FileEdits> = {
  name: "safetensors",
  edits: FILE_EDITS,
  build({ structure, bytes }) {
    const file = safetensorsFile(stringifyTree(editTree(HEADER, structure)), new Uint8Array(32));
    return new Map([["a.safetensors", editBytes(file, bytes)]]);
  },
  async read(files) {
    const source = memorySource("a.safetensors", files.get("a.safetensors")!);
    const { tensors } = await readSafetensorsHeader(source);
    for (const info of tensors.values()) assertFilled(await readTensor(source, info));
  },
};

const SHARD = "model-00001-of-00002.safetensors";
const SHARDS = new Map([
  [SHARD, safetensorsFile('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', new Uint8Array(8))],
  [
    "model-00002-of-00002.safetensors",
    safetensorsFile('{"b":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}', new Uint8Array(3)),
  ],
]);
const SHARD_INDEX = parseTree(JSON.stringify({
  metadata: { total_size: 11 },
  weight_map: { a: SHARD, b: "model-00002-of-00002.safetensors" },
}));

const shardIndex: Target<FileEdits> = {
  name: "shard index",
  edits: FILE_EDITS,
  build({ structure, bytes }) {
    const index = editBytes(encode(stringifyTree(editTree(SHARD_INDEX, structure))), bytes);
    return new Map([...SHARDS, ["model.safetensors.index.json", index]]);
  },
  async read(files) {
    const checkpoint = await openCheckpoint(memoryFolder(files));
    for (const name of checkpoint.tensors.keys()) assertFilled(await checkpoint.read(name));
  },
};

const DOCUMENT = parseTree('{"a":[1,-2.5e3,true,null,"\\u00e9\\n",{"b":{}}],"c":"d","e":9007199254740991}');

const json: Target<FileEdits> = {
  name: "JSON",
  edits: FILE_EDITS,
  build({ structure, bytes }) {
    return new Map([["a.json", editBytes(encode(stringifyTree(editTree(DOCUMENT, structure))), bytes)]]);
  },
  // What is taken, JSON.parse takes too.
  read(files) {
    const text = new TextDecoder("utf-8", { ignoreBOM: true }).decode(files.get("a.json"));
    if (parseJson(text, { file: "a.json", maxDepth: 64 }) !== undefined) JSON.parse(text);
    return Promise.resolve();
  },
};

const ggufString = (text: string): Uint8Array[] => [u64(encode(text).length), encode(text)];
const GGUF_TENSORS: readonly (readonly [type: number, shape: readonly number[], bytes: number])[] = [
  [0, [4, 2], 32],
  [8, [32], 34],
  [12, [256], 144],
  [14, [256, 1], 210],
];

function ggufFields(): Uint8Array[] {
  const fields = [encode("GGUF"), u32(3), u64(GGUF_TENSORS.length), u64(4)];
  fields.push(...ggufString("general.architecture"), u32(8), ...ggufString("llama"));
  fields.push(...ggufString("general.alignment"), u32(4), u32(32), ...ggufString("x"), u32(6), u32(0));
  fields.push(...ggufString("tokens"), u32(9), u32(8), u64(2), ...ggufString("a"), ...ggufString("bc"));
  let offset = 0;
  for (const [index, [type, shape, bytes]] of GGUF_TENSORS.entries()) {
    fields.push(...ggufString(`blk.${index}.attn_q.weight`), u32(shape.length), ...shape.map(u64), u32(type));
    fields.push(u64(offset));
    offset += Math.ceil(bytes / 32) * 32;
  }
  const header = fields.reduce((sum, { length }) => sum + length, 0);
  return [...fields, new Uint8Array(-header & 31), new Uint8Array(offset)];
}

const GGUF_FIELDS = ggufFields();
const GGUF_POOL = [...[0, 1, 2, 4, 7, 8, 9, 10, 12, 30, 31, 255].map(u32), u64(1), u64(2 ** 40), ...ggufString("q")];

const gguf: Target<FileEdits> = {
  name: "GGUF",
  edits: FILE_EDITS,
  build({ structure, bytes }) {
    return new Map([["a.gguf", editBytes(concat(editFields(GGUF_FIELDS, structure, GGUF_POOL)), bytes)]]);
  },
  async read(files) {
    const source = memorySource("a.gguf", files.get("a.gguf")!);
    const { tensors } = await readGguf(source);
    for (const info of tensors.values()) assertFilled(await readGgufTensor(source, info));
  },
};

/** What a pickle says of a tensor and its storage. */
interface View {
  readonly length: number;
  readonly offset: number;
  readonly shape: readonly number[];
  readonly strides: readonly number[];
}

const HONEST_VIEW: View = { length: 6, offset: 0, shape: [2, 3], strides: [3, 1] };
/** Sizes of bombs, of views that repeat elements, and of products that no number holds. */
const SIZES = [0, 0, 1, 1, 2, 3, 6, 7, 2 ** 13, 2 ** 20, 2 ** 31, 2 ** 32, 2 ** 53 - 1];

function viewOf(list: readonly Edit[]): View {
  const view = { ...HONEST_VIEW, shape: [2, 3], strides: [3, 1] };
  for (const { kind, at, choice } of list) {
    const size = SIZES[choice % SIZES.length]!;
    if (kind % 8 === 0) view.length = size;
    else if (kind % 8 === 1) view.offset = size;
    else if (kind % 8 < 5) view.shape[at % 2] = size;
    else view.strides[at % 2] = size;
  }
  return view;
}

function pickledTensor(name: string, key: string, { length, offset, shape, strides }: View): Uint8Array[] {
  const whole = (value: number) => value < 2 ** 31 ? op.int(value) : op.long(BigInt(value));
  const storage = [op.mark, op.text("storage"), op.global("torch", "FloatStorage"), op.put(Number(key))];
  storage.push(op.text(key), op.text("cpu"), whole(length), op.tuple, op.persistentId);
  const sizes = [whole(offset), op.mark, ...shape.map(whole), op.tuple, op.mark, ...strides.map(whole), op.tuple];
  const rest = [op.false, op.global("collections", "OrderedDict"), op.emptyTuple, op.reduce];
  const rebuild = op.global("torch._utils", "_rebuild_tensor_v2");
  return [op.text(name), rebuild, op.mark, ...storage, ...sizes, ...rest, op.tuple, op.reduce];
}

function pickleFields(view = HONEST_VIEW): Uint8Array[] {
  const tensors = [...pickledTensor("a.lora_A", "0", HONEST_VIEW), ...pickledTensor("a.lora_B", "1", view)];
  return [op.proto, op.dict, op.mark, ...tensors, op.setItems, op.stop];
}

const PICKLE = pickleFields();
const EVIL_GLOBALS = [
  ...["os system", "posix system", "builtins eval", "builtins exec", "__builtin__ getattr", "subprocess Popen"],
  ...["torch.hub load", "torch._utils _rebuild_qtensor", "collections Counter", "torch load", "torch.storage Storage"],
].map((path) => path.split(" ") as [string, string]);
/** Whatever runs code where pickles are trusted, with what it needs on the stack; the last opcode is the one refused. */
const EVIL: readonly (readonly Uint8Array[])[] = [
  ...EVIL_GLOBALS.map(([module, name]) => [op.global(module, name)]),
  ...EVIL_GLOBALS.map(([module, name]) => [op.text(module), op.text(name), op.raw(0x93)]),
  ...EVIL_GLOBALS.map(([module, name]) => [op.mark, op.text("id"), encode(`i${module}\n${name}\n`)]),
  [op.text("id"), op.mark, op.raw(0x6f)], // OBJ
  [op.text("id"), op.emptyTuple, op.raw(0x81)], // NEWOBJ
  [op.text("id"), op.emptyTuple, op.dict, op.raw(0x92)], // NEWOBJ_EX
  [op.raw(0x82, 1)], // EXT1
  [op.raw(0x84, 1, 0, 0, 0)], // EXT4
  [op.text("id"), op.mark, op.text("x"), op.tuple, op.reduce],
  [op.global("torch", "FloatStorage"), op.emptyTuple, op.reduce],
  [op.dict, op.dict, op.build],
  [op.text("os"), op.persistentId],
  [encode("Pos\n")], // PERSID
];
const OPCODES = [
  ...[op.mark, op.tuple, op.emptyTuple, op.dict, op.setItem, op.setItems, op.reduce, op.build, op.persistentId],
  ...[op.none, op.true, op.stop, op.raw(0x5d), op.raw(0x61), op.raw(0x65), op.raw(0x85), op.raw(0x87), op.raw(0x30)],
  ...[op.int(-1), op.long(2n ** 53n), op.long(-1n), op.text("x".repeat(5000)), op.get(0), op.get(2 ** 31), op.put(7)],
  ...EVIL.flat(),
  orderedDict(),
];

function torchZip(pickle: Uint8Array, change: readonly Edit[] = []): Uint8Array {
  const entries = [
    ["a/data.pkl", pickle],
    ["a/byteorder", encode("little")],
    ["a/data/0", new Uint8Array(24)],
    ["a/data/1", new Uint8Array(24)],
  ] as const;
  const changes = new Map<number, EntryChange>();
  let end: EndChange = {};
  for (const { kind, at, choice } of change) {
    const value = EXTREMES[choice % EXTREMES.length]!;
    const number = Number(value & 0xffff_ffffn);
    const field = (["method", "flags", "size", "storedSize", "localSize", "offset", "localMethod"] as const)[kind % 7]!;
    if (at % 3 === 0) end = { ...end, [(["count", "size", "offset"] as const)[kind % 3]!]: number };
    else if (kind === 15) changes.set(at % 4, { name: ["../a", "a/data.pkl", "", "a/constants.pkl"][choice % 4]! });
    else if (kind === 14) changes.set(at % 4, { zip64: [value, value, EXTREMES[at % EXTREMES.length]!] });
    else changes.set(at % 4, { ...changes.get(at % 4), [field]: number });
  }
  return zip(entries.map(([name, content], i) => [name, content, changes.get(i) ?? {}]), end);
}

const torch: Target<FileEdits & { readonly view: readonly Edit[]; readonly zip: readonly Edit[] }> = {
  name: "torch file",
  edits: fc.record({
    structure: fc.oneof(fc.constant([]), edits()),
    view: fc.oneof(fc.constant([]), edits(5)),
    zip: fc.oneof({ weight: 3, arbitrary: fc.constant([]) }, { weight: 1, arbitrary: edits() }),
    bytes: fc.oneof({ weight: 7, arbitrary: fc.constant([]) }, { weight: 1, arbitrary: edits() }),
  }),
  build({ structure, view, zip, bytes }) {
    const pickle = concat(editFields(pickleFields(viewOf(view)), structure, OPCODES));
    return new Map([["a.bin", editBytes(torchZip(pickle, zip), bytes)]]);
  },
  async read(files) {
    const tensors = await readTorch(memorySource("a.bin", files.get("a.bin")!));
    for (const tensor of tensors.values()) assertFilled(tensor);
  },
};

const evilPickle: Target<{ readonly at: number; readonly evil: number; readonly after: readonly Edit[] }> = {
  name: "pickle that runs code",
  edits: fc.record({ at: fc.nat(0xffff), evil: fc.nat(0xffff), after: edits() }),
  build({ at, evil, after }) {
    const { before, code, rest } = insertEvil(at, evil);
    return new Map([["a.pkl", concat([...before, ...code, ...editFields(rest, after, OPCODES)])]]);
  },
  /** Refused at the opcode that would run code, which is named with its place. */
  read(files, { at, evil }) {
    const { before, code } = insertEvil(at, evil);
    const place = concat([...before, ...code.slice(0, -1)]).length;
    try {
      readPickledTensors(files.get("a.pkl")!, { file: "a.pkl" });
    } catch (error) {
      assert.ok(error instanceof FormatError, String(error));
      assert.deepEqual([error.code, error.field], ["pickle", `byte ${place}`]);
      throw error;
    }
    throw new Error("a pickle that runs code was read");
  },
};

function insertEvil(at: number, evil: number) {
  const place = 1 + at % (PICKLE.length - 1);
  const code = EVIL[evil % EVIL.length]!;
  return { before: PICKLE.slice(0, place), code, rest: PICKLE.slice(place) };
}

/** The targets of this file. */
// deno-lint-ignore no-explicit-any
export const FORMATS: readonly Target<any>[] = [safetensors, shardIndex, json, gguf, torch, evilPickle];
