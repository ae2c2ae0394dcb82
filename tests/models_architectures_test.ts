/** GPT-2, Mixtral and BERT as their checkpoints come: names, spare tensors, configs, and what is refused. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { FormatError, LimitError, MismatchError, ShapeError } from "../src/errors.ts";
import type { JsonValue } from "../src/formats/json.ts";
import { memoryFolder } from "../src/formats/memory.ts";
import { encodeSafetensors } from "../src/formats/safetensors_writer.ts";
import { planCausal, planEncoder } from "../src/models/architectures.ts";
import { loadEncoder, loadModel } from "../src/models/mod.ts";
import { fromFloat32 } from "../src/formats/dtype.ts";
import { assertSameBits } from "./compare.ts";
import { fixture, logitsOf, modelFolder, readCheckpoint, readFiles } from "./models_support.ts";
import { random } from "./values.ts";

const IDS = [[5, 17, 99, 4, 42, 7], [1, 2, 3, 4, 5, 6]];

async function configOf(base: string): Promise<Record<string, unknown>> {
  return JSON.parse(new TextDecoder().decode((await readFiles(fixture(`base/${base}`))).get("config.json")));
}

type Tensors = Awaited<ReturnType<typeof readCheckpoint>>;

function renamed(tensors: Tensors, name: (old: string) => string): Tensors {
  return new Map([...tensors].map(([old, tensor]) => [name(old), tensor]));
}

const spare = (...shape: number[]) => ({ shape, values: new Float32Array(shape.reduce((a, b) => a * b, 1)) });

test("loadModel() takes a GPT-2 without its prefix, with the masks of old checkpoints", async () => {
  const [config, tensors] = [await configOf("gpt2"), await readCheckpoint(fixture("base/gpt2"))];
  const bare = renamed(tensors, (name) => name.replace("transformer.", ""));
  bare.set("h.0.attn.bias", spare(1, 1, 64, 64)).set("h.1.attn.masked_bias", spare(1));
  const [model, want] = [await loadModel(modelFolder(config, bare)), await loadModel(fixture("base/gpt2"))];
  assertSameBits(await logitsOf(model, IDS), await logitsOf(want, IDS), "logits");
  await model.loadAdapter("a", fixture("gpt2-plain/adapter"));
  model.dispose();
  want.dispose();
});

test("loadEncoder() takes a BERT that was pretrained with a head, and leaves the head out", async () => {
  const [config, tensors] = [await configOf("bert"), await readCheckpoint(fixture("base/bert"))];
  const headed = renamed(tensors, (name) => `bert.${name}`);
  headed.set("cls.predictions.bias", spare(127)).set("bert.embeddings.position_ids", spare(1, 64));
  const pretrained = { ...config, architectures: ["BertForMaskedLM"] };
  const [model, want] = [await loadEncoder(modelFolder(pretrained, headed)), await loadEncoder(fixture("base/bert"))];
  const answer = await model.forward(IDS);
  assert.deepEqual(answer.shape, [2, 6, 36]);
  assertSameBits(answer.values, (await want.forward(IDS)).values, "hidden state");
  await model.loadAdapter("a", fixture("bert-plain/adapter"));
  model.dispose();
  want.dispose();
});

test("a layer that an adapter trained in full is read as its base stores it, square ones too", async () => {
  const [config, tensors] = [await configOf("gpt2"), await readCheckpoint(fixture("base/gpt2"))];
  const next = random(1);
  const name = "transformer.h.0.attn.c_proj.weight";
  const values = Float32Array.from({ length: 1600 }, () => next() / 8);
  const files = await readFiles(fixture("gpt2-plain/adapter"));
  const adapter = await readCheckpointOf(files);
  adapter.set(`base_model.model.${name}`, fromFloat32(values, [40, 40]));
  const json = JSON.parse(new TextDecoder().decode(files.get("adapter_config.json")));
  const full = { ...json, modules_to_save: ["h.0.attn.c_proj"] };
  const folder = memoryFolder(
    new Map([
      ["adapter_config.json", new TextEncoder().encode(JSON.stringify(full))],
      ["adapter_model.safetensors", encodeSafetensors(adapter)],
    ]),
  );
  const model = await loadModel(fixture("base/gpt2"), { dtype: "f32" });
  await model.loadAdapter("a", folder);
  tensors.set(name, { shape: [40, 40], values });
  const want = await loadModel(modelFolder(config, tensors), { dtype: "f32" });
  await want.loadAdapter("a", fixture("gpt2-plain/adapter"));
  const [got, expected] = [await logitsOf(model, IDS, { adapter: "a" }), await logitsOf(want, IDS, { adapter: "a" })];
  got.forEach((value, i) => assert.ok(Math.abs(value - expected[i]!) < 1e-4, `${value}, ${expected[i]} at ${i}`));
  model.dispose();
  want.dispose();
});

async function readCheckpointOf(files: ReadonlyMap<string, Uint8Array>) {
  const { openCheckpoint } = await import("../src/formats/checkpoint.ts");
  const bytes = files.get("adapter_model.safetensors")!;
  const checkpoint = await openCheckpoint(memoryFolder(new Map([["model.safetensors", bytes]])));
  const stored = new Map<string, Awaited<ReturnType<typeof checkpoint.read>>>();
  for (const name of checkpoint.tensors.keys()) stored.set(name, await checkpoint.read(name));
  return stored;
}

const parse = (config: Readonly<Record<string, unknown>>): JsonValue => {
  return new Map(Object.entries(config).filter(([, value]) => value !== undefined)) as JsonValue;
};

test("configs of GPT-2, Mixtral and BERT refuse what they cannot compute, by field", async () => {
  const [gpt2, bert, mixtral] = [await configOf("gpt2"), await configOf("bert"), await configOf("mixtral")];
  const refused: readonly (readonly [
    Record<string, unknown>,
    Record<string, unknown>,
    string,
    typeof planCausal | typeof planEncoder,
  ])[] = [
    [gpt2, { activation_function: "relu" }, "activation_function", planCausal],
    [gpt2, { scale_attn_by_inverse_layer_idx: true }, "scale_attn_by_inverse_layer_idx", planCausal],
    [gpt2, { n_head: 7 }, "n_head", planCausal],
    [gpt2, { n_embd: "wide" }, "n_embd", planCausal],
    [bert, {}, "model_type", planCausal],
    [gpt2, {}, "model_type", planEncoder],
    [bert, { hidden_act: "relu" }, "hidden_act", planEncoder],
    [bert, { position_embedding_type: "relative_key" }, "position_embedding_type", planEncoder],
    [bert, { is_decoder: true }, "is_decoder", planEncoder],
    [bert, { num_attention_heads: 5 }, "num_attention_heads", planEncoder],
    [mixtral, { num_experts_per_tok: 5, rope_parameters: undefined }, "num_experts_per_tok", planCausal],
  ];
  for (const [base, change, field, plan] of refused) {
    assert.throws(() => plan(parse({ ...base, rope_parameters: undefined, ...change }), "config.json"), (error) => {
      return error instanceof FormatError && error.field === field;
    }, field);
  }
  assert.throws(() => planCausal(parse({ ...gpt2, n_layer: 1e6 }), "config.json"), LimitError);
});

test("an encoder refuses rows that do not fit, and adapters of other models", async () => {
  const model = await loadEncoder(fixture("base/bertcls"));
  assert.deepEqual((await model.forward(IDS)).shape, [2, 5]);
  assert.equal(model.config.labels!.length, 5);
  await assert.rejects(model.forward([]), ShapeError);
  await assert.rejects(model.forward([[1, 2], []]), ShapeError);
  await assert.rejects(model.forward([new Array(65).fill(1)]), LimitError);
  await assert.rejects(model.forward([[127]]), RangeError);
  await assert.rejects(model.loadAdapter("a", fixture("bert-plain/adapter")), MismatchError);
  await assert.rejects(model.loadAdapter("a", fixture("conv-plain/adapter")), MismatchError);
  assert.equal(model.adapters.size, 0);
  model.dispose();
});
