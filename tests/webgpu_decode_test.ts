/** A decode step stays on the GPU: one submission, and nothing is read back but the token's id. */
import { test } from "node:test";
import assert from "node:assert/strict";
import type { Adapter } from "../mod.ts";
import { createAdapter } from "../src/adapter/mod.ts";
import type { Backend } from "../src/backend.ts";
import type { Folder } from "../src/formats/source.ts";
import { type GenerateOptions, type LanguageModel, loadModel } from "../src/models/mod.ts";
import { openBackend } from "../src/open.ts";
import { generate, modelFolder } from "./models_support.ts";
import { random } from "./values.ts";
import { countTraffic, type DeviceTraffic, gpuSkip, withGpu } from "./webgpu_support.ts";

const onGpu = await gpuSkip();

const [LAYERS, WIDTH, KV_WIDTH, INNER, VOCABULARY] = [30, 36, 12, 96, 512];

/** SmolLM2-135M's 30 layers and heads, narrow, with random weights. */
function smallSmolLm2(): Folder {
  const config = {
    model_type: "llama",
    vocab_size: VOCABULARY,
    hidden_size: WIDTH,
    intermediate_size: INNER,
    num_hidden_layers: LAYERS,
    num_attention_heads: 9,
    num_key_value_heads: 3,
    max_position_embeddings: 256,
    rope_theta: 100_000,
    rms_norm_eps: 1e-5,
    tie_word_embeddings: true,
  };
  const next = random(1);
  const tensors = new Map<string, { shape: readonly number[]; values: Float32Array }>();
  const matrix = (name: string, out: number, inner: number) => {
    tensors.set(name, { shape: [out, inner], values: Float32Array.from({ length: out * inner }, () => next() / 4) });
  };
  const gain = (name: string) => tensors.set(name, { shape: [WIDTH], values: new Float32Array(WIDTH).fill(1) });
  matrix("model.embed_tokens.weight", VOCABULARY, WIDTH);
  for (let i = 0; i < LAYERS; i++) {
    const layer = `model.layers.${i}`;
    for (const name of ["q", "o"]) matrix(`${layer}.self_attn.${name}_proj.weight`, WIDTH, WIDTH);
    for (const name of ["k", "v"]) matrix(`${layer}.self_attn.${name}_proj.weight`, KV_WIDTH, WIDTH);
    for (const name of ["gate", "up"]) matrix(`${layer}.mlp.${name}_proj.weight`, INNER, WIDTH);
    matrix(`${layer}.mlp.down_proj.weight`, WIDTH, INNER);
    for (const name of ["input", "post_attention"]) gain(`${layer}.${name}_layernorm.weight`);
  }
  gain("model.norm.weight");
  return modelFolder(config, tensors);
}

/** PEFT's default for Llama: q and v. */
function qvAdapter(): Promise<Adapter> {
  const modules = Array.from({ length: LAYERS }, (_, i) => `model.layers.${i}.self_attn`).flatMap((path) => [
    { name: `${path}.q_proj`, inFeatures: WIDTH, outFeatures: WIDTH },
    { name: `${path}.v_proj`, inFeatures: WIDTH, outFeatures: KV_WIDTH },
  ]);
  return createAdapter({ modules, targetModules: ["q_proj", "v_proj"], r: 4, init: "gaussian" });
}

async function open(backend: Backend): Promise<LanguageModel> {
  const model = await loadModel(smallSmolLm2(), { backend, dtype: "f32" });
  await model.loadAdapter("a", await qvAdapter());
  return model;
}

/** Norms, products, rotations, the cache, attention, residuals and the gate of one layer. */
const LAYER_DISPATCHES = 2 + 7 + 2 + 2 + 1 + 2 + 1;
/** Embedding, last row, norm, head, choice. */
const OTHER_DISPATCHES = 5;

const CHOICES: readonly (readonly [string, GenerateOptions])[] = [
  ["greedy", {}],
  ["sampled", { temperature: 0.8, topK: 50, topP: 0.95, minP: 0.01, seed: 3 }],
];

for (const [name, choice] of CHOICES) {
  test(`a ${name} decode step of 30 layers is one submission that reads back one id`, onGpu, async () => {
    const traffic: DeviceTraffic = { submits: 0, readbacks: [] };
    await withGpu(
      async (backend) => {
        const model = await open(backend);
        for (const [adapter, more] of [[null, 0], ["a", 2 * LAYERS]] as const) {
          const steps: [dispatches: number, submits: number][] = [];
          let before = backend.counts.dispatches;
          Object.assign(traffic, { submits: 0, readbacks: [] });
          const onToken = () => {
            steps.push([backend.counts.dispatches - before, traffic.submits]);
            before = backend.counts.dispatches;
            traffic.submits = 0;
          };
          const { tokens } = await generate(model, [5, 17, 99], { ...choice, adapter, maxNewTokens: 3, onToken });
          const each = LAYERS * LAYER_DISPATCHES + OTHER_DISPATCHES + more;
          assert.deepEqual(steps, tokens.map(() => [each, 1]));
          assert.deepEqual(traffic.readbacks, tokens.map(() => 4));
        }
      },
      {},
      (device) => countTraffic(device, traffic),
    );
  });
}

test("the GPU samples what wasm samples from the same seed", onGpu, async () => {
  await withGpu(async (gpu) => {
    const wasm = await openBackend({ prefer: "wasm" });
    const models = [await open(gpu), await open(wasm)];
    const options = { temperature: 1.2, topP: 0.9, seed: 1, adapter: "a", maxNewTokens: 5 };
    const answers = await Promise.all(models.map((model) => generate(model, [5, 17, 99], options)));
    assert.deepEqual(answers[0], answers[1]);
    wasm.dispose();
  });
});
