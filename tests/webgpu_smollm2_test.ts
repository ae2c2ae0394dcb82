/** A real model end to end on the GPU: SmolLM2-135M-Instruct chooses transformers' and wasm's greedy tokens. */
import { test } from "node:test";
import assert from "node:assert/strict";
import type { Backend } from "../src/backend.ts";
import { file } from "../src/fs/mod.ts";
import { type LanguageModel, loadModel } from "../src/models/mod.ts";
import { openBackend } from "../src/open.ts";
import { fixture, generate } from "./models_support.ts";
import { GGUF, NEEDS_GGUF, readCases } from "./smollm2.ts";
import { gpuSkip, withGpu } from "./webgpu_support.ts";

const options = { ...NEEDS_GGUF, ...await gpuSkip() };

/** A software driver takes a while for each: some tokens of the base, both adapters and their mix, few of the others. */
const LONG = ["1.base", "0.emotion", "3.summary", "3.mix"];
const [MANY, FEW] = [8, 1];

async function load(backend: Backend): Promise<LanguageModel> {
  const model = await loadModel(file(GGUF), { backend, dtype: "f32" });
  for (const name of ["emotion", "summary"]) await model.loadAdapter(name, fixture(`smollm2/adapters/${name}`));
  return model;
}

test(
  "generate() on the GPU chooses wasm's and transformers' greedy tokens for SmolLM2, with each adapter",
  options,
  async () => {
    const wasm = await openBackend({ prefer: "wasm" });
    await withGpu(async (gpu) => {
      const models = [await load(gpu), await load(wasm)];
      for (const { key, promptIds, adapter, tokens, safe } of readCases()) {
        const maxNewTokens = Math.min(safe, LONG.includes(key) ? MANY : FEW);
        for (const model of models) {
          const answer = await generate(model, promptIds, { adapter, maxNewTokens });
          assert.deepEqual(answer.tokens, tokens.slice(0, maxNewTokens), `${key} on ${model.backend.name}`);
        }
      }
      for (const model of models) model.dispose();
    });
    wasm.dispose();
  },
);
