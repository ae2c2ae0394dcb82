/** Opening models from folders. */
import { test } from "node:test";
import assert from "node:assert/strict";
import { DisposedError, FormatError, MismatchError } from "../src/errors.ts";
import { memoryFolder } from "../src/formats/memory.ts";
import { loadModel } from "../src/models/mod.ts";
import { openBackend } from "../src/open.ts";
import { assertSameBits } from "./compare.ts";
import { fixture, IDS, loadBase, logitsOf, modelFolder, readCheckpoint, readFiles } from "./models_support.ts";

test("dispose() ends the backend that the model opened itself", async () => {
  const model = await loadModel(fixture("base/llama"));
  assert.ok(model.backend.bytes > 0);
  model.dispose();
  assert.equal(model.backend.bytes, 0);
  assert.throws(() => model.backend.tensor([1]), DisposedError);
});

test("loadModel() reports its progress, and frees everything when a tensor cannot be read", async () => {
  const backend = await openBackend();
  const seen: { loaded: number; total: number; name: string }[] = [];
  const model = await loadModel(fixture("base/llama"), { backend, onProgress: (progress) => seen.push(progress) });
  assert.equal(seen.length, 21);
  assert.equal(seen.at(-1)!.loaded, seen.at(-1)!.total);
  model.dispose();
  const failing = loadModel(fixture("base/llama"), {
    backend,
    onProgress: ({ name }) => {
      if (name === "model.norm.weight") throw new Error("stop");
    },
  });
  await assert.rejects(failing, /stop/);
  assert.equal(backend.bytes, 0);
  backend.dispose();
});

test("loadModel() refuses folders and tensors that are not a model", async () => {
  await assert.rejects(loadModel(memoryFolder(new Map(), "empty")), /"empty" with 0 GGUF files and no "config.json"/);
  await assert.rejects(
    loadModel(fixture("base/bert")),
    (error) => error instanceof FormatError && error.field === "model_type",
  );
  const tensors = await readCheckpoint(fixture("base/llama"));
  const config = JSON.parse(new TextDecoder().decode(await readAll("base/llama")));
  tensors.delete("model.layers.1.mlp.up_proj.weight");
  tensors.set("score.weight", { shape: [1], values: new Float32Array(1) });
  await assert.rejects(loadModel(modelFolder(config, tensors)), (error) => {
    assert(error instanceof MismatchError);
    assert.deepEqual(error.missing, ["model.layers.1.mlp.up_proj.weight"]);
    assert.deepEqual(error.unexpected, ["score.weight"]);
    return true;
  });
  // @ts-expect-error a caller without types
  await assert.rejects(loadModel(fixture("base/llama"), { dtype: "f64" }), TypeError);
});

async function readAll(path: string): Promise<Uint8Array> {
  const source = fixture(path).open("config.json");
  return await source.read(0, await source.size());
}

test("loadModel() passes over a second copy of a tied head and the buffers of old checkpoints", async () => {
  const backend = await openBackend();
  const tensors = await readCheckpoint(fixture("base/qwen3"));
  const config = JSON.parse(new TextDecoder().decode(await readAll("base/qwen3")));
  tensors.set("lm_head.weight", tensors.get("model.embed_tokens.weight")!);
  tensors.set("model.layers.0.self_attn.rotary_emb.inv_freq", { shape: [8], values: new Float32Array(8) });
  const model = await loadModel(modelFolder(config, tensors), { backend, dtype: "f32" });
  const want = await loadBase(backend, "qwen3");
  assertSameBits(await logitsOf(model, IDS), await logitsOf(want, IDS), "spare tensors");
  backend.dispose();
});

test("loadModel() takes the end tokens from generation_config.json before those of config.json", async () => {
  const files = await readFiles(fixture("base/llama"));
  for (const [text, ids] of [['{ "eos_token_id": [7, 9] }', [7, 9]], ["{}", [2]]] as const) {
    files.set("generation_config.json", new TextEncoder().encode(text));
    const model = await loadModel(memoryFolder(files));
    assert.deepEqual(model.eosIds, ids);
    model.dispose();
  }
});

test("loadModel() frees everything when the tokenizer is broken", async () => {
  const backend = await openBackend();
  const files = await readFiles(fixture("base/llama"));
  files.set("tokenizer.json", new TextEncoder().encode('{ "model": {} }'));
  await assert.rejects(loadModel(memoryFolder(files), { backend }), FormatError);
  assert.equal(backend.bytes, 0);
  backend.dispose();
});
