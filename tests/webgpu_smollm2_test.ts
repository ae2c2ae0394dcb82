/** A real model end to end on the GPU: SmolLM2-135M-Instruct chooses transformers' and wasm's greedy tokens. */
import { test } from "node:test";
import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import type { Backend } from "../src/backend.ts";
import { file } from "../src/fs/mod.ts";
import { type LanguageModel, loadModel } from "../src/models/mod.ts";
import { openBackend } from "../src/open.ts";
import { fixture, generate } from "./models_support.ts";
import { gpuSkip, withGpu } from "./webgpu_support.ts";

interface Case {
  readonly key: string;
  readonly promptIds: number[];
  readonly adapter: string | Record<string, number> | null;
  readonly tokens: number[];
  /** How many of the tokens no rounding can change. */
  readonly safe: number;
}

const MODELS = process.env.LORA_MODELS ??
  join(process.env.LOWRANK_HOME ?? join(homedir(), ".cache", "lowrank"), "models");
const GGUF = join(MODELS, "SmolLM2-135M-Instruct.gguf");
const absent = existsSync(GGUF) ? {} : { skip: `${GGUF} is absent: run scripts/setup_models.sh` };
const options = { timeout: 600_000, ...absent, ...await gpuSkip() };

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
    const cases: Case[] = JSON.parse(readFileSync(new URL("./fixtures/smollm2/cases.json", import.meta.url), "utf8"));
    const wasm = await openBackend({ prefer: "wasm" });
    await withGpu(async (gpu) => {
      const models = [await load(gpu), await load(wasm)];
      for (const { key, promptIds, adapter, tokens, safe } of cases) {
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
