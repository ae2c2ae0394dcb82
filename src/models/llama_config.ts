/**
 * What a `config.json` says about a model of the Llama architecture: Llama, Mistral, Mixtral, Qwen2 and Qwen3 differ in
 * these fields only. Whatever would change the mathematics and is not supported is refused by name.
 *
 * @module
 */

import type { JsonValue } from "../formats/json.ts";
import { FormatError } from "../errors.ts";
import { ConfigFields } from "./config_fields.ts";
import type { ExpertSizes } from "./mixture.ts";
import type { CausalConfig } from "./transformer_config.ts";

/** Values of `model_type` that this architecture covers. */
export type LlamaModelType = "llama" | "mistral" | "qwen2" | "qwen3" | "mixtral";

/** How rotary frequencies are stretched beyond the context of pretraining. */
export type RopeScaling =
  | { readonly type: "default" }
  | { readonly type: "linear"; readonly factor: number }
  | {
    readonly type: "llama3";
    readonly factor: number;
    readonly lowFreqFactor: number;
    readonly highFreqFactor: number;
    readonly originalMaxPositions: number;
  };

/** The numbers that define a model of the Llama architecture. */
export interface LlamaConfig extends CausalConfig {
  /** `model_type`. */
  readonly modelType: LlamaModelType;
  /** Base of the rotary frequencies. */
  readonly ropeTheta: number;
  /** Their scaling. */
  readonly ropeScaling: RopeScaling;
  /** q, k and v have a bias. */
  readonly qkvBias: boolean;
  /** The output projection of attention has a bias. */
  readonly outputBias: boolean;
  /** gate, up and down have a bias. */
  readonly mlpBias: boolean;
  /** q and k are normalised per head (Qwen3). */
  readonly qkNorm: boolean;
  /** Per layer: how many positions a query sees, itself included; null is all before it. */
  readonly windows: readonly (number | null)[];
  /** Experts that share the feed-forward branch (Mixtral); null for one branch. */
  readonly experts: ExpertSizes | null;
}

const MODEL_TYPES: readonly LlamaModelType[] = ["llama", "mistral", "qwen2", "qwen3", "mixtral"];

/** Fields that change the mathematics, with the only value supported. */
const NEUTRAL: readonly (readonly [field: string, value: JsonValue])[] = [
  ["hidden_act", "silu"],
  ["partial_rotary_factor", 1],
  ["quantization_config", null],
  ["attn_logit_softcapping", null],
  ["final_logit_softcapping", null],
  ["embedding_multiplier", 1],
  ["residual_multiplier", 1],
  ["attention_multiplier", null],
  ["logits_scaling", 1],
  ["use_mrope", false],
];

/**
 * Reads a parsed `config.json`.
 *
 * @param json The file's object.
 * @param file Name that stands in messages.
 * @throws {FormatError} If a field is missing, has no sense, or asks for what this architecture lacks.
 * @throws {LimitError} If a size is beyond what any model has.
 */
export function readLlamaConfig(json: JsonValue, file: string): LlamaConfig {
  if (!(json instanceof Map)) {
    throw new FormatError(`Cannot read "${file}": expected a JSON object`, { file, expected: "a JSON object" });
  }
  const fields = new ConfigFields(json, file);
  const modelType = fields.choice("model_type", MODEL_TYPES);
  fields.requireNeutral(NEUTRAL);
  const attentionBias = modelType !== "mistral" && modelType !== "mixtral" && fields.flag("attention_bias", false);
  const layers = fields.integer("num_hidden_layers", { max: 1024 });
  return {
    modelType,
    ...readWidths(fields, modelType),
    layers,
    vocabSize: fields.integer("vocab_size", { max: 2 ** 24 }),
    maxPositions: fields.integer("max_position_embeddings", { max: 2 ** 31 - 1 }),
    normEps: fields.positive("rms_norm_eps", { absent: 1e-6 }),
    ...readRope(fields),
    tiedHead: fields.flag("tie_word_embeddings", false),
    qkvBias: modelType === "qwen2" || attentionBias,
    outputBias: modelType !== "qwen2" && attentionBias,
    mlpBias: modelType === "llama" && fields.flag("mlp_bias", false),
    qkNorm: modelType === "qwen3",
    windows: readWindows(fields, modelType, layers),
    experts: modelType === "mixtral" ? readExperts(fields) : null,
    eosIds: fields.tokenIds("eos_token_id"),
  };
}

function readExperts(fields: ConfigFields): ExpertSizes {
  const count = fields.integer("num_local_experts", { max: 2 ** 12, absent: 8 });
  const used = fields.integer("num_experts_per_tok", { max: 2 ** 12, absent: 2 });
  if (used > count) fields.refuse("num_experts_per_tok", `at most num_local_experts = ${count}`);
  return { count, used };
}

function readWidths(
  fields: ConfigFields,
  modelType: LlamaModelType,
): Pick<LlamaConfig, "hiddenSize" | "intermediateSize" | "heads" | "kvHeads" | "headDim"> {
  const hiddenSize = fields.integer("hidden_size", { max: 2 ** 20 });
  const intermediateSize = fields.integer("intermediate_size", { max: 2 ** 22 });
  const heads = fields.integer("num_attention_heads", { max: 2 ** 14 });
  const kvHeads = fields.integer("num_key_value_heads", { max: 2 ** 14, absent: heads });
  if (heads % kvHeads !== 0) fields.refuse("num_key_value_heads", `a divisor of num_attention_heads = ${heads}`);
  // Transformers' own defaults: Qwen3 has a constant, the others divide.
  const absent = modelType === "qwen3" ? 128 : hiddenSize / heads;
  const headDim = fields.integer("head_dim", { max: 2 ** 14, absent });
  if (!Number.isInteger(headDim)) fields.refuse("num_attention_heads", `a divisor of hidden_size = ${hiddenSize}`);
  if (headDim % 2 !== 0) fields.refuse("head_dim", `an even head width, not ${headDim}`);
  return { hiddenSize, intermediateSize, heads, kvHeads, headDim };
}

/** New configs say `rope_parameters`, old ones `rope_theta` and `rope_scaling`. */
function readRope(fields: ConfigFields): Pick<LlamaConfig, "ropeTheta" | "ropeScaling"> {
  const outer = fields.positive("rope_theta", { absent: 10000 });
  const parameters = readRopeObject(fields.object("rope_parameters"), outer);
  const scaling = readRopeObject(fields.object("rope_scaling"), outer);
  if (parameters && scaling && JSON.stringify(parameters) !== JSON.stringify(scaling)) {
    fields.refuse("rope_scaling", "the same as rope_parameters, or null");
  }
  return parameters ?? scaling ?? { ropeTheta: outer, ropeScaling: { type: "default" } };
}

function readRopeObject(
  rope: ConfigFields | null,
  outer: number,
): Pick<LlamaConfig, "ropeTheta" | "ropeScaling"> | null {
  if (rope === null) return null;
  const ropeTheta = rope.positive("rope_theta", { absent: outer });
  if ((rope.value("partial_rotary_factor") ?? 1) !== 1) rope.refuse("partial_rotary_factor", "1");
  const key = rope.value("rope_type") === null && rope.value("type") !== null ? "type" : "rope_type";
  const type = rope.choice(key, ["default", "linear", "llama3"], "default");
  if (type === "default") return { ropeTheta, ropeScaling: { type } };
  const factor = rope.positive("factor");
  if (type === "linear") return { ropeTheta, ropeScaling: { type, factor } };
  const lowFreqFactor = rope.positive("low_freq_factor");
  const highFreqFactor = rope.positive("high_freq_factor");
  if (highFreqFactor <= lowFreqFactor) rope.refuse("high_freq_factor", `more than low_freq_factor = ${lowFreqFactor}`);
  const originalMaxPositions = rope.integer("original_max_position_embeddings", { max: 2 ** 31 - 1 });
  return { ropeTheta, ropeScaling: { type, factor, lowFreqFactor, highFreqFactor, originalMaxPositions } };
}

/** Mistral's and Mixtral's window is in every layer; Qwen's only where it is switched on, from a layer upwards or by name. */
function readWindows(fields: ConfigFields, modelType: LlamaModelType, layers: number): (number | null)[] {
  const qwen = modelType === "qwen2" || modelType === "qwen3";
  const applies = modelType === "mistral" || modelType === "mixtral" ||
    (qwen && fields.flag("use_sliding_window", false));
  const none = new Array<number | null>(layers).fill(null);
  if (!applies || fields.value("sliding_window") === null) return none;
  const window = fields.integer("sliding_window", { max: 2 ** 31 - 1 });
  if (!qwen) return none.fill(window);
  const types = fields.value("layer_types");
  if (types === null) return none.fill(window, fields.integer("max_window_layers", { min: 0, max: 1024, absent: 28 }));
  if (!Array.isArray(types) || types.length !== layers) return fields.refuse("layer_types", `a list of ${layers}`);
  return types.map((type) => {
    if (type === "sliding_attention") return window;
    return type === "full_attention" ? null : fields.refuse("layer_types", '"full_attention" or "sliding_attention"');
  });
}
