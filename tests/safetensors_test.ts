import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { LimitError } from "../src/errors.ts";
import { bitsPerElement, type Dtype, DTYPES, type StoredTensor } from "../src/formats/dtype.ts";
import { memorySource } from "../src/formats/memory.ts";
import { readSafetensorsHeader, readTensor } from "../src/formats/safetensors.ts";
import { encodeSafetensors, layoutSafetensors } from "../src/formats/safetensors_writer.ts";

const VECTORS = new URL("./vectors/safetensors/", import.meta.url);
const FIXTURES = new URL("./fixtures/", import.meta.url);

interface CraftedFile {
  readonly name: string;
  readonly header: string;
  readonly data: number;
  readonly accepted: boolean;
}

/** The reference accepts these; we refuse them on purpose (the four differences). */
const STRICTER: ReadonlySet<string> = new Set([
  "a name twice",
  "metadata with a key twice",
  "an entry as an array",
  "a dimension 2^53 + 1 beside 0",
  "a dimension 2^64 - 1 beside 0",
  "dimensions 0, 2^63, 2",
  "65 dimensions",
]);

function fileOf(header: string | Uint8Array, data = 0): Uint8Array {
  const text = typeof header === "string" ? new TextEncoder().encode(header) : header;
  const file = new Uint8Array(8 + text.length + data);
  new DataView(file.buffer).setBigUint64(0, BigInt(text.length), true);
  file.set(text, 8);
  return file;
}

function read(file: Uint8Array) {
  return readSafetensorsHeader(memorySource("a.safetensors", file));
}

function fromHex(hex: string): Uint8Array {
  return Uint8Array.from(hex.match(/../g) ?? [], (pair) => parseInt(pair, 16));
}

async function readAll(file: Uint8Array) {
  const source = memorySource("a.safetensors", file);
  const { tensors, metadata } = await readSafetensorsHeader(source);
  const values = new Map<string, StoredTensor>();
  for (const [name, info] of tensors) values.set(name, await readTensor(source, info));
  return { values, metadata };
}

const CRAFTED: readonly CraftedFile[] = JSON.parse(readFileSync(new URL("headers.json", VECTORS), "utf8"));

for (const { name, header, data, accepted } of CRAFTED) {
  const isAccepted = accepted && !STRICTER.has(name);
  test(`readSafetensorsHeader() ${isAccepted ? "accepts" : "refuses"} ${name}`, async () => {
    const file = fileOf(Uint8Array.from(atob(header), (c) => c.charCodeAt(0)), data);
    if (isAccepted) {
      const { tensors } = await read(file);
      for (const { offset, length } of tensors.values()) assert.ok(offset + length <= file.length);
    } else {
      const isLimit = /^an ignored field \d+ deep$/.test(name);
      await assert.rejects(read(file), { name: isLimit ? "LimitError" : "FormatError", file: "a.safetensors" });
    }
  });
}

test("the crafted files hold every deliberate difference, and both verdicts", () => {
  const names = new Set(CRAFTED.filter(({ accepted }) => accepted).map(({ name }) => name));
  for (const name of STRICTER) assert.ok(names.has(name), name);
  assert.ok(CRAFTED.length > 100);
});

test("readSafetensorsHeader() names tensor, field, found and expected", async () => {
  const file = fileOf('{"w":{"dtype":"F32","shape":[2,3],"data_offsets":[0,20]}}', 20);
  await assert.rejects(read(file), {
    message: 'Cannot read tensor "w" of "a.safetensors" with data_offsets 20 bytes: ' +
      "expected 24 bytes for F32 of shape [2, 3]",
    code: "format",
    tensor: "w",
    field: "data_offsets",
    found: "20 bytes",
    expected: "24 bytes for F32 of shape [2, 3]",
  });
});

test("readSafetensorsHeader() refuses files shorter than their length field", async () => {
  for (let length = 0; length < 8; length++) {
    await assert.rejects(read(new Uint8Array(length)), { name: "FormatError" });
  }
  for (const wrong of [3, 100]) {
    const file = fileOf("{}");
    file[0] = wrong;
    await assert.rejects(read(file), { name: "FormatError", field: "header length" });
  }
});

test("readSafetensorsHeader() judges the header length before it reads the header", async () => {
  for (const length of [25_000_001n, 2n ** 32n, 2n ** 53n + 1n, 2n ** 64n - 1n]) {
    const reads: number[] = [];
    const source = {
      name: "bomb",
      size: () => Promise.resolve(Number.MAX_SAFE_INTEGER),
      read: (_offset: number, count: number) => {
        reads.push(count);
        const bytes = new Uint8Array(count);
        new DataView(bytes.buffer).setBigUint64(0, length, true);
        return Promise.resolve(bytes);
      },
    };
    await assert.rejects(readSafetensorsHeader(source), { name: "LimitError", limit: 25_000_000 });
    await assert.rejects(readSafetensorsHeader(source, { maxHeaderBytes: 1e12 }), (error: unknown) => {
      return error instanceof LimitError ? error.limit === 100_000_000 : length === 25_000_001n;
    });
    assert.ok(reads.every((count) => count === 8 || (count === 25_000_001 && length === 25_000_001n)));
  }
});

test("readSafetensorsHeader() takes a lower cap", async () => {
  const source = memorySource("a", fileOf(`{}${" ".repeat(98)}`));
  await readSafetensorsHeader(source, { maxHeaderBytes: 100 });
  await assert.rejects(readSafetensorsHeader(source, { maxHeaderBytes: 99 }), { limit: 99, value: 100 });
});

test("readSafetensorsHeader() refuses a short answer of its source", async () => {
  const source = {
    name: "short",
    size: () => Promise.resolve(100),
    read: (_offset: number, length: number) => Promise.resolve(new Uint8Array(length - 1)),
  };
  await assert.rejects(readSafetensorsHeader(source), { name: "IntegrityError", found: 7, expected: 8 });
});

test("readSafetensorsHeader() and readTensor() reject with the signal's reason", async () => {
  const signal = AbortSignal.abort(new Error("enough"));
  const source = memorySource("a", fileOf("{}"));
  await assert.rejects(readSafetensorsHeader(source, { signal }), { message: "enough" });
  const info = { name: "w", dtype: "U8", shape: [0], offset: 10, length: 0 } as const;
  await assert.rejects(readTensor(source, info, { signal }), { message: "enough" });
});

test("readSafetensorsHeader() keeps names that objects would lose", async () => {
  const entry = (begin: number) => `{"dtype":"U8","shape":[1],"data_offsets":[${begin},${begin + 1}]}`;
  const header = `{"10":${entry(1)},"2":${entry(0)},"__proto__":${entry(2)},"":${entry(3)}}`;
  const { tensors } = await read(fileOf(header, 4));
  assert.deepEqual([...tensors.keys()], ["10", "2", "__proto__", ""]);
  assert.equal(tensors.get("10")!.offset, 8 + header.length + 1);
});

test("encodeSafetensors() writes the reference's bytes again", async () => {
  const files: { file: string; metadata: Record<string, string> | null }[] = JSON.parse(
    readFileSync(new URL("written.json", VECTORS), "utf8"),
  );
  for (const { file, metadata } of files) {
    const bytes = fromHex(file);
    const content = await readAll(bytes);
    assert.deepEqual(Object.fromEntries(content.metadata), metadata ?? {});
    const reversed = new Map([...content.values].reverse());
    assert.deepEqual(encodeSafetensors(reversed, content.metadata), bytes);
  }
});

for (const path of ["llama-plain/adapter/adapter_model.safetensors", "base/gpt2/model.safetensors"]) {
  test(`encodeSafetensors() writes ${path} again`, async () => {
    const bytes = new Uint8Array(readFileSync(new URL(path, FIXTURES)));
    const { values, metadata } = await readAll(bytes);
    assert.ok(values.size > 5);
    assert.deepEqual(encodeSafetensors(values, metadata), bytes);
  });
}

test("encodeSafetensors() writes all 22 dtypes, largest alignment first", async () => {
  const tensor = (dtype: Dtype) => ({ dtype, shape: [8], bytes: new Uint8Array(bitsPerElement(dtype)).fill(7) });
  const tensors = new Map(DTYPES.map((dtype) => [dtype, tensor(dtype)]));
  assert.equal(tensors.size, 22);
  const { values } = await readAll(encodeSafetensors(tensors));
  assert.deepEqual([...values.keys()], [...DTYPES].reverse());
  assert.deepEqual(new Map(values), new Map([...tensors].reverse()));
});

test("layoutSafetensors() pads the header to eight bytes and keeps names in their order", () => {
  for (let length = 0; length < 9; length++) {
    const specs = ["b", "a".repeat(length)].map((name) => ({ name, dtype: "F32" as const, shape: [2] }));
    const { header, order } = layoutSafetensors(specs);
    assert.equal(header.length % 8, 0);
    assert.equal(new DataView(header.buffer).getBigUint64(0, true), BigInt(header.length - 8));
    assert.deepEqual(order, ["a".repeat(length), "b"]);
  }
});

test("encodeSafetensors() refuses what no reader could read", () => {
  const bytes = new Uint8Array(4);
  const write = (name: string, tensor: StoredTensor) => () => encodeSafetensors(new Map([[name, tensor]]));
  assert.throws(write("w", { dtype: "F32", shape: [2], bytes }), { name: "ShapeError", field: "w", found: 4 });
  assert.throws(write("w", { dtype: "F4", shape: [3], bytes }), { name: "ShapeError" });
  assert.throws(write("w", { dtype: "U8", shape: [-4, -1], bytes }), { name: "ShapeError" });
  assert.throws(write("w", { dtype: "U8", shape: [2 ** 53], bytes }), { name: "ShapeError" });
  assert.throws(write("\ud800", { dtype: "U8", shape: [4], bytes }), { name: "ShapeError", message: /surrogates/ });
  assert.throws(write("__metadata__", { dtype: "U8", shape: [4], bytes }), { name: "ShapeError" });
  const spec = { name: "w", dtype: "U8", shape: [1] } as const;
  assert.throws(() => layoutSafetensors([spec, spec]), { name: "ShapeError", message: /twice/ });
});

test("readTensor() gives bytes that later changes of the file do not reach", async () => {
  const file = encodeSafetensors(new Map([["w", { dtype: "U8", shape: [1], bytes: new Uint8Array([7]) }]]));
  const { values } = await readAll(file);
  file.fill(0);
  assert.deepEqual(values.get("w")!.bytes, new Uint8Array([7]));
});
