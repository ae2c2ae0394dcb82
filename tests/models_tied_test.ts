/** Tied heads under adapters of either side, adapters that wait for their invocation, and caches of all architectures. */
import assert from "node:assert/strict";
import { test } from "node:test";
import type { Backend } from "../src/backend.ts";
import { MismatchError } from "../src/errors.ts";
import { memoryFolder } from "../src/formats/memory.ts";
import { encodeSafetensors } from "../src/formats/safetensors_writer.ts";
import type { Folder } from "../src/formats/source.ts";
import { type LanguageModel, loadModel } from "../src/models/mod.ts";
import { findStart, tokenMixes } from "../src/models/token_mixes.ts";
import { fromFloat32 } from "../src/formats/dtype.ts";
import { forEachBackend } from "./backends.ts";
import { assertSameBits } from "./compare.ts";
import {
  assertNear,
  fixture,
  IDS,
  loadBase,
  logitsOf,
  modelFolder,
  readCheckpoint,
  readFiles,
  readTruth,
  rowsOf,
  waitingAdapter,
} from "./models_support.ts";
import { deltaWeight, type Matrix, matrix, transpose } from "./reference.ts";
import { random, randomMatrix } from "./values.ts";

const [VOCAB, DIM, RANK, TOLERANCE] = [131, 48, 2, 2e-5];
const TABLE = "model.embed_tokens.weight";

function adapterFolder(tensors: Readonly<Record<string, Matrix>>, config: Readonly<Record<string, unknown>>): Folder {
  const stored = Object.entries(tensors).map(([name, { shape, values }]) => {
    return [`base_model.model.${name}`, fromFloat32(Float32Array.from(values), shape)] as const;
  });
  const json = { peft_type: "LORA", r: RANK, lora_alpha: 2 * RANK, target_modules: [], ...config };
  return memoryFolder(
    new Map([
      ["adapter_config.json", new TextEncoder().encode(JSON.stringify(json))],
      ["adapter_model.safetensors", encodeSafetensors(new Map(stored))],
    ]),
  );
}

const next = random(7);
const [A, B] = [randomMatrix(next, RANK, VOCAB, { scale: 0.3 }), randomMatrix(next, DIM, RANK, { scale: 0.3 })];
const [HEAD_A, HEAD_B] = [
  randomMatrix(next, RANK, DIM, { scale: 0.2 }),
  randomMatrix(next, VOCAB, RANK, { scale: 0.2 }),
];
const ROWS = randomMatrix(next, 2, DIM, { scale: 0.5 });
const EMBEDDING = {
  "model.embed_tokens.lora_embedding_A": A,
  "model.embed_tokens.lora_embedding_B": B,
};
const HEAD = { "lm_head.lora_A.weight": HEAD_A, "lm_head.lora_B.weight": HEAD_B };
/** (vocab, dim), with s = 2. */
const DELTA = transpose(deltaWeight({ a: A, b: B, scaling: 2 }));
const HEAD_DELTA = deltaWeight({ a: HEAD_A, b: HEAD_B, scaling: 2 });

/** [what, tensors, config, whether the embedding has Δ, what the head has]. */
const CASES = [
  ["embedding", EMBEDDING, { target_modules: ["embed_tokens"] }, true, null],
  ["head", HEAD, { target_modules: ["lm_head"] }, false, HEAD_DELTA],
  ["both", { ...EMBEDDING, ...HEAD }, { target_modules: ["embed_tokens", "lm_head"] }, true, HEAD_DELTA],
  ["tied", EMBEDDING, { target_modules: ["embed_tokens"], ensure_weight_tying: true }, true, DELTA],
] as const;

/** The tied base with an embedding and a head of their own. */
async function untied(
  backend: Backend,
  change: (table: Float32Array, head: Float32Array) => void,
): Promise<LanguageModel> {
  const base = fixture("base/qwen3");
  const config = JSON.parse(new TextDecoder().decode((await readFiles(base)).get("config.json")));
  const tensors = await readCheckpoint(base);
  const { shape, values } = tensors.get(TABLE)!;
  const [table, head] = [values.slice(), values.slice()];
  change(table, head);
  tensors.set(TABLE, { shape, values: table });
  tensors.set("lm_head.weight", { shape, values: head });
  return await loadModel(modelFolder({ ...config, tie_word_embeddings: false }, tensors), { backend, dtype: "f32" });
}

for (const [what, tensors, config, onTable, onHead] of CASES) {
  forEachBackend(`a tied head and its embedding differ under an adapter of: ${what}`, async (backend) => {
    const model = await loadBase(backend, "qwen3");
    const before = await logitsOf(model, IDS);
    await model.loadAdapter("a", adapterFolder(tensors, config));
    const want = await untied(backend, (table, head) => {
      if (onTable) DELTA.values.forEach((value, i) => table[i]! += value);
      onHead?.values.forEach((value, i) => head[i]! += value);
    });
    const answer = await logitsOf(want, IDS);
    assertNear(await logitsOf(model, IDS, { adapter: "a" }), answer, TOLERANCE, "adapted");
    await model.merge("a");
    assertNear(await logitsOf(model, IDS), answer, TOLERANCE, "merged");
    model.unmerge();
    assertSameBits(await logitsOf(model, IDS), before, "unmerged");
    want.dispose();
    model.dispose();
  });
}

forEachBackend("a tied head follows new token rows, in full at every weight", async (backend) => {
  const model = await loadBase(backend, "qwen3");
  const before = await logitsOf(model, IDS);
  const indices = [17, 42];
  // Factors of nothing: an adapter has some.
  const path = "model.layers.0.self_attn.q_proj";
  const nothing = {
    [`${path}.lora_A.weight`]: matrix(RANK, DIM, () => 0),
    [`${path}.lora_B.weight`]: matrix(64, RANK, () => 0),
  };
  const rows = { ...nothing, "model.embed_tokens.token_adapter.trainable_tokens_delta": ROWS };
  const config = { trainable_token_indices: indices, target_modules: [path] };
  await model.loadAdapter("a", adapterFolder(rows, config));
  const want = await untied(backend, (table, head) => {
    const row = (i: number) => Float32Array.from(ROWS.values.subarray(i * DIM, (i + 1) * DIM));
    indices.forEach((index, i) => [table, head].forEach((each) => each.set(row(i), index * DIM)));
  });
  const answer = await logitsOf(want, IDS);
  assertNear(await logitsOf(model, IDS, { adapter: { a: 0.3 } }), answer, TOLERANCE, "adapted");
  await model.merge("a");
  assertNear(await logitsOf(model, IDS), answer, TOLERANCE, "merged");
  model.unmerge();
  assertSameBits(await logitsOf(model, IDS), before, "unmerged");
  model.dispose();
});

forEachBackend("aLoRA answers from its last invocation on, and before it as the base", async (backend) => {
  const model = await loadBase(backend, "llama");
  await model.loadAdapter("plain", fixture("llama-plain/adapter"));
  await model.loadAdapter("a", await waitingAdapter([99, 4]));
  const ids = [[5, 99, 4, 17, 99, 4, 42, 7], [99, 4, 5, 6, 7, 8, 9, 10], [5, 6, 7, 8, 9, 10, 11, 12]];
  const [base, plain] = [await logitsOf(model, ids), await logitsOf(model, ids, { adapter: "plain" })];
  const answer = await logitsOf(model, ids, { adapter: "a" });
  const row = (values: Float32Array, i: number) => values.subarray(i * 8 * VOCAB, (i + 1) * 8 * VOCAB);
  assertNear(row(answer, 0).subarray(0, 4 * VOCAB), row(base, 0).subarray(0, 4 * VOCAB), 1e-6, "before the invocation");
  for (const whole of [base, plain]) {
    const after = row(answer, 0).subarray(4 * VOCAB);
    const other = row(whole, 0).subarray(4 * VOCAB);
    assert.ok(after.some((value, i) => Math.abs(value - other[i]!) > 1e-3), "neither alone after it");
  }
  assertNear(row(answer, 1), row(plain, 1), 1e-6, "from the start");
  assertNear(row(answer, 2), row(base, 2), 1e-6, "never");
  const mixed = await logitsOf(model, ids, { adapter: ["a", null, "plain"] });
  assertNear(mixed, [...row(answer, 0), ...row(base, 1), ...row(plain, 2)], TOLERANCE, "mixed batch");
  await assert.rejects(model.merge("a"), MismatchError);
  assert.equal(model.merged, null);
  model.dispose();
});

test("tokenMixes() gives an adapter weight 0 before it begins, in a prompt and behind a cache", () => {
  assert.deepEqual([findStart([1, 2, 1, 2, 3], [1, 2]), findStart([1, 2], [3]), findStart([], [1])], [
    2,
    Infinity,
    Infinity,
  ]);
  const mixes = [{ start: 0, end: 2, mix: [["a", 1], ["b", 2]] }, { start: 2, end: 3, mix: [] }] as const;
  const starts = new Map([["a", [2, Infinity]]]);
  assert.deepEqual(tokenMixes({ mixes, starts }, { length: 3, pasts: Array(9).fill(0) }), [
    { start: 0, end: 2, mix: [["a", 0], ["b", 2]] },
    { start: 2, end: 3, mix: [["a", 1], ["b", 2]] },
    { start: 3, end: 6, mix: [["a", 0], ["b", 2]] },
    { start: 6, end: 9, mix: [] },
  ]);
  assert.deepEqual(tokenMixes({ mixes, starts }, { length: 1, pasts: Array(9).fill(5) }), [
    { start: 0, end: 1, mix: [["a", 1], ["b", 2]] },
    { start: 1, end: 2, mix: [["a", 0], ["b", 2]] },
    { start: 2, end: 3, mix: [] },
  ]);
});

forEachBackend("generate() with its cache chooses what forward() chooses, in every architecture", async (backend) => {
  const cases = [["gpt2-lora-bias", "gpt2"], ["moe", "mixtral"], ["llama-dora", "llama"], [
    "llama-new-tokens",
    "llama",
  ]];
  for (const [name, base] of cases as [string, string][]) {
    const model = await loadBase(backend, base);
    await model.loadAdapter("a", fixture(`${name}/adapter`));
    const ids = rowsOf(await (await readTruth(name))("input_ids"))[0]!;
    const generation = model.generate(ids, { adapter: "a", maxNewTokens: 5 });
    for await (const piece of generation) assert.equal(piece, "");
    for (const token of generation.tokens) {
      const { shape, values } = await model.forward([ids], { adapter: "a" });
      const last = values.subarray(values.length - shape[2]);
      assert.ok(last[token]! >= Math.max(...last) - 1e-4, `${name}: token ${token} after ${ids}`);
      ids.push(token);
    }
    assert.ok(generation.tokens.length > 0);
    model.dispose();
  }
});

test("generate() keeps an invoked adapter on, and counts positions behind the cache", async () => {
  const model = await loadModel(fixture("base/llama"), { dtype: "f32" });
  await model.loadAdapter("a", await waitingAdapter([99, 4]));
  const ids = [5, 17, 99, 4, 42];
  const generation = model.generate(ids, { adapter: "a", maxNewTokens: 6 });
  for await (const piece of generation) assert.equal(piece, "");
  for (const token of generation.tokens) {
    const values = await logitsOf(model, [ids], { adapter: "a" });
    const last = values.subarray(values.length - VOCAB);
    assert.ok(last[token]! >= Math.max(...last) - 1e-4, `token ${token} after ${ids}`);
    ids.push(token);
  }
  model.dispose();
});
