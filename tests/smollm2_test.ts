/** A real model: SmolLM2-135M-Instruct with two adapters answers as transformers and PEFT do, in float32. */
import { test } from "node:test";
import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { CacheDtype } from "../src/backend.ts";
import type { Folder, Source } from "../src/formats/source.ts";
import { file, folder } from "../src/fs/mod.ts";
import { ggufFolder, type LanguageModel, loadModel } from "../src/models/mod.ts";
import { toFloat32 } from "../src/formats/dtype.ts";
import { readSafetensorsHeader, readTensor } from "../src/formats/safetensors.ts";
import { assertNear, fixture, generate } from "./models_support.ts";
import { GGUF, NEEDS_GGUF, readCases, type SmolLm2Case } from "./smollm2.ts";

async function load(source: Folder | Source, cache: CacheDtype = "f32"): Promise<LanguageModel> {
  const model = await loadModel(source, { dtype: "f32", cache });
  for (const name of ["emotion", "summary"]) {
    await model.loadAdapter(name, fixture(`smollm2/adapters/${name}`));
  }
  return model;
}

async function checkTokens(model: LanguageModel, prompt: (each: SmolLm2Case) => string | number[]): Promise<void> {
  const cases = readCases();
  assert.equal(cases.length, 16);
  for (const each of cases) {
    const { adapter, tokens, safe, key } = each;
    const answer = await generate(model, prompt(each), { adapter, maxNewTokens: 24 });
    assert.equal(answer.promptTokens, each.promptIds.length, key);
    assert.deepEqual(answer.tokens.slice(0, safe), tokens.slice(0, safe), key);
  }
}

test("generate() from the GGUF chooses transformers' greedy tokens for SmolLM2", NEEDS_GGUF, async () => {
  const model = await load(file(GGUF));
  for (const { text, promptIds } of readCases()) assert.deepEqual(model.tokenizer!.encode(text), promptIds);
  await checkTokens(model, ({ text }) => text);
  model.dispose();
});

test("generate() with a cache of f16 chooses transformers' greedy tokens for SmolLM2", NEEDS_GGUF, async () => {
  const model = await load(file(GGUF), "f16");
  await checkTokens(model, ({ promptIds }) => promptIds);
  model.dispose();
});

test("forward() from the GGUF gives transformers' last logits for SmolLM2", NEEDS_GGUF, async () => {
  const model = await load(file(GGUF));
  const truth = file(new URL("./fixtures/smollm2/last_logits.safetensors", import.meta.url));
  const { tensors } = await readSafetensorsHeader(truth);
  for (const { key, promptIds, adapter } of readCases()) {
    const { values } = await model.forward([promptIds], { adapter });
    const want = toFloat32(await readTensor(truth, tensors.get(key)!));
    assertNear(values.subarray(values.length - want.length), want, 1e-3, key);
  }
  model.dispose();
});

test("generate() from a folder made of the GGUF chooses the same tokens for SmolLM2", NEEDS_GGUF, async () => {
  const path = mkdtempSync(join(tmpdir(), "lowrank-smollm2-"));
  try {
    await copyFolder(await ggufFolder(file(GGUF)), path);
    const model = await load(folder(path));
    await checkTokens(model, ({ promptIds }) => promptIds);
    model.dispose();
  } finally {
    rmSync(path, { recursive: true });
  }
});

async function copyFolder(from: Folder, path: string): Promise<void> {
  for (const name of await from.list!()) {
    const source = from.open(name);
    const target = await folder(path).create(name);
    const size = await source.size();
    for (let offset = 0; offset < size; offset += 1 << 24) {
      await target.write(await source.read(offset, Math.min(1 << 24, size - offset)));
    }
    await target.commit();
  }
}
