/** GGUF files are the Hugging Face folders they were made from. */
import { test } from "node:test";
import assert from "node:assert/strict";
import { FormatError, MismatchError } from "../src/errors.ts";
import { openCheckpoint } from "../src/formats/checkpoint.ts";
import { memoryFolder } from "../src/formats/memory.ts";
import type { Source } from "../src/formats/source.ts";
import { ggufFolder, loadModel } from "../src/models/mod.ts";
import { assertSameBits } from "./compare.ts";
import { convert, HEADS, llamaGguf, metadata, QWEN3, type Tensors } from "./gguf_models.ts";
import { ggufSource } from "./gguf_writer.ts";
import { fixture, loadBase, logitsOf, readCheckpoint } from "./models_support.ts";
import { forEachBackend } from "./backends.ts";

const IDS = [[5, 17, 99, 4, 42, 7]];

forEachBackend("loadModel() computes the same bits from a GGUF as from the folder it was made of", async (backend) => {
  const qwen3 = convert(await readCheckpoint(fixture("base/qwen3")), null);
  const sources: [string, Source][] = [
    ["llama", await llamaGguf()],
    ["qwen3", ggufSource("qwen3.gguf", { metadata: metadata("qwen3", QWEN3), tensors: qwen3 })],
  ];
  for (const [name, source] of sources) {
    const want = await loadBase(backend, name);
    const got = await loadModel(source, { backend, dtype: "f32" });
    assertSameBits(await logitsOf(got, IDS), await logitsOf(want, IDS), name);
    assert.deepEqual(got.eosIds, [2]);
    want.dispose();
    got.dispose();
  }
});

test("ggufFolder() restores the order of q's and k's rows, biases too", async () => {
  const bias = Float32Array.from({ length: 48 }, (_, i) => i);
  const tensors = new Map([["model.layers.0.self_attn.q_proj.bias", { shape: [48], values: bias }]]);
  const source = await llamaGguf({
    change: (all) => {
      for (const [name, tensor] of convert(tensors, HEADS)) all.set(name, tensor);
    },
  });
  const checkpoint = await openCheckpoint(await ggufFolder(source));
  const { bytes } = await checkpoint.read("model.layers.0.self_attn.q_proj.bias");
  assert.deepEqual(new Float32Array(bytes.slice().buffer), bias);
});

test("ggufFolder() gives the same file in pieces of any size", async () => {
  const file = (await ggufFolder(await llamaGguf())).open("model.safetensors");
  const size = await file.size();
  const whole = await file.read(0, size);
  for (const piece of [997, 65536]) {
    const pieces = new Uint8Array(size);
    for (let at = 0; at < size; at += piece) pieces.set(await file.read(at, Math.min(piece, size - at)), at);
    assert.deepEqual(pieces, whole);
  }
});

test("loadModel() takes a folder that holds one GGUF file and no config", async () => {
  const source = await llamaGguf();
  const bytes = await source.read(0, await source.size());
  const model = await loadModel(memoryFolder(new Map([["a.gguf", bytes]])));
  assert.equal(model.config.headDim, 12);
  assert.equal(model.tokenizer, null);
  model.dispose();
  const two = memoryFolder(new Map([["a.gguf", bytes], ["b.gguf", bytes]]), "models");
  await assert.rejects(loadModel(two), /"models" with 2 GGUF files and no "config.json"/);
});

test("ggufFolder() reads the divisors of Llama 3.1's rotary frequencies as its scaling", async () => {
  // θ = 10000 and 12 wide heads: wavelengths 6, 29, 135, 628, 2916 (blended) and 13537 (stretched).
  const factors = [1, 1, 1, 1, 0, 8];
  const smooth = (8192 / (2 * Math.PI * 10000 ** (4 / 6)) - 1) / 3;
  factors[4] = 1 / ((1 - smooth) / 8 + smooth);
  const rope = (values: number[]) => (tensors: Tensors): void => {
    tensors.set("rope_freqs.weight", { shape: [6], values: Float32Array.from(values) });
  };
  const model = await loadModel(await llamaGguf({ change: rope(factors) }));
  assert.ok("ropeScaling" in model.config);
  assert.deepEqual(model.config.ropeScaling, {
    type: "llama3",
    factor: 8,
    lowFreqFactor: 1,
    highFreqFactor: 4,
    originalMaxPositions: 8192,
  });
  model.dispose();
  await assert.rejects(loadModel(await llamaGguf({ change: rope([1, 2, 1, 1, 1, 8]) })), /rope_freqs.weight/);
});

test("ggufFolder() keeps a window and a linear scaling", async () => {
  const folder = await ggufFolder(
    await llamaGguf({
      numbers: { "attention.sliding_window": 5, "rope.scaling.type": "linear", "rope.scaling.factor": 2.5 },
    }),
  );
  const config = JSON.parse(new TextDecoder().decode(await read(folder.open("config.json"))));
  assert.equal(config.model_type, "mistral");
  assert.equal(config.sliding_window, 5);
  assert.deepEqual(config.rope_scaling, { rope_type: "linear", factor: 2.5 });
  assert.equal(config.rope_theta, 10000);
  assert.equal(config.rms_norm_eps, 1e-6);
  assert.equal(config.tie_word_embeddings, false);
});

async function read(source: Source): Promise<Uint8Array> {
  return await source.read(0, await source.size());
}

test("loadModel() refuses a GGUF that asks for what is not computed, by its key", async () => {
  const cases: [Record<string, number | string>, string][] = [
    [{ "expert_count": 8 }, "llama.expert_count"],
    [{ "logit_scale": 2.5 }, "llama.logit_scale"],
    [{ "rope.scaling.type": "yarn" }, "llama.rope.scaling.type"],
    [{ "rope.dimension_count": 6 }, "llama.rope.dimension_count"],
    [{ "attention.value_length": 24 }, "llama.attention.value_length"],
    [{ "rope.freq_base": NaN }, "llama.rope.freq_base"],
    [{ "attention.layer_norm_rms_epsilon": Infinity }, "llama.attention.layer_norm_rms_epsilon"],
  ];
  for (const [numbers, field] of cases) {
    await assert.rejects(loadModel(await llamaGguf({ numbers })), (error) => {
      assert(error instanceof FormatError);
      assert.equal(error.field, field);
      assert.equal(error.file, "llama.gguf");
      return true;
    });
  }
  const falcon = ggufSource("falcon.gguf", { metadata: { "general.architecture": "falcon" }, tensors: new Map() });
  await assert.rejects(loadModel(falcon), /"general.architecture" = "falcon": expected llama, qwen2, qwen3/);
});

test("loadModel() refuses a GGUF without a tensor, with one too many, or of another shape", async () => {
  const missing = await llamaGguf({ change: (tensors) => tensors.delete("blk.1.ffn_up.weight") });
  await assert.rejects(loadModel(missing), (error) => {
    assert(error instanceof MismatchError);
    assert.deepEqual(error.missing, ["model.layers.1.mlp.up_proj.weight"]);
    return true;
  });
  const extra = await llamaGguf({
    change: (tensors) => {
      tensors.set("blk.0.attn_sinks.weight", { shape: [4], values: new Float32Array(4) });
    },
  });
  await assert.rejects(loadModel(extra), (error) => {
    assert(error instanceof MismatchError);
    assert.deepEqual(error.unexpected, ["blk.0.attn_sinks.weight"]);
    return true;
  });
  const twice = await llamaGguf({
    change: (tensors) => {
      tensors.set("model.layers.0.input_layernorm.weight", tensors.get("blk.1.attn_norm.weight")!);
    },
  });
  await assert.rejects(loadModel(twice), { name: "FormatError", tensor: "model.layers.0.input_layernorm.weight" });
  const other = await llamaGguf({ numbers: { "feed_forward_length": 71 } });
  await assert.rejects(
    loadModel(other),
    /"model.layers.0.mlp.gate_proj.weight" of shape \[72, 48\]: expected \[71, 48\]/,
  );
});

test("loadModel() refuses a GGUF file that is cut, or is none", async () => {
  const bytes = await read(await llamaGguf());
  const cut = memoryFolder(new Map([["cut.gguf", bytes.subarray(0, bytes.length - 64)]]));
  await assert.rejects(loadModel(cut.open("cut.gguf")), FormatError);
  const other = memoryFolder(new Map([["a.txt", new TextEncoder().encode("hello, this is no model")]]));
  await assert.rejects(loadModel(other.open("a.txt")), /magic/);
});
