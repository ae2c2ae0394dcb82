import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { toFloat32 } from "../src/formats/dtype.ts";
import { readGguf, readGgufTensor } from "../src/formats/gguf.ts";
import { memorySource } from "../src/formats/memory.ts";
import type { ReadOptions, Source } from "../src/formats/source.ts";

const VECTORS = new URL("./vectors/gguf/", import.meta.url);
const TINY = new Uint8Array(readFileSync(new URL("tiny.gguf", VECTORS)));
const WANTED: {
  metadata: Record<string, unknown>;
  tensors: Record<string, { shape: number[]; values: string }>;
} = JSON.parse(readFileSync(new URL("tiny.json", VECTORS), "utf8"));

/** Builds a header field by field. */
class Header {
  readonly #bytes: number[] = [];

  u8(value: number): this {
    this.#bytes.push(value);
    return this;
  }
  u32(value: number): this {
    return this.#push(4, (view) => view.setUint32(0, value, true));
  }
  u64(value: bigint | number): this {
    return this.#push(8, (view) => view.setBigUint64(0, BigInt(value), true));
  }
  text(value: string): this {
    const bytes = new TextEncoder().encode(value);
    this.u64(bytes.length).#bytes.push(...bytes);
    return this;
  }
  /** Magic, version and the two counts. */
  start(tensors: bigint | number, metadata: bigint | number, version = 3): this {
    return this.u32(0x46554747).u32(version).u64(tensors).u64(metadata);
  }
  /** A tensor of 32-bit floats. */
  tensor(name: string, shape: (bigint | number)[], offset: bigint | number, type = 0): this {
    this.text(name).u32(shape.length);
    for (const dimension of shape) this.u64(dimension);
    return this.u32(type).u64(offset);
  }
  /** The file, padded to 32 bytes, with so many bytes of data. */
  file(data = 0): Uint8Array {
    const start = Math.ceil(this.#bytes.length / 32) * 32;
    const file = new Uint8Array(start + data);
    file.set(this.#bytes);
    return file;
  }
  #push(width: number, write: (view: DataView) => void): this {
    const bytes = new Uint8Array(width);
    write(new DataView(bytes.buffer));
    this.#bytes.push(...bytes);
    return this;
  }
}

function read(file: Uint8Array, options = {}) {
  return readGguf(memorySource("a.gguf", file), options);
}

function fromHex(hex: string): Uint8Array {
  return Uint8Array.from(hex.match(/../g) ?? [], (pair) => parseInt(pair, 16));
}

test("readGguf() reads every metadata type", async () => {
  const { version, metadata } = await read(TINY);
  assert.equal(version, 3);
  for (const [key, wanted] of Object.entries(WANTED.metadata)) {
    const value = metadata.get(key);
    assert.deepEqual(typeof value === "bigint" ? String(value) : value, wanted, key);
  }
  assert.equal(metadata.get("test.big"), 2n ** 64n - 1n);
  assert.equal(metadata.get("general.alignment"), 64);
});

test("readGguf() reads version 2, which has the same layout", async () => {
  const file = TINY.slice();
  file[4] = 2;
  const { version, tensors } = await read(file);
  assert.equal(version, 2);
  assert.deepEqual(tensors, (await read(TINY)).tensors);
});

for (const [name, { shape, values }] of Object.entries(WANTED.tensors)) {
  test(`readGgufTensor() reads ${name} as the gguf package does, bit for bit`, async () => {
    const source = memorySource("tiny.gguf", TINY);
    const { tensors } = await readGguf(source);
    const info = tensors.get(name)!;
    assert.equal(info.type, name);
    assert.equal(info.offset % 64, 0);
    const tensor = await readGgufTensor(source, info);
    assert.deepEqual(tensor.shape, shape);
    assert.equal(tensor.dtype, ["F16", "BF16"].includes(name) ? name : "F32");
    const found = toFloat32(tensor);
    assert.deepEqual(new Uint8Array(found.buffer, found.byteOffset, found.byteLength), fromHex(values));
  });
}

test("readGguf() lists types that readGgufTensor() refuses by name, without reading them", async () => {
  const { tensors } = await read(TINY);
  const info = tensors.get("IQ4_NL")!;
  assert.equal(info.type, "IQ4_NL");
  const source = { name: "a.gguf", size: () => Promise.resolve(0), read: () => Promise.reject(new Error("read")) };
  await assert.rejects(readGgufTensor(source, info), {
    name: "FormatError",
    tensor: "IQ4_NL",
    found: "IQ4_NL",
    message: /with type IQ4_NL: expected F32/,
  });
});

test("readGguf() reads a long header in windows, and no tensor data", async () => {
  const count = 300_000;
  const header = new Header().start(1, 1).text("k").u32(9).u32(8).u64(count);
  for (let i = 0; i < count; i++) header.text("ab");
  const file = header.tensor("w", [1_000_000], 0).file(4_000_000);
  const ranges: [number, number][] = [];
  const inner = memorySource("a.gguf", file);
  const source: Source = {
    name: "a.gguf",
    size: (options?: ReadOptions) => inner.size(options),
    read: (offset, length, options) => {
      ranges.push([offset, length]);
      return inner.read(offset, length, options);
    },
  };
  const { metadata, tensors } = await readGguf(source);
  assert.equal((metadata.get("k") as string[]).length, count);
  assert.equal(tensors.get("w")!.length, 4_000_000);
  // The first window, then as much as so many texts take at least, then twice that.
  const [mib, least] = [1 << 20, 49 + 8 * count];
  assert.deepEqual(ranges, [[0, mib], [mib, least - mib], [least, least]]);
  await assert.rejects(readGguf(source, { maxHeaderBytes: 2_000_000 }), { name: "LimitError", limit: 2_000_000 });
});

test("readGguf() gives tensors of no elements and of no dimensions", async () => {
  const { tensors } = await read(new Header().start(2, 0).tensor("none", [4, 0], 0).tensor("one", [], 0).file(4));
  assert.deepEqual(tensors.get("none")!.shape, [0, 4]);
  assert.equal(tensors.get("none")!.length, 0);
  assert.equal(tensors.get("one")!.length, 4);
});

const HUGE = 2n ** 63n;
const REFUSED: readonly (readonly [what: string, file: Uint8Array, message: RegExp])[] = [
  ["an empty file", new Uint8Array(), /of 0 bytes: expected "GGUF"/],
  ["another magic", new Header().u32(0x46554746).u32(3).u64(0).u64(0).file(), /"magic"/],
  ["version 1", new Header().start(0, 0, 1).file(), /"version" 1/],
  ["version 4", new Header().start(0, 0, 4).file(), /"version" 4/],
  ["big-endian order", new Header().start(0, 0, 0x03000000).file(), /big-endian/],
  ["a tensor count beyond the file", new Header().start(HUGE, 0).file(100), /"tensor count"/],
  ["a tensor count of a million", new Header().start(1_000_000, 0).file(100), /"tensor count" 1000000/],
  ["a metadata count beyond the file", new Header().start(0, HUGE).file(100), /"metadata count"/],
  ["a key longer than the file", new Header().start(0, 1).u64(HUGE).file(100), /"metadata key"/],
  ["a key of a gigabyte", new Header().start(0, 1).u64(1e9).file(100), /"metadata key" 1000000000/],
  ["a key that is not UTF-8", new Header().start(0, 1).u64(1).u8(0xff).u32(0).u8(0).file(), /UTF-8/],
  ["a key twice", new Header().start(0, 2).text("k").u32(0).u8(1).text("k").u32(0).u8(1).file(), /"k" a second/],
  ["metadata type 13", new Header().start(0, 1).text("k").u32(13).u64(0).file(), /"k" type 13/],
  ["an array of type 13", new Header().start(0, 1).text("k").u32(9).u32(13).u64(0).file(), /"k" type 13/],
  ["an array longer than the file", new Header().start(0, 1).text("k").u32(9).u32(4).u64(HUGE).file(100), /"k"/],
  ["an array of 50 in 100 bytes", new Header().start(0, 1).text("k").u32(9).u32(4).u64(50).file(100), /"k" 50/],
  ["a boolean 2", new Header().start(0, 1).text("k").u32(7).u8(2).file(), /"k" 2/],
  ["alignment 0", new Header().start(0, 1).text("general.alignment").u32(4).u32(0).file(), /power of two/],
  ["alignment 24", new Header().start(0, 1).text("general.alignment").u32(4).u32(24).file(), /power of two/],
  ["alignment as text", new Header().start(0, 1).text("general.alignment").u32(8).text("32").file(), /power of two/],
  ["9 dimensions", new Header().start(1, 0).tensor("w", [1, 1, 1, 1, 1, 1, 1, 1, 1], 0).file(4), /9 dimensions/],
  ["a dimension of 2^33", new Header().start(1, 0).tensor("w", [2n ** 33n, 0], 0).file(), /shape/],
  ["a dimension of 2^64 - 1", new Header().start(1, 0).tensor("w", [2n ** 64n - 1n], 0).file(), /2\^53/],
  ["a product above 2^53", new Header().start(1, 0).tensor("w", [2n ** 31n, 2n ** 31n], 0).file(), /2\^53 bytes/],
  ["a product that wraps to 0", new Header().start(1, 0).tensor("w", [2n ** 32n, 2n ** 32n], 0).file(), /2\^53 bytes/],
  ["an unknown tensor type", new Header().start(1, 0).tensor("w", [1], 0, 99).file(4), /"w" of type 99/],
  ["a removed tensor type", new Header().start(1, 0).tensor("w", [1], 0, 4).file(4), /"w" of type 4/],
  ["a row that is not whole blocks", new Header().start(1, 0).tensor("w", [16, 2], 0, 8).file(34), /blocks of 32/],
  ["an unaligned offset", new Header().start(1, 0).tensor("w", [1], 4).file(64), /offset 4/],
  ["an offset beyond the file", new Header().start(1, 0).tensor("w", [1], 64).file(64), /"w" ending/],
  ["an offset of 2^53", new Header().start(1, 0).tensor("w", [1], 2n ** 53n).file(64), /2\^53 - 1/],
  ["truncated data", new Header().start(1, 0).tensor("w", [8], 0).file(31), /"w" ending/],
  ["a tensor name twice", new Header().start(2, 0).tensor("w", [8], 0).tensor("w", [8], 32).file(64), /second time/],
  ["overlapping tensors", new Header().start(2, 0).tensor("a", [9], 0).tensor("b", [8], 32).file(64), /"b" at byte/],
  [
    "a truncated header",
    new Header().start(1, 0).tensor("w", [8], 0).file().slice(0, 50),
    /beyond the file's 50 bytes/,
  ],
];

for (const [what, file, message] of REFUSED) {
  test(`readGguf() refuses ${what}`, async () => {
    const started = performance.now();
    await assert.rejects(read(file), { name: "FormatError", file: "a.gguf", message });
    assert.ok(performance.now() - started < 100);
  });
}

test("readGguf() caps counts that a large file could hold", async () => {
  const claim = (header: Header): Source => {
    const file = header.file(1 << 20);
    return {
      name: "large.gguf",
      size: () => Promise.resolve(2 ** 40),
      read: (offset, length) => Promise.resolve(file.slice(offset, offset + length)),
    };
  };
  const array = () => new Header().start(0, 1).text("k").u32(9);
  const nested = array().u32(9).u64(1).u32(9).u64(1).u32(9).u64(1).u32(9).u64(1).u32(0).u64(1);
  const cases: [Header, number][] = [
    [new Header().start(10_000_001, 0), 10_000_000],
    [new Header().start(0, 100_001), 100_000],
    [new Header().start(0, 1).u64(10_000_001), 10_000_000],
    [array().u32(0).u64(4_194_305), 4_194_304],
    [array().u32(9).u64(5).u32(0).u64(4_194_300), 4_194_304],
    [nested, 4],
  ];
  for (const [header, limit] of cases) {
    await assert.rejects(readGguf(claim(header)), { name: "LimitError", file: "large.gguf", limit, value: limit + 1 });
  }
});

test("readGguf() reads texts of any length and script, and refuses bytes that are none", async () => {
  const texts = ["", "a", "twelve chars", "thirteen char", "é", "twelve charé", "▁the", "字", "\u0000", "\ufeffa"];
  const header = new Header().start(0, 1).text("k").u32(9).u32(8).u64(texts.length);
  for (const text of texts) header.text(text);
  assert.deepEqual((await read(header.file())).metadata.get("k"), texts);
  for (const bytes of [[0xff], [0x61, 0xc3], [0xed, 0xa0, 0x80]]) {
    const broken = new Header().start(0, 1).text("k").u32(8).u64(bytes.length);
    for (const byte of bytes) broken.u8(byte);
    await assert.rejects(read(broken.file()), { name: "FormatError", expected: "UTF-8" });
  }
});

test("readGguf() reads a header of the most texts in a few pieces", async () => {
  const count = 1 << 22;
  const head = new Header().start(0, 1).text("k").u32(9).u32(8).u64(count).file();
  const length = head.length;
  const file = memorySource("a.gguf", new Uint8Array(length + 8 * count));
  const pieces: number[] = [];
  const source: Source = {
    name: "a.gguf",
    size: () => file.size(),
    read: async (offset, wanted) => {
      pieces.push(wanted);
      const bytes = await file.read(offset, wanted);
      if (offset === 0) bytes.set(head.subarray(0, 49));
      return bytes;
    },
  };
  const { metadata } = await readGguf(source);
  assert.equal((metadata.get("k") as unknown[]).length, count);
  assert.ok(pieces.length <= 3, `${pieces}`);
});

test("readGguf() rejects with the signal's reason", async () => {
  const signal = AbortSignal.abort(new Error("enough"));
  await assert.rejects(read(TINY, { signal }), { message: "enough" });
});
