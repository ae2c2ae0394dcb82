import assert from "node:assert/strict";
import { test } from "node:test";
import { mergeCheckpoint } from "../src/checkpoint/merge.ts";
import { fromFloat32, type StoredTensor } from "../src/formats/dtype.ts";
import { memoryFolder, memorySink } from "../src/formats/memory.ts";
import { encodeSafetensors } from "../src/formats/safetensors_writer.ts";
import { INDEX, readTensors, text } from "./adapter_fixtures.ts";
import { adapterOf, assertClose, at, merge, noise, plus, product, transposed } from "./merge_support.ts";

const [W, A, B] = [noise([6, 4], 1), noise([2, 4], 2), noise([6, 2], 3)];

const TIED = { tie_word_embeddings: true, vocab_size: 5, architectures: ["LlamaForCausalLM"] };
const TABLE = "model.embed_tokens.weight";
const table = noise([5, 4], 1);
const embeddingPart = {
  "model.embed_tokens.lora_embedding_A": noise([2, 5], 2),
  "model.embed_tokens.lora_embedding_B": noise([4, 2], 3),
};
const headPart = { "lm_head.lora_A.weight": noise([2, 4], 4), "lm_head.lora_B.weight": noise([5, 2], 5) };
const onTable = plus(at(table), transposed(product(noise([2, 5], 2), noise([4, 2], 3), 1.5), 5));
const onHead = plus(at(table), product(noise([2, 4], 4), noise([5, 2], 5), 1.5));

test("a tied table is untied where embedding and head come apart, and config.json says so", async () => {
  const cases = [
    [embeddingPart, onTable, at(table)],
    [headPart, at(table), onHead],
    [{ ...embeddingPart, ...headPart }, onTable, onHead],
  ] as const;
  for (const [parts, embedding, head] of cases) {
    const { tensors, config, report } = await merge({ [TABLE]: table }, [await adapterOf(parts)], { config: TIED });
    assertClose(tensors.get(TABLE), embedding);
    assertClose(tensors.get("lm_head.weight"), head);
    assert.deepEqual([config.tie_word_embeddings, report.report.length], [false, 1]);
  }
  const full = await adapterOf({ ...headPart, [TABLE]: noise([5, 4], 7) }, { modules_to_save: ["embed_tokens"] });
  const { tensors } = await merge({ [TABLE]: table }, [full], { config: TIED });
  assert.deepEqual(tensors.get(TABLE), noise([5, 4], 7));
  assertClose(tensors.get("lm_head.weight"), onHead);
});

test("a tied table stays tied where both change as one", async () => {
  const transposedHead = (name: string, [rows, columns]: readonly [number, number]): StoredTensor => {
    const values = Float32Array.from(transposed(at(embeddingPart[name as keyof typeof embeddingPart]), rows));
    return fromFloat32(values, [rows, columns]);
  };
  const twin = {
    "lm_head.lora_A.weight": transposedHead("model.embed_tokens.lora_embedding_B", [2, 4]),
    "lm_head.lora_B.weight": transposedHead("model.embed_tokens.lora_embedding_A", [5, 2]),
  };
  const rows = {
    "model.embed_tokens.token_adapter.trainable_tokens_delta": noise([1, 4], 6),
    "q.lora_A.weight": A,
    "q.lora_B.weight": B,
  };
  const saved = { modules_to_save: ["embed_tokens"], ensure_weight_tying: true };
  const replaced = at(table);
  replaced.set(at(noise([1, 4], 6)), 8);
  const cases = [
    [embeddingPart, { ensure_weight_tying: true }, onTable],
    [{ ...embeddingPart, ...twin }, { ensure_weight_tying: true }, onTable],
    [rows, { trainable_token_indices: [2] }, replaced],
    [{ "q.lora_A.weight": A, "q.lora_B.weight": B, [TABLE]: noise([5, 4], 7) }, {}, at(noise([5, 4], 7))],
    [{ "q.lora_A.weight": A, "q.lora_B.weight": B, [TABLE]: noise([5, 4], 7) }, saved, at(noise([5, 4], 7))],
  ] as const;
  for (const [parts, fields, want] of cases) {
    const base = { [TABLE]: table, "q.weight": W };
    const { tensors, config } = await merge(base, [await adapterOf(parts, fields)], { config: TIED });
    assertClose(tensors.get(TABLE), want);
    assert.deepEqual([tensors.has("lm_head.weight"), config.tie_word_embeddings], [false, true]);
  }
  const other = await adapterOf({ ...embeddingPart, ...headPart }, { ensure_weight_tying: true });
  await assert.rejects(merge({ [TABLE]: table }, [other], { config: TIED }), { field: "ensure_weight_tying" });
});

test("token rows of the head alone, or a base that does not say that it is tied, untie it too", async () => {
  const parts = {
    "model.embed_tokens.token_adapter.trainable_tokens_delta": noise([1, 4], 6),
    "lm_head.token_adapter.trainable_tokens_delta": noise([1, 4], 7),
    "q.lora_A.weight": A,
    "q.lora_B.weight": B,
  };
  const fields = { trainable_token_indices: { embed_tokens: [2], lm_head: [2] } };
  const { tie_word_embeddings: _, ...silent } = TIED;
  for (const config of [TIED, silent]) {
    const merged = await merge({ [TABLE]: table, "q.weight": W }, [await adapterOf(parts, fields)], { config });
    for (const [name, seed] of [[TABLE, 6], ["lm_head.weight", 7]] as const) {
      const want = at(table);
      want.set(at(noise([1, 4], seed)), 8);
      assertClose(merged.tensors.get(name), want, name);
    }
    assert.equal(merged.config.tie_word_embeddings, false);
  }
});

test("a tied table is not untied where the head has no name, or the model has none", async () => {
  const adapter = await adapterOf({
    "wte.lora_embedding_A": noise([2, 5], 2),
    "wte.lora_embedding_B": noise([4, 2], 3),
  });
  const base = { "wte.weight": table };
  const refused = { code: "unsupported", field: "tie_word_embeddings" };
  await assert.rejects(merge(base, [adapter], { config: { ...TIED, architectures: ["GPT2LMHeadModel"] } }), refused);
  const { tensors, config } = await merge(base, [adapter], { config: { ...TIED, architectures: ["BertModel"] } });
  assertClose(tensors.get("wte.weight"), onTable);
  assert.deepEqual([tensors.size, config.tie_word_embeddings], [1, true]);
});

test("replicated layers are written as layers of their own, each with its own update", async () => {
  const name = (layer: number) => `model.layers.${layer}.q_proj.weight`;
  const base = {
    [name(0)]: noise([6, 4], 1),
    [name(1)]: noise([6, 4], 2),
    [name(2)]: noise([6, 4], 3),
    "model.norm.weight": noise([4], 4),
  };
  const parts = Object.fromEntries([0, 1, 2].flatMap((layer) => [
    [`model.layers.${layer}.q_proj.lora_A.weight`, noise([2, 4], 10 + layer)],
    [`model.layers.${layer}.q_proj.lora_B.weight`, noise([6, 2], 20 + layer)],
  ]));
  const adapter = await adapterOf(parts, { layer_replication: [[0, 2], [1, 2]] });
  const { tensors, config, report } = await merge(base, [adapter], { config: { num_hidden_layers: 3 } });
  assert.deepEqual([...tensors.keys()].sort(), [name(0), name(1), name(2), "model.norm.weight"]);
  [1, 2, 2].forEach((source, layer) => {
    const delta = product(noise([2, 4], 10 + layer), noise([6, 2], 20 + layer), 1.5);
    assertClose(tensors.get(name(layer)), plus(at(noise([6, 4], source)), delta), name(layer));
  });
  assert.deepEqual([config.num_hidden_layers, report.report.length], [3, 1]);
  for (const ranges of [[[0, 4]], [[0, 2], [0, 1_000_000_000]], [[2 ** 50, 2 ** 51]]]) {
    const wrong = await adapterOf(parts, { layer_replication: ranges });
    await assert.rejects(merge(base, [wrong]), { name: "MismatchError", field: "layer_replication" });
  }
  const many = await adapterOf(parts, { layer_replication: Array.from({ length: 1366 }, () => [0, 3]) });
  await assert.rejects(merge(base, [many]), {
    name: "LimitError",
    field: "layer_replication",
    limit: 4096,
    value: 4098,
  });
});

test("replicated layers have as many kinds of attention in config.json as there are layers", async () => {
  const name = (layer: number) => `layers.${layer}.q_proj`;
  const base = Object.fromEntries([0, 1].map((layer) => [`${name(layer)}.weight`, noise([6, 4], layer)]));
  const parts = { [`${name(0)}.lora_A.weight`]: noise([2, 4], 3), [`${name(0)}.lora_B.weight`]: noise([6, 2], 4) };
  const typesOf = async (ranges: readonly (readonly number[])[]) => {
    const adapter = await adapterOf(parts, { layer_replication: ranges });
    const config = { num_hidden_layers: 2, layer_types: ["full_attention", "sliding_attention"] };
    const merged = await merge(base, [adapter], { config, strict: false });
    return (merged.config.layer_types as string[]).map((type) => type.slice(0, 4)).join(" ");
  };
  assert.equal(await typesOf([[0, 2], [1, 2], [0, 1]]), "full slid slid full");
  // As far as the base's list reaches, PEFT's model reads it by the number of the layer.
  assert.equal(await typesOf([[0, 1], [0, 1]]), "full slid");
  assert.equal(await typesOf([[1, 2]]), "full");
});

test("new tensors of a sharded base are in its index", async () => {
  const [first, second] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
  const map = { [TABLE]: first, "q.weight": second };
  const files = new Map([
    [first, encodeSafetensors(new Map([[TABLE, table]]))],
    [second, encodeSafetensors(new Map([["q.weight", W]]))],
    [INDEX, text({ metadata: { total_size: 176 }, weight_map: map })],
    ["config.json", text(TIED)],
  ]);
  const sink = memorySink();
  await mergeCheckpoint(memoryFolder(files), [{ adapter: await adapterOf(headPart) }], sink);
  const index = JSON.parse(new TextDecoder().decode(sink.files.get(INDEX)));
  assert.deepEqual(index, { metadata: { total_size: 256 }, weight_map: { "lm_head.weight": first, ...map } });
  assertClose((await readTensors(sink.files.get(first)!)).get("lm_head.weight"), onHead);
});
