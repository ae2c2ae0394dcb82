import assert from "node:assert/strict";
import { Buffer } from "node:buffer";
import { test } from "node:test";
import { inflateSync } from "node:zlib";
import { readAdapter, writeAdapter } from "../src/adapter/dialects/convert.ts";
import type { ReadDialectOptions } from "../src/adapter/dialects/options.ts";
import { recogniseDialect } from "../src/adapter/dialects/recognise.ts";
import { readGguf } from "../src/formats/gguf.ts";
import { toFloat32 } from "../src/formats/dtype.ts";
import { encodeGguf, type GgufField } from "../src/formats/gguf_writer.ts";
import { memoryFolder, memorySink, memorySource } from "../src/formats/memory.ts";
import { assertSame, deltaError, FACTS, foreign, peftFiles, store } from "./dialects_support.ts";
import { random } from "./values.ts";

/** Made by gguf-py 0.19 as convert_lora_to_gguf.py does: alpha 6; q in F16 and F32 of 4 heads, gate in Q8_0 and BF16. */
const GGUF =
  "eNpzdw91Y2ZgYGBhgAAYLQKl01PzUosSc/QSi5IzMktSk0tKi1I5gOKsUPmcnMTcRB40xSWVBWBF7FDxxJTEgpLUIh5ULlwZzM6c/KJE" +
  "ITQ1IDG9xJyCjEQ2sPgBBymoiqScbD0DvcSSkrz4Qr3y1Mz0jBKw6vhEJqCsAlQVE5RmZEAAgiYkMSHpVEDS2QClZZBMMNRLS8uLT08sSSXsCpBv" +
  "GxiJNgOrO+SA+AHCO3sZ9jDsYtjBsAXINmGwYLBisGGwpaMow4H9QD9BMQMMw4A9BDdA8QEY3o/QR6p6DHtIVY9mD6nq0exRqT90+MjRY8dPnDx1" +
  "+szZc+cvXLx0+crVa9dv3Lx1+87de/cfAFU8evzk6bPnL16+ev3m7bv3Hz5++vzl67fvP37++v3n77//DPjAgf1A94BcYt9gf8Ce/jwAJHAFHQ==";

test("a GGUF adapter of gguf-py is read with its rows in Hugging Face's order, Q8_0 and BF16 exactly", async () => {
  const source = memorySource("made.gguf", new Uint8Array(inflateSync(Buffer.from(GGUF, "base64"))));
  assert.equal(await recogniseDialect(source), "gguf");
  await assert.rejects(readAdapter(source), {
    name: "MismatchError",
    code: "heads",
    tensor: "blk.0.attn_q.weight.lora_b",
  });
  const { adapter } = await readAdapter(source, { heads: 4 });
  assert.deepEqual([...adapter.modules.keys()], ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.gate_proj"]);
  const [q, gate] = [...adapter.modules.values()];
  assert.deepEqual([q!.alpha, q!.scaling, q!.loraA.dtype, gate!.loraB.dtype], [6, 3, "F16", "BF16"]);
  const b = Array.from({ length: 64 }, (_, i) => (i % 7 - 3) / 2);
  assert.deepEqual(Array.from(toFloat32(q!.loraA)), Array.from({ length: 64 }, (_, i) => (i % 11 - 5) / 4));
  assert.deepEqual(Array.from(toFloat32(q!.loraB)), b);
  assert.deepEqual(Array.from(toFloat32(gate!.loraB)), b);
  const quantised = Array.from({ length: 64 }, (_, i) => i % 32 === 0 ? 127 / 64 : (i % 127 - 63) / 64);
  assert.deepEqual(Array.from(toFloat32(gate!.loraA)), quantised);
  assert(adapter.report.some(({ what }) => what.includes("Q8_0")));
});

test("rows of k are ordered by the heads of keys, those of v not at all", async () => {
  const rows = (count: number) => {
    let at = 0;
    return store("F32", count, 1, () => at++);
  };
  const ones = store("F32", 1, 2, () => 1);
  const parts = (name: string) =>
    [[`blk.0.${name}.weight.lora_a`, ones], [`blk.0.${name}.weight.lora_b`, rows(8)]] as const;
  const metadata = new Map<string, GgufField>(
    ([["general.type", "adapter"], ["adapter.type", "lora"], ["general.architecture", "llama"]] as const)
      .map(([key, value]) => [key, { type: "string", value }]),
  );
  const tensors = new Map(["attn_q", "attn_k", "attn_v"].flatMap(parts));
  const bytes = encodeGguf(metadata, tensors);
  const rowsOf = async (options: ReadDialectOptions) => {
    const { adapter } = await readAdapter(memorySource("a.gguf", bytes), options);
    return Array.from(adapter.modules.values(), ({ loraB }) => Array.from(toFloat32(loraB)));
  };
  const [one, two] = [[0, 2, 4, 6, 1, 3, 5, 7], [0, 2, 1, 3, 4, 6, 5, 7]];
  const plain = [0, 1, 2, 3, 4, 5, 6, 7];
  assert.deepEqual(await rowsOf({ heads: 2, kvHeads: 1 }), [two, one, plain]);
  assert.deepEqual(await rowsOf({ heads: 2 }), [two, two, plain]);
  metadata.set("general.architecture", { type: "string", value: "qwen2" });
  const qwen = memorySource("a.gguf", encodeGguf(metadata, tensors));
  const { adapter } = await readAdapter(qwen);
  for (const { loraB } of adapter.modules.values()) assert.deepEqual(Array.from(toFloat32(loraB)), plain);
});

async function aloraFiles(more: Readonly<Record<string, unknown>> = {}, bias = false) {
  const next = random(4);
  const path = "base_model.model.model.layers.0.mlp.up_proj";
  const tensors = new Map([[`${path}.lora_A.weight`, store("BF16", 2, 6, next)]]);
  tensors.set(`${path}.lora_B.weight`, store("BF16", 5, 2, next));
  if (bias) {
    tensors.set("base_model.model.model.layers.0.mlp.up_proj.bias", { ...store("BF16", 1, 5, next), shape: [5] });
  }
  const config = { r: 2, lora_alpha: 3, target_modules: ["up_proj"], alora_invocation_tokens: [7, 128000, 0], ...more };
  return (await readAdapter(memoryFolder(peftFiles(config, tensors)))).adapter;
}

test("the invocation tokens of aLoRA go into GGUF files as llama.cpp reads them, and come back", async () => {
  const adapter = await aloraFiles();
  const sink = memorySink();
  const report = await writeAdapter(adapter, "gguf", sink, FACTS);
  assert.deepEqual(report.map(({ what }) => what), ["2 factors of BF16 are written as F32"]);
  const { metadata } = await readGguf(memorySource("a.gguf", sink.files.get("adapter.gguf")!));
  assert.deepEqual(metadata.get("adapter.alora.invocation_tokens"), [7, 128000, 0]);
  const [own, alone] = [await readAdapter(memoryFolder(sink.files)), await readAdapter(await foreign(sink.files))];
  assertSame(own.adapter, adapter, "alora");
  assert.equal(deltaError(alone.adapter, adapter), 0);
  for (const read of [own, alone]) assert.deepEqual(read.adapter.invocationTokens, [7, 128000, 0]);
  const others = memorySink();
  const options = { ...FACTS, allowLoss: true };
  await writeAdapter(await aloraFiles({ bias: "all" }, true), "gguf", others, options);
  const { adapter: reduced } = await readAdapter(memoryFolder(others.files));
  assert.deepEqual([reduced.invocationTokens, reduced.config.bias], [[7, 128000, 0], "none"]);
});

test("the tokens of a GGUF file count before those of the config in it, and are refused where they are none", async () => {
  const sink = memorySink();
  await writeAdapter(await aloraFiles(), "gguf", sink, FACTS);
  const bytes = sink.files.get("adapter.gguf")!;
  const key = new TextEncoder().encode("adapter.alora.invocation_tokens");
  // After the key: u32 type, u32 type of the items, u64 count.
  const at = bytes.findIndex((_, i) => key.every((byte, j) => bytes[i + j] === byte)) + key.length + 16;
  const changed = bytes.slice();
  changed[at] = 9;
  const { adapter } = await readAdapter(memorySource("a.gguf", changed));
  assert.deepEqual(adapter.invocationTokens, [9, 128000, 0]);
  assert(adapter.report.some(({ what }) => what.includes("other alora_invocation_tokens")));
  // The same bits as floats are no numbers of tokens.
  changed[at - 12] = 6;
  const refusal = { name: "FormatError", field: "adapter.alora.invocation_tokens" };
  await assert.rejects(readAdapter(memorySource("a.gguf", changed)), refusal);
  for (const to of ["kohya", "diffusers", "mlx", "loralib"] as const) {
    const loss = { name: "MismatchError", code: "loss", tensor: "alora_invocation_tokens" };
    await assert.rejects(writeAdapter(await aloraFiles(), to, memorySink(), FACTS), loss, to);
  }
});

test("factors of 16 bits are F32 in a GGUF file, and come back as they were unless they were changed", async () => {
  const next = random(9);
  for (const dtype of ["F16", "BF16"]) {
    const path = "base_model.model.model.layers.0.self_attn.q_proj.lora_";
    const tensors = new Map([[`${path}A.weight`, store(dtype, 2, 6, next)], [
      `${path}B.weight`,
      store("F32", 16, 2, next),
    ]]);
    const config = { r: 2, lora_alpha: 3, target_modules: ["q_proj"] };
    const { adapter } = await readAdapter(memoryFolder(peftFiles(config, tensors)));
    const sink = memorySink();
    await writeAdapter(adapter, "gguf", sink, FACTS);
    const bytes = sink.files.get("adapter.gguf")!;
    const { metadata, tensors: infos } = await readGguf(memorySource("a.gguf", bytes));
    assert.deepEqual(Array.from(infos.values(), ({ type }) => type), ["F32", "F32"]);
    assert.deepEqual(JSON.parse(metadata.get("lowrank.dtypes") as string), { "blk.0.attn_q.weight.lora_a": dtype });
    assertSame((await readAdapter(memorySource("a.gguf", bytes))).adapter, adapter, dtype);
    const changed = bytes.slice();
    changed[infos.get("blk.0.attn_q.weight.lora_a")!.offset]! ^= 1;
    const { adapter: other } = await readAdapter(memorySource("a.gguf", changed));
    const dtypes = Array.from(other.modules.values(), ({ loraA }) => loraA.dtype);
    assert.deepEqual(dtypes, ["F32"]);
  }
});
