/** Parts that an adapter holds in full: where they act, and where nothing depends on them. */
import assert from "node:assert/strict";
import { test } from "node:test";
import type { Adapter } from "../src/adapter/adapter.ts";
import type { Backend } from "../src/backend.ts";
import { mergeCheckpoint } from "../src/checkpoint/merge.ts";
import type { StoredTensor } from "../src/formats/dtype.ts";
import { memoryFolder, memorySink } from "../src/formats/memory.ts";
import { type LanguageModel, loadEncoder, loadModel } from "../src/models/mod.ts";
import { forEachBackend } from "./backends.ts";
import { assertSameBits } from "./compare.ts";
import { adapterOf, noise } from "./merge_support.ts";
import {
  assertNear,
  fixture,
  IDS,
  loadBase,
  logitsOf,
  modelFolder,
  readCheckpoint,
  readFiles,
} from "./models_support.ts";

const [VOCAB, DIM, TOLERANCE] = [131, 48, 2e-5];
const Q = "model.layers.0.self_attn.q_proj";
const FACTORS = { [`${Q}.lora_A.weight`]: noise([2, DIM], 1), [`${Q}.lora_B.weight`]: noise([DIM, 2], 2) };
const NOTHING = { ...FACTORS, [`${Q}.lora_B.weight`]: { ...noise([DIM, 2], 2), bytes: new Uint8Array(8 * DIM) } };
const ROWS = { "model.embed_tokens.token_adapter.trainable_tokens_delta": noise([2, DIM], 3) };
const NORM = { "model.norm.weight": noise([DIM], 4) };

async function answers(model: LanguageModel, adapters: Readonly<Record<string, Adapter>>) {
  const found: Record<string, Float32Array> = {};
  for (const [name, adapter] of Object.entries(adapters)) {
    await model.loadAdapter(name, adapter);
    found[name] = await logitsOf(model, IDS, { adapter: name });
  }
  return found;
}

forEachBackend(
  "what an aLoRA adapter holds in full acts before its invocation too, and without one",
  async (backend) => {
    const model = await loadBase(backend, "llama");
    const config = { target_modules: [Q], trainable_token_indices: [17, 42], modules_to_save: ["norm"] };
    const whole = { ...ROWS, ...NORM };
    const at = (token: number) => ({ ...config, alora_invocation_tokens: [token] });
    const { wholeOnly, all, never, late } = await answers(model, {
      wholeOnly: await adapterOf({ ...NOTHING, ...whole }, config),
      all: await adapterOf({ ...FACTORS, ...whole }, config),
      never: await adapterOf({ ...FACTORS, ...whole }, at(100)),
      late: await adapterOf({ ...FACTORS, ...whole }, at(IDS[0]![3]!)),
    });
    assertNear(never!, wholeOnly!, TOLERANCE, "no invocation");
    assertNear(late!.subarray(0, 3 * VOCAB), wholeOnly!.subarray(0, 3 * VOCAB), TOLERANCE, "before it");
    const end = late!.subarray(3 * VOCAB);
    for (const other of [wholeOnly, all]) {
      assert.ok(end.some((value, i) => Math.abs(value - other![3 * VOCAB + i]!) > 1e-3), "after it");
    }
    model.dispose();
  },
);

forEachBackend("new rows of a head are those of its logits, in full at every weight", async (backend) => {
  const model = await loadBase(backend, "llama");
  const rows = noise([2, DIM], 5);
  const config = { target_modules: [Q], trainable_token_indices: { lm_head: [17, 42] } };
  await model.loadAdapter(
    "a",
    await adapterOf({ ...NOTHING, "lm_head.token_adapter.trainable_tokens_delta": rows }, config),
  );
  // The rows again, as a head of their own that is trained in full.
  const head = noise([VOCAB, DIM], 6);
  const values = new Float32Array(head.bytes.buffer);
  [17, 42].forEach((row, i) => values.set(new Float32Array(rows.bytes.buffer, 4 * DIM * i, DIM), DIM * row));
  const full = { target_modules: [Q], modules_to_save: ["lm_head"] };
  await model.loadAdapter("head", await adapterOf({ ...NOTHING, "lm_head.weight": head }, full));
  const [base, got, want] = [
    await logitsOf(model, IDS, { adapter: null }),
    await logitsOf(model, IDS, { adapter: { a: 0.3 } }),
    await logitsOf(model, IDS, { adapter: "head" }),
  ];
  const picked = got.map((value, i) => [17, 42].includes(i % VOCAB) ? value : base[i]!);
  assertNear(got, picked, 1e-6, "other logits");
  const only = (logits: Float32Array) => logits.filter((_, i) => [17, 42].includes(i % VOCAB));
  assertNear(only(got), only(want), TOLERANCE, "its logits");
  model.dispose();
});

test("an adapter of a part that the answer does not depend on runs as one without it, and its report says so", async () => {
  const model = await loadEncoder(fixture("base/bert"), { dtype: "f32" });
  const pooler = {
    "pooler.dense.lora_A.weight": noise([2, 36], 1),
    "pooler.dense.lora_B.weight": noise([36, 2], 2),
    "pooler.dense.base_layer.bias": noise([36], 3),
  };
  const path = "encoder.layer.0.output.dense";
  const dense = { [`${path}.lora_A.weight`]: noise([2, 68], 4), [`${path}.lora_B.weight`]: noise([36, 2], 5) };
  const all = await adapterOf({ ...dense, ...pooler }, { target_modules: [path, "pooler.dense"], bias: "lora_only" });
  const loaded = await model.loadAdapter("all", all);
  await model.loadAdapter("dense", await adapterOf(dense, { target_modules: [path] }));
  assert.deepEqual(loaded.report.filter(({ what }) => what === "it has no effect").map(({ module }) => module), [
    "pooler.dense",
    "pooler.dense.bias",
  ]);
  assert.equal(loaded.modules.size, 2);
  const answer = async (adapter: string) => (await model.forward(IDS, { adapter })).values;
  assertSameBits(await answer("all"), await answer("dense"), "as without it");
  model.dispose();
});

/** A table of the fixtures' qwen3, whose head is tied, and the model with another one. */
async function otherTable(backend: Backend) {
  const [name, base] = ["model.embed_tokens.weight", fixture("base/qwen3")];
  const [tensors, files] = [await readCheckpoint(base), await readFiles(base)];
  const { shape, values } = tensors.get(name)!;
  const stored = (values: Float32Array): StoredTensor => ({
    dtype: "F32",
    shape,
    bytes: new Uint8Array(values.buffer),
  });
  const other = values.map((value, i) => value + 0.1 * Math.sin(i));
  tensors.set(name, { shape, values: other });
  const config = JSON.parse(new TextDecoder().decode(files.get("config.json")));
  const model = await loadModel(modelFolder(config, tensors), { backend, dtype: "f32" });
  return { base: stored(values), other: stored(other), model };
}

forEachBackend("a tied table that is saved beside a head's factors is the embedding's too", async (backend) => {
  const model = await loadBase(backend, "qwen3");
  const { base, other, model: changed } = await otherTable(backend);
  const config = { target_modules: ["lm_head"] };
  const [a, b] = [noise([2, DIM], 1), noise([VOCAB, 2], 2)];
  const factors = { "lm_head.lora_A.weight": a, "lm_head.lora_B.weight": b };
  const zero = { ...factors, "lm_head.lora_B.weight": { ...b, bytes: new Uint8Array(8 * VOCAB) } };
  const beside = await adapterOf({ ...zero, "lm_head.base_layer.weight": other }, config);
  const found = await answers(model, {
    same: await adapterOf({ ...factors, "lm_head.base_layer.weight": base }, config),
    plain: await adapterOf(factors, config),
    beside,
  });
  assertSameBits(found["same"]!, found["plain"]!, "the base's table");
  const want = await logitsOf(changed, IDS);
  assertNear(found["beside"]!, want, TOLERANCE, "another table");
  const sink = memorySink();
  await mergeCheckpoint(fixture("base/qwen3"), [{ adapter: beside }], sink, { backend });
  const merged = await loadModel(memoryFolder(sink.files), { backend, dtype: "f32" });
  assertNear(await logitsOf(merged, IDS), want, TOLERANCE, "merged");
  for (const one of [model, changed, merged]) one.dispose();
});
