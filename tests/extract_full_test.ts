import assert from "node:assert/strict";
import { test } from "node:test";
import type { Adapter } from "../src/adapter/adapter.ts";
import { loadAdapter } from "../src/adapter/load.ts";
import { saveAdapter } from "../src/adapter/save.ts";
import { extractAdapter } from "../src/checkpoint/extract.ts";
import { mergeCheckpoint } from "../src/checkpoint/merge.ts";
import { planFull } from "../src/checkpoint/extract_full.ts";
import type { StoredTensor } from "../src/formats/dtype.ts";
import { memoryFolder, memorySink } from "../src/formats/memory.ts";
import { encodeSafetensors } from "../src/formats/safetensors_writer.ts";
import type { Folder } from "../src/formats/source.ts";
import { fixture, MODEL, readTensors, text } from "./adapter_fixtures.ts";
import { at, noise, plus } from "./merge_support.ts";

type Tensors = ReadonlyMap<string, StoredTensor>;

const f32 = (shape: readonly number[], values: Float64Array): StoredTensor => ({
  dtype: "F32",
  shape,
  bytes: new Uint8Array(Float32Array.from(values).buffer),
});

/** A tensor moved by some noise. */
const moved = (tensor: StoredTensor, seed: number): StoredTensor =>
  f32(tensor.shape, plus(at(tensor), at(noise(tensor.shape, seed)), 0.1));

/** A table of which some rows are moved. */
function movedRows(tensor: StoredTensor, rows: readonly number[]): StoredTensor {
  const width = tensor.shape[1]!;
  const shift = at(noise(tensor.shape, 5)).map((value, i) => rows.includes(Math.floor(i / width)) ? value : 0);
  return f32(tensor.shape, plus(at(tensor), shift));
}

function folderOf(tensors: Tensors, config: string): Folder {
  return memoryFolder(new Map([[MODEL, encodeSafetensors(tensors)], ["config.json", text(config)]]));
}

const configOf = (base: string, edits: object = {}): string =>
  JSON.stringify({ ...JSON.parse(new TextDecoder().decode(fixture(`base/${base}/config.json`))), ...edits });

/** The adapter of a difference, saved, loaded and merged again: every tensor is that of the tuned checkpoint. */
async function roundTrip(
  base: Folder,
  before: Tensors,
  tuned: Folder,
  options: { readonly rank: number } = { rank: 64 },
): Promise<{ adapter: Adapter; written: Tensors }> {
  const extracted = await extractAdapter(base, tuned, options);
  const files = memorySink();
  await saveAdapter(extracted, files);
  const adapter = await loadAdapter(files.files);
  assert.deepEqual(adapter.report.filter(({ what }) => what.includes("names it neither")), []);
  const sink = memorySink();
  await mergeCheckpoint(base, [{ adapter }], sink);
  const written = await readTensors(sink.files.get(MODEL)!);
  const file = tuned.open(MODEL);
  const after = await readTensors(await file.read(0, await file.size()));
  for (const [name, want] of after) {
    const module = name.replace(/\.weight$/, "");
    if (adapter.replacements.has(name) || adapter.tokenRows.has(module)) {
      assert.deepEqual(written.get(name)!.bytes, want.bytes, name);
      continue;
    }
    const norm = (values: Float64Array) => Math.sqrt(values.reduce((sum, value) => sum + value * value, 0));
    const difference = norm(plus(at(want), at(before.get(name)!), -1));
    const { error = 0 } = extracted.report.find((line) => line.module === module) ?? {};
    const left = norm(plus(at(written.get(name)!), at(want), -1));
    assert.ok(
      left <= error * difference * 1.0001 + 1e-6 * norm(at(want)),
      `${name}: ${left}, ${error} of ${difference}`,
    );
  }
  return { adapter: extracted, written };
}

test("base + extracted adapter is the tuned checkpoint: norms are stored in full, rows of an embedding as rows", async () => {
  const before = await readTensors(fixture(`base/llama/${MODEL}`));
  const after = new Map(before);
  const changed = [
    "model.layers.0.self_attn.q_proj.weight",
    "model.norm.weight",
    "model.layers.1.input_layernorm.weight",
  ];
  changed.forEach((name, i) => after.set(name, moved(before.get(name)!, i)));
  const table = "model.embed_tokens.weight";
  after.set(table, movedRows(before.get(table)!, [3, 90]));
  const [base, tuned] = [folderOf(before, configOf("llama")), folderOf(after, configOf("llama"))];
  for (const rank of [64, 2]) {
    const { adapter } = await roundTrip(base, before, tuned, { rank });
    assert.deepEqual([...adapter.replacements.keys()].sort(), changed.slice(1).sort());
    assert.deepEqual(adapter.config.modulesToSave?.toSorted(), ["model.layers.1.input_layernorm", "model.norm"]);
    assert.deepEqual(adapter.tokenRows.get("model.embed_tokens")!.indices, [3, 90]);
    assert.deepEqual([adapter.modules.size, adapter.config.bias], [1, "none"]);
  }
});

test("biases of adapted layers go by lora_only, of others by all, which takes those of norms too", async () => {
  const before = await readTensors(fixture(`base/bert/${MODEL}`));
  const query = "encoder.layer.0.attention.self.query";
  const change = (...names: string[]) =>
    folderOf(
      new Map([...before].map(([name, one]) => [name, names.includes(name) ? moved(one, 2) : one])),
      configOf("bert"),
    );
  const base = folderOf(before, configOf("bert"));
  const only = await roundTrip(base, before, change(`${query}.weight`, `${query}.bias`));
  assert.deepEqual([only.adapter.config.bias, [...only.adapter.replacements.keys()]], ["lora_only", [`${query}.bias`]]);
  const norm = "encoder.layer.1.output.LayerNorm";
  const dense = "encoder.layer.1.output.dense.bias";
  const all = await roundTrip(base, before, change(`${query}.weight`, dense, `${norm}.weight`, `${norm}.bias`));
  const biases = [...before].filter(([name, { shape }]) => name.endsWith(".bias") && shape.length === 1);
  assert.equal(all.adapter.replacements.size, biases.length + 1);
  assert.deepEqual([all.adapter.config.bias, all.adapter.config.modulesToSave], ["all", [norm]]);
});

test("a tied table gets one ΔW for embedding and head, or rows, and stays tied; an untied head one of its own", async () => {
  const tied = configOf("llama", { tie_word_embeddings: true });
  const before = new Map(await readTensors(fixture(`base/llama/${MODEL}`)));
  before.delete("lm_head.weight");
  const name = "model.embed_tokens.weight";
  const q = "model.layers.0.self_attn.q_proj.weight";
  const table = before.get(name)!;
  const base = folderOf(before, tied);
  const changed = new Map(before).set(name, moved(table, 3)).set(q, moved(before.get(q)!, 4));
  const whole = await roundTrip(base, before, folderOf(changed, tied), { rank: 8 });
  assert.deepEqual([...whole.adapter.modules.keys()].sort(), [
    "lm_head",
    "model.embed_tokens",
    q.replace(".weight", ""),
  ]);
  assert.equal(whole.adapter.config.ensureWeightTying, true);
  assert.equal(whole.written.has("lm_head.weight"), false);
  const rows = await roundTrip(base, before, folderOf(new Map(changed).set(name, movedRows(table, [7])), tied));
  assert.deepEqual([rows.adapter.tokenRows.size, rows.adapter.config.ensureWeightTying], [1, false]);
  assert.equal(rows.written.has("lm_head.weight"), false);
  const untied = folderOf(new Map(changed).set("lm_head.weight", moved(table, 9)), configOf("llama"));
  const own = await roundTrip(base, new Map(before).set("lm_head.weight", table), untied, { rank: 8 });
  assert.deepEqual([own.adapter.modules.get("lm_head")!.kind, own.adapter.config.ensureWeightTying], ["linear", false]);
});

test("what PEFT has no place for is named with the size of its change, and is alone no adapter", async () => {
  const before = await readTensors(fixture(`base/mixtral/${MODEL}`));
  const experts = "model.layers.0.mlp.experts.down_proj";
  const q = "model.layers.0.self_attn.q_proj.weight";
  const tuned = (...names: string[]) =>
    folderOf(new Map([...before].map(([name, one]) => [name, names.includes(name) ? moved(one, 2) : one])), "{}");
  const base = folderOf(before, "{}");
  const { report, replacements } = await extractAdapter(base, tuned(q, experts), { rank: 2 });
  const line = report.find(({ module }) => module === experts)!;
  assert.match(line.what, /^differs by 0?\.?[0-9.]+ of its size and is left out$/);
  assert.equal(replacements.size, 0);
  await assert.rejects(extractAdapter(base, tuned(experts), { rank: 2 }), {
    name: "MismatchError",
    unexpected: [experts],
  });
});

test("integers that differ are refused by tensor name, and pass where they do not", async () => {
  const numbers = (last: number): StoredTensor => ({
    dtype: "I64",
    shape: [1],
    bytes: new Uint8Array(8).fill(last, 7),
  });
  const [before, after] = [noise([4, 3], 1), noise([4, 3], 2)];
  const files = (weight: StoredTensor, last: number) =>
    folderOf(new Map([["a.weight", weight], ["position_ids", numbers(last)]]), "{}");
  assert.equal((await extractAdapter(files(before, 1), files(after, 1), { rank: 1 })).modules.size, 1);
  const refusal = { name: "FormatError", tensor: "position_ids", field: "dtype", found: "I64" };
  await assert.rejects(extractAdapter(files(before, 1), files(after, 2), { rank: 1 }), refusal);
});

test("an entry of modules_to_save takes all modules that end with it, or none is saved", () => {
  const shapes = (names: Record<string, number[]>) =>
    new Map(Object.entries(names).map(([name, shape]) => [name, { shape }]));
  const norms = shapes({ "norm.weight": [4], "layers.0.input_norm.weight": [4], "layers.0.q.weight": [4, 4] });
  const differing = new Map([["norm.weight", 0.1]]);
  const plan = planFull(norms, differing, new Set(["layers.0.q"]));
  assert.deepEqual(plan.tensors, ["norm.weight", "layers.0.input_norm.weight"]);
  assert.deepEqual(plan.fields.get("modules_to_save"), ["norm"]);
  for (const more of [{ "layers.0.qnorm.weight": [4, 4] }, { "layers.norm.0.weight": [4] }]) {
    const { tensors, report } = planFull(new Map([...norms, ...shapes(more)]), differing, new Set(["layers.0.q"]));
    assert.deepEqual([tensors, report.length], [[], 1]);
    assert.match(report[0]!.what, /left out/);
  }
});
