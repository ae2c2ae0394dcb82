import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import fc from "fast-check";
import type { Adapter } from "../src/adapter/adapter.ts";
import { readAdapter, writeAdapter } from "../src/adapter/dialects/convert.ts";
import { splitFused } from "../src/adapter/dialects/fused.ts";
import { recogniseDialect } from "../src/adapter/dialects/recognise.ts";
import { loadAdapter } from "../src/adapter/load.ts";
import { type StoredTensor, toFloat32 } from "../src/formats/dtype.ts";
import { memoryFolder, memorySink, memorySource } from "../src/formats/memory.ts";
import { readSafetensorsHeader, readTensor } from "../src/formats/safetensors.ts";
import { encodeSafetensors } from "../src/formats/safetensors_writer.ts";
import { encodeTorch } from "../src/formats/torch_writer.ts";
import { folder } from "../src/fs/mod.ts";
import { lora } from "./cli_support.ts";
import { assertSame, deltaOf, foreign, peftFiles, store, tensorsOf, whole } from "./dialects_support.ts";
import { inTemporaryFolder } from "./temporary_folder.ts";
import { random } from "./values.ts";

/** s times the product of two matrices, row by row. */
function product(scaling: number, b: StoredTensor, a: StoredTensor): number[] {
  const [[rows = 0, inner = 0], [, columns = 0]] = [b.shape, a.shape];
  const [x, y] = [toFloat32(a), toFloat32(b)];
  return Array.from({ length: rows * columns }, (_, at) => {
    const [i, j] = [Math.floor(at / columns), at % columns];
    let sum = 0;
    for (let k = 0; k < inner; k++) sum += y[i * inner + k]! * x[k * columns + j]!;
    return scaling * sum;
  });
}

/** ΔW of a module whose kernel is flattened: B (out, r) A (r, in k…). */
function delta(adapter: Adapter, name: string): number[] {
  const { loraA, loraB, scaling } = adapter.modules.get(name)!;
  const columns = loraA.shape.slice(1).reduce((a, b) => a * b);
  const flat = { ...loraA, shape: [loraA.shape[0]!, columns] };
  return product(scaling, { ...loraB, shape: loraB.shape.slice(0, 2) }, flat);
}

function convFile(r: number, k: number, seed = 1): Map<string, StoredTensor> {
  return new Map([["net.conv1.lora_A", whole(r * k, 3 * k, seed)], [
    "net.conv1.lora_B",
    whole(4 * k, r * k, seed + 1),
  ]]);
}

async function assertHolds(bytes: Uint8Array, wanted: ReadonlyMap<string, StoredTensor>): Promise<void> {
  const source = memorySource("a.safetensors", bytes);
  const { tensors } = await readSafetensorsHeader(source);
  assert.deepEqual([...tensors.keys()].sort(), [...wanted.keys()].sort());
  for (const [name, info] of tensors) assert.deepEqual(await readTensor(source, info), wanted.get(name), name);
}

test("loralib's files need an alpha, and its MergedLinear becomes one exact module", async () => {
  const [a, b] = [whole(4, 6, 1), whole(10, 2, 2)];
  const [plainA, plainB] = [whole(2, 6, 3), whole(7, 2, 4)];
  const tensors = new Map([
    ["h.0.attn.c_attn.lora_A", a],
    ["h.0.attn.c_attn.lora_B", b],
    ["h.0.mlp.c_fc.lora_A", plainA],
    ["h.0.mlp.c_fc.lora_B", plainB],
  ]);
  const source = memorySource("lora.pt", encodeTorch(tensors));
  assert.equal(await recogniseDialect(source), "loralib");
  const tensor = "h.0.attn.c_attn.lora_B";
  await assert.rejects(readAdapter(source), { name: "MismatchError", code: "alpha" });
  await assert.rejects(readAdapter(source, { alpha: 8 }), { name: "MismatchError", code: "merged-linear", tensor });
  const wrong = { alpha: 8, merged: { c_attn: [true, true, true] } };
  await assert.rejects(readAdapter(source, wrong), { name: "MismatchError", code: "merged-linear", tensor });
  const { adapter } = await readAdapter(source, { alpha: 8, merged: { c_attn: [true, false, true] } });
  // s = 4; rows of q and v are 4 B_e A_e, those of k are 0.
  const rows = (which: number) => {
    const cut = (from: StoredTensor, start: number, count: number): StoredTensor => {
      const width = from.shape[1]! * 4;
      const bytes = from.bytes.slice(start * width, (start + count) * width);
      return { dtype: "F32", shape: [count, from.shape[1]!], bytes };
    };
    return product(4, cut(b, 5 * which, 5), cut(a, 2 * which, 2));
  };
  const zeros = Array.from({ length: 30 }, () => 0);
  assert.deepEqual(delta(adapter, "h.0.attn.c_attn"), [...rows(0), ...zeros, ...rows(1)]);
  assert.deepEqual(delta(adapter, "h.0.mlp.c_fc"), product(4, plainB, plainA));
});

test("loralib's MergedLinear is written as it was read, and GPT-2's c_attn can be one", async () => {
  const next = random(9);
  const files = new Map([["c_attn.lora_A", store("F32", 4, 6, next)], ["c_attn.lora_B", store("F32", 10, 2, next)]]);
  const merged = { c_attn: [true, false, true] };
  const source = memoryFolder(new Map([["a.safetensors", encodeSafetensors(files)]]));
  const { adapter } = await readAdapter(source, { alpha: 3, merged });
  const again = memorySink();
  await writeAdapter(adapter, "loralib", again, { file: "a.safetensors", alpha: 3, merged });
  await assertHolds(again.files.get("a.safetensors")!, files);
  assertSame((await readAdapter(memoryFolder(again.files))).adapter, adapter, "by what the file carries");
  await assert.rejects(
    writeAdapter(adapter, "loralib", memorySink(), { alpha: 3, merged: { c_attn: [false, true, true] } }),
    { name: "MismatchError", code: "merged-linear", tensor: "c_attn" },
  );
  const parts = await splitFused(adapter, [{ whole: "*c_attn", parts: ["*q", "*k", "*v"] }]);
  assert.ok(deltaOf(parts.modules.get("k")!).every((value) => value === 0), "the slice that is not adapted");
});

test("loralib's Conv2d becomes one exact module, and is written as it was read", async () => {
  for (const [r, k] of [[2, 3], [1, 2], [3, 1], [4, 5]] as const) {
    const tensors = convFile(r, k);
    const source = memorySource("a.safetensors", encodeSafetensors(tensors));
    const options = { alpha: 2 * r, kernels: { conv1: k } };
    const { adapter } = await readAdapter(source, options);
    const { kind, loraA, inFeatures, outFeatures } = adapter.modules.get("net.conv1")!;
    assert.deepEqual([kind, inFeatures, outFeatures, loraA.shape.slice(2)], ["conv", 3, 4, [k, k]]);
    // The product (out k, in k) is seen as (out, in, k, k): the same numbers in the same order.
    const wanted = product(2, tensors.get("net.conv1.lora_B")!, tensors.get("net.conv1.lora_A")!);
    assert.deepEqual(delta(adapter, "net.conv1"), wanted, `r ${r}, k ${k}`);
    const sink = memorySink();
    await writeAdapter(adapter, "loralib", sink, { file: "a.safetensors", alpha: 2 * r });
    await assertHolds(sink.files.get("a.safetensors")!, tensors);
    assertSame((await readAdapter(memoryFolder(sink.files))).adapter, adapter, "by what the file carries");
  }
});

test("100 random convolutions of PEFT come back from loralib with every bit and scale, and mean the same there", async () => {
  const convolutions = fc.record({
    dtype: fc.constantFrom("F32", "BF16", "F16"),
    r: fc.constantFrom(1, 2, 4, 9),
    kernel: fc.constantFrom<number[]>([3, 3], [2, 2], [1, 1], [1], [1, 1, 1], [5, 5]),
    alpha: fc.constantFrom(1, 3, 8, 0.3),
    rslora: fc.boolean(),
    seed: fc.nat(0xffff),
  });
  const property = fc.asyncProperty(convolutions, async ({ dtype, r, kernel, alpha, rslora, seed }) => {
    const next = random(seed);
    const area = kernel.reduce((a, b) => a * b);
    const a = { ...store(dtype, r, 3 * area, next), shape: [r, 3, ...kernel] };
    const b = { ...store(dtype, 4, r, next), shape: [4, r, ...kernel.map(() => 1)] };
    const key = "base_model.model.net.conv1.lora_";
    const tensors = new Map([[`${key}A.weight`, a], [`${key}B.weight`, b]]);
    const adapter = await loadAdapter(peftFiles({ r, lora_alpha: alpha, use_rslora: rslora }, tensors));
    const sink = memorySink();
    await writeAdapter(adapter, "loralib", sink, { file: "a.safetensors" });
    assertSame((await readAdapter(memoryFolder(sink.files))).adapter, adapter, `${kernel}`);
    const file = await tensorsOf(memorySource("a.safetensors", sink.files.get("a.safetensors")!));
    const [theirs, k] = [file.get("net.conv1.lora_A")!, kernel[0]!];
    assert.deepEqual(theirs.shape, [r * k, 3 * k ** (kernel.length === 2 ? 1 : 0)]);
    const found = product(alpha / r, file.get("net.conv1.lora_B")!, theirs);
    const wanted = delta(adapter, "net.conv1");
    const most = Math.max(...wanted.map(Math.abs));
    found.forEach((value, i) => assert(Math.abs(value - wanted[i]!) <= 2e-7 * most, `${value} ${wanted[i]}`));
    const read = (await readAdapter(await foreign(sink.files), { alpha, kernels: { conv1: kernel } })).adapter;
    assert.equal(read.modules.get("net.conv1")!.rank, r);
  });
  await fc.assert(property, { numRuns: 100, seed: 3 });
});

test("convolutions without their kernel, or with one that loralib does not compute, are refused by name", async () => {
  const bytes = encodeSafetensors(convFile(2, 3));
  const read = (kernels?: Record<string, number | readonly number[]>) =>
    readAdapter(memorySource("a.safetensors", bytes), { alpha: 2, ...(kernels && { kernels }) });
  const tensor = "net.conv1.lora_A";
  await assert.rejects(read(), { name: "FormatError", code: "kernel", tensor, message: /--kernel/ });
  for (const kernel of [4, [3], [3, 3, 3], [3, 1], 0, [], [1.5, 1.5]]) {
    await assert.rejects(read({ conv1: kernel }), { name: "MismatchError" }, `${kernel}`);
  }
  const { adapter: named } = await readAdapter(
    memorySource(
      "a.safetensors",
      encodeSafetensors(new Map([["c.lora_A", whole(2, 3, 1)], ["c.lora_B", whole(4, 2, 2)]])),
    ),
    { alpha: 2, kernels: { c: [1] } },
  );
  assert.deepEqual(named.modules.get("c")!.loraA.shape, [2, 3, 1], "a name that is no convolution's");
  for (const kernel of [[3], [3, 3, 3], [3, 1]]) {
    const area = kernel.reduce((a, b) => a * b);
    const a = { ...whole(1, 2 * area, 1), shape: [1, 2, ...kernel] };
    const b = { ...whole(3, 1, 2), shape: [3, 1, ...kernel.map(() => 1)] };
    const key = "base_model.model.net.conv1.lora_";
    const adapter = await loadAdapter(
      peftFiles({ r: 1, lora_alpha: 1 }, new Map([[`${key}A.weight`, a], [`${key}B.weight`, b]])),
    );
    const refusal = { name: "MismatchError", code: "kernel", tensor: "net.conv1", found: kernel };
    await assert.rejects(writeAdapter(adapter, "loralib", memorySink()), refusal);
  }
});

test("a list of layers that is none is refused by its key", async () => {
  const texts = [
    "[]",
    "{}",
    '{"enable_lora":{},"kernel_size":{"a":3}}',
    '{"enable_lora":{"a":[1]},"kernel_size":{}}',
    "{",
  ];
  for (const text of texts) {
    const bytes = encodeSafetensors(convFile(2, 3), new Map([["lowrank.layers", text]]));
    const found = readAdapter(memorySource("a.safetensors", bytes), { alpha: 2 });
    await assert.rejects(found, { name: "FormatError", message: /lowrank\.layers/ }, text);
  }
});

test("an alpha that is no number is refused, not taken for 0 or 16", async () => {
  for (const text of ["", " 16", "0x10", "NaN", "16,5"]) {
    const bytes = encodeSafetensors(
      new Map([["c.lora_A", whole(2, 3, 1)], ["c.lora_B", whole(4, 2, 2)]]),
      new Map([["lora_alpha", text]]),
    );
    const refusal = { name: "FormatError", file: "a.safetensors", field: "lora_alpha", found: text };
    await assert.rejects(readAdapter(memorySource("a.safetensors", bytes)), refusal, text);
  }
});

test("kernels and slices that would make gigabytes of a few bytes are refused before that", async () => {
  const read = (tensors: Readonly<Record<string, StoredTensor>>, layers: object) => {
    const metadata = new Map([["lora_alpha", "4"], ["lowrank.layers", JSON.stringify(layers)]]);
    return readAdapter(memorySource("a.safetensors", encodeSafetensors(new Map(Object.entries(tensors)), metadata)));
  };
  const square = { "net.c.lora_A": whole(512, 512, 1), "net.c.lora_B": whole(512, 512, 2) };
  const conv = (lengths: readonly number[]) => ({ enable_lora: {}, kernel_size: { "net.c": lengths } });
  const start = performance.now();
  const rank = { name: "LimitError", file: "a.safetensors", tensor: "net.c.lora_A", field: "rank" };
  await assert.rejects(read(square, conv([512, 512])), rank);
  await assert.rejects(read(square, conv([1, 1])), rank);
  const kernel = { name: "MismatchError", file: "a.safetensors", tensor: "net.c", field: "kernel_size" };
  await assert.rejects(read(square, conv(Array(100_000).fill(1))), kernel);
  const tall = { "net.c.lora_A": whole(16, 32_768, 1), "net.c.lora_B": whole(16, 16, 2) };
  const size = { name: "LimitError", file: "a.safetensors", field: "size" };
  await assert.rejects(read(tall, conv([16, 16])), { ...size, tensor: "net.c.lora_A" });
  const merged = { "q.lora_A": whole(4, 4, 1), "q.lora_B": whole(64, 2, 2) };
  const slices = [true, true, ...Array(200_000).fill(false)];
  await assert.rejects(read(merged, { enable_lora: { q: slices }, kernel_size: {} }), { ...size, tensor: "q.lora_B" });
  const many = Object.fromEntries(
    Array.from({ length: 300 }, (_, i) => {
      return [[`m${i}.lora_A`, whole(1, 1, 1)], [`m${i}.lora_B`, whole(1, 1, 2)]];
    }).flat(),
  );
  const others = Object.fromEntries(Array.from({ length: 50_000 }, (_, i) => [`k${i}`, [3]]));
  assert.equal((await read(many, { enable_lora: {}, kernel_size: others })).adapter.modules.size, 300);
  assert.ok(performance.now() - start < 3000, "no time that grows with the product of both lists");
});

test("lora convert takes the kernels of loralib's convolutions", async () => {
  await inTemporaryFolder(async (path) => {
    const [file, out] = [join(path, "a.safetensors"), join(path, "out")];
    const sink = await folder(path).create("a.safetensors");
    await sink.write(encodeSafetensors(convFile(2, 3)));
    await sink.commit();
    const args = ["convert", file, "--to", "peft", "--out", out, "--alpha", "2"];
    assert.equal((await lora(...args, "--kernel", "conv1=x")).status, 2);
    const ended = await lora(...args, "--kernel", "conv1=3");
    assert.equal(ended.status, 0, ended.stderr);
    assert.deepEqual((await loadAdapter(folder(out))).modules.get("net.conv1")!.loraA.shape, [18, 3, 3, 3]);
  });
});
