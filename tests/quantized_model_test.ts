/** A real model in its file's own blocks: as small as the file, and near to the same file in float32. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { file } from "../src/fs/mod.ts";
import { loadModel } from "../src/models/mod.ts";
import { openBackend } from "../src/open.ts";
import { compareAnswers, readAnswers } from "./answers.ts";
import { fixture } from "./models_support.ts";
import { GGUF, NEEDS_GGUF } from "./smollm2.ts";

/** bench/accuracy_bench.ts takes 200. */
const LINES = 12;

test("loadModel() keeps a GGUF file's blocks, and answers as the same file in float32 does", NEEDS_GGUF, async () => {
  const truth = await loadModel(file(GGUF), { dtype: "f32" });
  const wanted = await readAnswers(truth, LINES);
  truth.dispose();
  const backend = await openBackend({ prefer: "wasm" });
  const model = await loadModel(file(GGUF), { backend });
  assert.ok(backend.bytes < 100e6, `${backend.bytes} bytes`);
  const { perplexity, same } = compareAnswers(await readAnswers(model, LINES), wanted);
  assert.ok(Math.abs(perplexity) <= 0.005, `perplexity ${perplexity}`);
  assert.ok(same >= 0.97, `${same} of the likeliest tokens are the same`);
  backend.dispose();
});

test("loadModel() stores a model in every dtype, the embedding and a tied head once", async () => {
  const bytes: Record<string, number> = {};
  for (const dtype of ["f32", "auto", "bf16", "f16", "f8", "int8", "int4", "nf4"] as const) {
    const backend = await openBackend({ prefer: "wasm" });
    const model = await loadModel(fixture("base/llama"), { dtype, backend });
    bytes[dtype] = backend.bytes;
    const { values } = await model.forward([[1, 2, 3]]);
    assert.ok(values.every(Number.isFinite), dtype);
    backend.dispose();
  }
  assert.equal(bytes.auto, bytes.bf16);
  assert.equal(bytes.f16, bytes.bf16);
  for (const dtype of ["f8", "int8", "int4", "nf4"]) assert.ok(bytes[dtype]! < bytes.bf16!, `${dtype} ${bytes[dtype]}`);
});

test("loadModel() stores blocks as bf16 where the backend lacks their type", NEEDS_GGUF, async () => {
  const backend = await openBackend({ prefer: "wasm" });
  const floats = new Proxy(backend, {
    get: (target, key) =>
      key === "info"
        ? { ...target.info, weightDtypes: ["f32", "bf16"] }
        : typeof target[key as "linear"] === "function"
        ? target[key as "linear"].bind(target)
        : target[key as "linear"],
  });
  const model = await loadModel(file(GGUF), { backend: floats });
  assert.ok(backend.bytes > 250e6, `${backend.bytes} bytes: all of it as bf16`);
  model.dispose();
  backend.dispose();
});
