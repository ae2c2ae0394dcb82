/**
 * What a `config.json` says about a GPT-2, and the tensors that follow from it.
 *
 * @module
 */

import type { JsonValue } from "../formats/json.ts";
import { ConfigFields } from "./config_fields.ts";
import type { CausalConfig } from "./transformer_config.ts";

/** The numbers that define a GPT-2. */
export interface Gpt2Config extends CausalConfig {
  /** `model_type`. */
  readonly modelType: "gpt2";
  /** `"tanh"` for the approximation of GELU, undefined for GELU itself. */
  readonly activation: "tanh" | undefined;
}

/** Fields that change the mathematics, with the only value supported. */
const NEUTRAL: readonly (readonly [field: string, value: JsonValue])[] = [
  ["scale_attn_weights", true],
  ["scale_attn_by_inverse_layer_idx", false],
  ["add_cross_attention", false],
  ["quantization_config", null],
];

/**
 * Reads a parsed `config.json`.
 *
 * @param json The file's object.
 * @param file Name that stands in messages.
 * @throws {FormatError} If a field is missing, has no sense, or asks for what this architecture lacks.
 * @throws {LimitError} If a size is beyond what any model has.
 */
export function readGpt2Config(json: ReadonlyMap<string, JsonValue>, file: string): Gpt2Config {
  const fields = new ConfigFields(json, file);
  fields.requireNeutral(NEUTRAL);
  const hiddenSize = fields.integer("n_embd", { max: 2 ** 20 });
  const heads = fields.integer("n_head", { max: 2 ** 14 });
  if (hiddenSize % heads !== 0) fields.refuse("n_head", `a divisor of n_embd = ${hiddenSize}`);
  return {
    modelType: "gpt2",
    hiddenSize,
    intermediateSize: fields.integer("n_inner", { max: 2 ** 22, absent: 4 * hiddenSize }),
    layers: fields.integer("n_layer", { max: 1024 }),
    heads,
    kvHeads: heads,
    headDim: hiddenSize / heads,
    vocabSize: fields.integer("vocab_size", { max: 2 ** 24 }),
    maxPositions: fields.integer("n_positions", { max: 2 ** 31 - 1 }),
    normEps: fields.positive("layer_norm_epsilon", { absent: 1e-5 }),
    activation: fields.gelu("activation_function", "gelu_new"),
    tiedHead: fields.flag("tie_word_embeddings", true),
    eosIds: fields.tokenIds("eos_token_id"),
  };
}

/** Every parameter's shape as stored: matrices of Conv1D are (in, out). */
export function gpt2Parameters(config: Gpt2Config): Map<string, readonly number[]> {
  const { hiddenSize, intermediateSize, vocabSize, maxPositions } = config;
  const shapes = new Map<string, readonly number[]>([
    ["transformer.wte.weight", [vocabSize, hiddenSize]],
    ["transformer.wpe.weight", [maxPositions, hiddenSize]],
  ]);
  const add = (path: string, ...shape: number[]): void => {
    shapes.set(`${path}.weight`, shape);
    shapes.set(`${path}.bias`, [shape.at(-1)!]);
  };
  for (let i = 0; i < config.layers; i++) {
    const layer = `transformer.h.${i}`;
    add(`${layer}.ln_1`, hiddenSize);
    add(`${layer}.attn.c_attn`, hiddenSize, 3 * hiddenSize);
    add(`${layer}.attn.c_proj`, hiddenSize, hiddenSize);
    add(`${layer}.ln_2`, hiddenSize);
    add(`${layer}.mlp.c_fc`, hiddenSize, intermediateSize);
    add(`${layer}.mlp.c_proj`, intermediateSize, hiddenSize);
  }
  add("transformer.ln_f", hiddenSize);
  if (!config.tiedHead) shapes.set("lm_head.weight", [vocabSize, hiddenSize]);
  return shapes;
}

/** Whether a matrix is stored (in, out). */
export function isConv1d(name: string): boolean {
  return /\.c_(?:attn|proj|fc)\.weight$/.test(name);
}

/** Whether a tensor that is no parameter may stand in a checkpoint: masks, and a tied head twice. */
export function isSpareGpt2Tensor(name: string, config: Gpt2Config): boolean {
  return /\.attn\.(?:bias|masked_bias)$/.test(name) || (config.tiedHead && name === "lm_head.weight");
}
