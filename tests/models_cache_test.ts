/** Decoding with a narrow cache: how far its answers are from those of a cache in f32, and its memory. */
import { test } from "node:test";
import assert from "node:assert/strict";
import type { Backend, CacheDtype } from "../src/backend.ts";
import { CACHE_DTYPES } from "../src/cache.ts";
import { folder } from "../src/fs/mod.ts";
import type { CausalNetwork } from "../src/models/causal_network.ts";
import { KvCache } from "../src/models/kv_cache.ts";
import { type LanguageModel, loadModel } from "../src/models/mod.ts";
import { openBackend } from "../src/open.ts";
import { forEachBackend } from "./backends.ts";
import { assertNear, fixture, generate, loadBase } from "./models_support.ts";

const TINY = folder(new URL("../examples/models/tiny/base", import.meta.url));
const IDS = [5, 17, 99, 4, 42, 7, 3, 88, 61, 5, 17, 23];

/** The largest error of an element, as a part of the largest one of its head. */
const ROUNDING = { f16: 2 ** -11, int8: 1 / 254 };

/** Logits after a prompt of 6 tokens, and after each of the others, which are given one by one. */
async function decode(backend: Backend, model: LanguageModel, dtype: CacheDtype): Promise<Float32Array[]> {
  const { network } = (model as unknown as { placement: { network: CausalNetwork } }).placement;
  const { layers, kvHeads, headDim } = model.config;
  const cache = new KvCache(backend, { layers, batch: 1, kvHeads, headDim, capacity: 8, dtype });
  const pass = { batch: 1, mixes: [{ start: 0, end: 1, mix: [] }], starts: new Map(), cache };
  const all: Float32Array[] = [];
  for (const ids of [IDS.slice(0, 6), ...IDS.slice(6).map((id) => [id])]) {
    const logits = await network.nextLogits(Uint32Array.from(ids), { ...pass, pause: async () => {} });
    all.push(await backend.read(logits));
    logits.dispose();
  }
  cache.dispose();
  return all;
}

forEachBackend("decoding with a cache of f16 or int8 keeps its logits near those of f32", async (backend) => {
  for (const name of ["llama", "gpt2"]) {
    const model = await loadBase(backend, name);
    const [want, half, byte] = [
      await decode(backend, model, "f32"),
      await decode(backend, model, "f16"),
      await decode(backend, model, "int8"),
    ];
    for (const [i, logits] of want.entries()) {
      assertNear(half[i]!, logits, 4 * ROUNDING.f16, `${name} in f16, step ${i}`);
      assertNear(byte[i]!, logits, 4 * ROUNDING.int8, `${name} in int8, step ${i}`);
    }
    assert.notDeepEqual(half, want);
    model.dispose();
  }
});

test("generate() with a cache of f16 or int8 takes half and about a quarter of its memory", async () => {
  const backend = await openBackend({ prefer: "wasm" });
  const taken: number[] = [];
  const texts: string[] = [];
  for (const cache of CACHE_DTYPES) {
    const model = await loadModel(TINY, { backend, cache });
    assert.equal(model.cache, cache);
    const held = backend.bytes;
    for await (const _ of model.generate("<|end|>The movie", { maxNewTokens: 9 })) {
      taken.push(backend.bytes - held);
      break;
    }
    texts.push((await generate(model, "<|end|>The movie", { maxNewTokens: 20 })).text);
    model.dispose();
  }
  const { headDim } = (await loadModel(TINY, { backend })).config;
  const [whole = 0, half = 0, quarter = 0] = taken;
  assert.equal(half, whole / 2);
  // each layer's are rounded up to cache lines
  assert.ok(Math.abs(quarter / whole - (headDim + 4) / (4 * headDim)) < 0.02, `${quarter} of ${whole}`);
  assert.equal(texts[1], texts[0]);
  backend.dispose();
});

test("loadModel() refuses a cache of another type before it reads anything", async () => {
  const absent = fixture("no-such-folder");
  await assert.rejects(loadModel(absent, { cache: "f8" as "f16" }), {
    name: "TypeError",
    message: 'Cannot load a model with a cache of "f8": expected f32, f16, int8',
  });
});
