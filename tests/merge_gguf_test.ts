import assert from "node:assert/strict";
import { test } from "node:test";
import { loadAdapter } from "../src/adapter/load.ts";
import { type GgufMergeOptions, mergeGguf } from "../src/checkpoint/merge_gguf.ts";
import { MismatchError, NumericError } from "../src/errors.ts";
import { openCheckpoint } from "../src/formats/checkpoint.ts";
import { toFloat32 } from "../src/formats/dtype.ts";
import { decodeF16 } from "../src/formats/float16.ts";
import { readGguf, readGgufTensor } from "../src/formats/gguf.ts";
import { quantizeQ80 } from "../src/formats/gguf_q8.ts";
import { dequantizer } from "../src/formats/gguf_quants.ts";
import { memorySink, memorySource } from "../src/formats/memory.ts";
import type { Source } from "../src/formats/source.ts";
import { ggufFolder } from "../src/models/mod.ts";
import { expectedTensors, fixtureFolder, relativeError } from "./adapter_fixtures.ts";
import { type GgufChanges, llamaGguf } from "./gguf_models.ts";
import { ggufSource } from "./gguf_writer.ts";

const TEXTS = { "tokenizer.ggml.tokens": ["a", "b"], "general.file_type": 0 };

const llamaWithTexts = (change?: GgufChanges["change"]) => llamaGguf({ keys: TEXTS, ...(change && { change }) });

async function mergeInto(base: Source, options: GgufMergeOptions = {}, adapter = "llama-plain"): Promise<Source> {
  const sink = memorySink();
  const adapters = [{ adapter: await loadAdapter(fixtureFolder(`${adapter}/adapter`)) }];
  const report = await mergeGguf(base, adapters, sink, { file: "merged.gguf", ...options });
  assert.deepEqual([...sink.files.keys()], ["merged.gguf"]);
  assert.equal(sink.files.get("merged.gguf")!.length, report.bytes);
  return memorySource("merged.gguf", sink.files.get("merged.gguf")!);
}

test("mergeGguf() writes what PEFT's merge gives, in the file's own order of rows", async () => {
  const base = await llamaWithTexts();
  for (const name of ["llama-plain", "llama-all-linear", "llama-patterns", "llama-rslora"]) {
    const merged = await mergeInto(base, {}, name);
    const want = await expectedTensors(name, "merged.");
    const [before, after] = [
      await openCheckpoint(await ggufFolder(base)),
      await openCheckpoint(await ggufFolder(merged)),
    ];
    for (const tensor of before.tensors.keys()) {
      const got = await after.read(tensor);
      const expected = want.get(tensor);
      if (!expected) assert.deepEqual(got, await before.read(tensor), tensor);
      else assert.ok(relativeError(toFloat32(got), expected.values) <= 1e-6, `${name}: ${tensor}`);
    }
    const [from, to] = [await readGguf(base), await readGguf(merged)];
    assert.deepEqual([to.metadata, [...to.tensors.keys()]], [from.metadata, [...from.tensors.keys()]]);
  }
});

test("mergeGguf() gives matrices the type asked for, and says so in the metadata; vectors keep theirs", async () => {
  const base = await llamaWithTexts();
  const exact = await mergeInto(base);
  for (const [outType, type, fileType] of [["q8_0", "Q8_0", 7], ["f16", "F16", 1], ["f32", "F32", 0]] as const) {
    const merged = await mergeInto(base, { outType });
    const [plain, gguf] = [await readGguf(exact), await readGguf(merged)];
    assert.equal(gguf.metadata.get("general.file_type"), fileType);
    assert.deepEqual(gguf.metadata.get("tokenizer.ggml.tokens"), ["a", "b"]);
    for (const [name, info] of gguf.tensors) {
      const row = info.shape.at(-1)!;
      const expected = info.shape.length === 1 ? "F32" : outType === "q8_0" && row % 32 !== 0 ? "F16" : type;
      assert.equal(info.type, expected, name);
      const values = toFloat32(await readGgufTensor(exact, plain.tensors.get(name)!));
      const step = Math.max(...values.map(Math.abs)) * (expected === "Q8_0" ? 0.5 / 127 : 2 ** -11);
      const got = toFloat32(await readGgufTensor(merged, info));
      values.forEach((value, i) => assert.ok(Math.abs(value - got[i]!) <= 1.01 * step, `${name} at ${i}`));
    }
    const again = await mergeInto(merged, {}, "llama-plain");
    assert.deepEqual(
      [...(await readGguf(again)).tensors].map(([, info]) => info.type),
      [...gguf.tensors].map(([, info]) => info.type),
    );
  }
});

test("quantizeQ80() rounds to ggml's steps, half away from zero, and gives its own values back", () => {
  const values = new Float32Array(64);
  values.set([127, 0.5, -0.5, 1.5, 2.49, -126.5, 126.4]);
  const blocks = quantizeQ80(values, "w");
  const quants = new Int8Array(blocks.buffer, 2, 32);
  assert.deepEqual([...quants.subarray(0, 8)], [127, 1, -1, 2, 2, -127, 126, 0]);
  assert.deepEqual([...decodeF16(blocks.slice(0, 2)), ...decodeF16(blocks.slice(34, 36))], [1, 0]);
  const back = new Float32Array(64);
  dequantizer("Q8_0")!(blocks, back);
  assert.deepEqual(quantizeQ80(back, "w"), blocks);
  assert.throws(() => quantizeQ80(new Float32Array(32).fill(1e7), "w"), NumericError);
});

test("mergeGguf() refuses what a GGUF file cannot take, by name", async () => {
  const base = await llamaWithTexts();
  const refuse = (source: Promise<Source> | Source, adapter: string, message: RegExp) =>
    assert.rejects(async () => await mergeInto(await source, {}, adapter), (error: unknown) => {
      return error instanceof MismatchError && message.test(error.message);
    });
  await refuse(base, "qwen3-plain", /match|no tensor|expected|missing|place/i);
  const other = ggufSource("other.gguf", { metadata: { "general.architecture": "mamba" }, tensors: new Map() });
  await refuse(other, "llama-plain", /^Cannot merge into "other\.gguf" of architecture "mamba": expected one of /);
  await refuse(llamaWithTexts((tensors) => tensors.delete("blk.0.attn_q.weight")), "llama-plain", /q_proj/);
});
