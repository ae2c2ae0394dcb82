/** What a config.json may say, and what is refused. */
import { test } from "node:test";
import assert from "node:assert/strict";
import { FormatError, LimitError } from "../src/errors.ts";
import { parseJson } from "../src/formats/json.ts";
import { type LlamaConfig, readLlamaConfig } from "../src/models/llama_config.ts";
import { inverseFrequencies, ropeRows } from "../src/models/rope.ts";

const LLAMA = {
  model_type: "llama",
  hidden_size: 64,
  intermediate_size: 128,
  num_hidden_layers: 3,
  num_attention_heads: 4,
  vocab_size: 100,
  max_position_embeddings: 256,
};

function read(fields: Record<string, unknown>): LlamaConfig {
  return readLlamaConfig(parseJson(JSON.stringify({ ...LLAMA, ...fields }), { file: "config.json" }), "config.json");
}

test("readLlamaConfig() takes transformers' defaults for absent fields", () => {
  assert.deepEqual(read({}), {
    modelType: "llama",
    hiddenSize: 64,
    intermediateSize: 128,
    heads: 4,
    kvHeads: 4,
    headDim: 16,
    layers: 3,
    vocabSize: 100,
    maxPositions: 256,
    normEps: 1e-6,
    ropeTheta: 10000,
    ropeScaling: { type: "default" },
    tiedHead: false,
    qkvBias: false,
    outputBias: false,
    mlpBias: false,
    qkNorm: false,
    windows: [null, null, null],
    experts: null,
    eosIds: [],
  });
  assert.equal(read({ model_type: "qwen3" }).headDim, 128);
});

test("readLlamaConfig() reads rotary fields of old and of new configs", () => {
  assert.equal(read({ rope_theta: 5e5 }).ropeTheta, 5e5);
  assert.equal(read({ rope_theta: 1, rope_parameters: { rope_theta: 5e5, rope_type: "default" } }).ropeTheta, 5e5);
  assert.deepEqual(read({ rope_scaling: { type: "linear", factor: 2 } }).ropeScaling, { type: "linear", factor: 2 });
  const llama3 = {
    factor: 8,
    low_freq_factor: 1,
    high_freq_factor: 4,
    original_max_position_embeddings: 8192,
    rope_type: "llama3",
  };
  assert.deepEqual(read({ rope_scaling: llama3 }).ropeScaling, {
    type: "llama3",
    factor: 8,
    lowFreqFactor: 1,
    highFreqFactor: 4,
    originalMaxPositions: 8192,
  });
});

test("readLlamaConfig() puts windows and biases where each model type has them", () => {
  assert.deepEqual(read({ sliding_window: 7 }).windows, [null, null, null]);
  assert.deepEqual(read({ model_type: "mistral", sliding_window: 7 }).windows, [7, 7, 7]);
  assert.deepEqual(read({ model_type: "mistral", sliding_window: null }).windows, [null, null, null]);
  const qwen = { model_type: "qwen2", sliding_window: 7, max_window_layers: 2 };
  assert.deepEqual(read({ ...qwen, use_sliding_window: false }).windows, [null, null, null]);
  assert.deepEqual(read({ ...qwen, use_sliding_window: true }).windows, [null, null, 7]);
  const types = ["sliding_attention", "full_attention", "full_attention"];
  assert.deepEqual(read({ ...qwen, use_sliding_window: true, layer_types: types }).windows, [7, null, null]);
  const { qkvBias, outputBias } = read({ model_type: "qwen2" });
  assert.deepEqual([qkvBias, outputBias], [true, false]);
  assert.equal(read({ attention_bias: true }).outputBias, true);
  assert.equal(read({ mlp_bias: true }).mlpBias, true);
});

test("readLlamaConfig() refuses what it cannot compute, or what has no sense, by field", () => {
  const cases: [Record<string, unknown>, string][] = [
    [{ model_type: "gpt2" }, "model_type"],
    [{ model_type: "smollm3" }, "model_type"],
    [{ hidden_act: "gelu" }, "hidden_act"],
    [{ quantization_config: { quant_method: "gptq" } }, "quantization_config"],
    [{ partial_rotary_factor: 0.5 }, "partial_rotary_factor"],
    [{ rope_scaling: { rope_type: "yarn", factor: 4 } }, "rope_scaling.rope_type"],
    [{ rope_scaling: { type: "dynamic", factor: 4 } }, "rope_scaling.type"],
    [{ rope_scaling: { type: "linear" } }, "rope_scaling.factor"],
    [{ rope_scaling: { type: "linear", factor: 0 } }, "rope_scaling.factor"],
    [{ rope_parameters: [] }, "rope_parameters"],
    [{ rope_parameters: {}, rope_scaling: { rope_type: "linear", factor: 2 } }, "rope_scaling"],
    [{ num_key_value_heads: 3 }, "num_key_value_heads"],
    [{ num_attention_heads: 7 }, "num_attention_heads"],
    [{ head_dim: 5 }, "head_dim"],
    [{ head_dim: "16" }, "head_dim"],
    [{ hidden_size: 1.5 }, "hidden_size"],
    [{ vocab_size: 0 }, "vocab_size"],
    [{ rms_norm_eps: -1 }, "rms_norm_eps"],
    [{ tie_word_embeddings: "yes" }, "tie_word_embeddings"],
    [{ eos_token_id: -1 }, "eos_token_id"],
    [{ model_type: "qwen2", use_sliding_window: true, sliding_window: 4, layer_types: ["chunked"] }, "layer_types"],
  ];
  for (const [fields, field] of cases) {
    assert.throws(() => read(fields), (error) => {
      assert(error instanceof FormatError, field);
      assert.equal(error.field, field);
      assert.equal(error.file, "config.json");
      return true;
    });
  }
});

test("readLlamaConfig() refuses sizes that no model has, before anything is sized by them", () => {
  for (const field of ["num_hidden_layers", "hidden_size", "vocab_size", "num_attention_heads"]) {
    assert.throws(() => read({ [field]: 2 ** 40 }), (error) => error instanceof LimitError && error.field === field);
  }
});

test("ropeRows() rotates by position times frequency, from each sequence's own place", () => {
  const frequencies = inverseFrequencies({ headDim: 4, ropeTheta: 100, ropeScaling: { type: "default" } });
  assert.deepEqual([...frequencies], [1, 0.1]);
  const { cos, sin } = ropeRows(frequencies, { length: 2, pasts: [3, 0, 3] });
  const angles = [3, 0.3, 4, 0.4, 0, 0, 1, 0.1, 3, 0.3, 4, 0.4];
  assert.equal(cos.length, angles.length);
  cos.forEach((value, i) => assert.ok(Math.abs(value - Math.cos(angles[i]!)) < 1e-6));
  sin.forEach((value, i) => assert.ok(Math.abs(value - Math.sin(angles[i]!)) < 1e-6));
});
