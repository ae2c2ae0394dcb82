/** What the configs of Llama, Mistral and Qwen2 change, against transformers 5.23 in float64. */
import assert from "node:assert/strict";
import { forEachBackend } from "./backends.ts";
import { readLlamaConfig } from "../src/models/llama_config.ts";
import { llamaParameters } from "../src/models/llama_parameters.ts";
import { loadModel } from "../src/models/mod.ts";
import { parseJson } from "../src/formats/json.ts";
import { assertNear, generate, modelFolder, type SmallConfig } from "./models_support.ts";

const IDS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 16];

const SIZES = {
  vocab_size: 17,
  hidden_size: 12,
  intermediate_size: 20,
  num_hidden_layers: 2,
  num_attention_heads: 2,
  num_key_value_heads: 1,
  max_position_embeddings: 64,
  rms_norm_eps: 1e-5,
};

/** Configs, and the logits after the last of the ids. */
const VARIANTS: readonly (readonly [name: string, config: SmallConfig, logits: readonly number[]])[] = [
  ["llama with biases, llama3 rope scaling and a tied head", {
    ...SIZES,
    head_dim: 8,
    model_type: "llama",
    attention_bias: true,
    mlp_bias: true,
    tie_word_embeddings: true,
    rope_theta: 100.0,
    rope_scaling: {
      rope_type: "llama3",
      factor: 8.0,
      low_freq_factor: 1.0,
      high_freq_factor: 4.0,
      original_max_position_embeddings: 32,
    },
  }, [
    -1.278818,
    -0.6203045,
    -1.020448,
    2.397453,
    2.205966,
    2.160208,
    -1.183013,
    -0.2332065,
    -1.262051,
    1.619143,
    1.838098,
    2.23215,
    -0.1654511,
    -1.640504,
    -1.771335,
    0.4342496,
    2.7325,
  ]],
  ["mistral with a sliding window", {
    ...SIZES,
    head_dim: 8,
    model_type: "mistral",
    sliding_window: 4,
    rope_theta: 10000.0,
  }, [
    -2.164313,
    -2.181548,
    0.8960717,
    0.3263909,
    -0.6079298,
    2.543703,
    -0.2437973,
    -0.9283485,
    3.350426,
    -2.98746,
    0.7029555,
    -0.7067554,
    1.824553,
    -1.639426,
    -2.620673,
    0.07764445,
    0.8165785,
  ]],
  ["qwen2 with a window in its upper layers and linear rope scaling", {
    ...SIZES,
    head_dim: 6,
    model_type: "qwen2",
    use_sliding_window: true,
    sliding_window: 3,
    max_window_layers: 1,
    rope_theta: 10000.0,
    rope_scaling: { type: "linear", factor: 4.0 },
  }, [
    -0.006150349,
    -0.5872923,
    -0.8156817,
    -0.4294669,
    -0.9679474,
    -0.3540478,
    0.05353561,
    -1.15035,
    -0.9788007,
    0.9915064,
    0.3156517,
    -2.206923,
    -2.648896,
    -1.147621,
    0.06926932,
    -0.8950097,
    1.291625,
  ]],
];

/** Numbers in [-1, 1) of the generator 1103515245 s + 12345 mod 2³¹, which the reference used too. */
function parameter(name: string, size: number): Float32Array {
  let state = [...name].reduce((sum, character) => sum + character.charCodeAt(0), 0);
  return Float32Array.from({ length: size }, () => {
    state = (Math.imul(state, 1103515245) + 12345) & 0x7fffffff;
    const value = state / 2 ** 30 - 1;
    return name.includes("norm") ? 1 + 0.2 * value : 0.8 * value;
  });
}

for (const [name, config, logits] of VARIANTS) {
  forEachBackend(`forward() answers as transformers does: ${name}`, async (backend) => {
    const text = JSON.stringify(config);
    const shapes = llamaParameters(readLlamaConfig(parseJson(text, { file: "config.json" }), "config.json"));
    const tensors = [...shapes].map(([tensor, shape]) => {
      const size = shape.reduce((product, length) => product * length, 1);
      return [tensor, { shape, values: parameter(tensor, size) }] as const;
    });
    const model = await loadModel(modelFolder(config, new Map(tensors)), { backend, dtype: "f32" });
    const { values } = await model.forward([IDS]);
    assertNear(values.subarray(values.length - 17), logits, 1e-5, name);
    const best = logits.indexOf(Math.max(...logits));
    const { tokens } = await generate(model, IDS, { maxNewTokens: 1 });
    assert.deepEqual(tokens, [best]);
    const steps = await generate(model, IDS.slice(0, 2), { maxNewTokens: 8 });
    const again = await model.forward([[...IDS.slice(0, 2), ...steps.tokens.slice(0, -1)]]);
    steps.tokens.forEach((token, i) => {
      const row = again.values.subarray((i + 1) * 17, (i + 2) * 17);
      assert.ok(row[token]! >= Math.max(...row) - 1e-5, `token ${i} of the cache`);
    });
    model.dispose();
  });
}
