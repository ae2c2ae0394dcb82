/**
 * What a `config.json` says about a BERT encoder, and the tensors that follow from it.
 *
 * @module
 */

import type { JsonValue } from "../formats/json.ts";
import { ConfigFields } from "./config_fields.ts";
import type { TransformerConfig } from "./transformer_config.ts";

/** The numbers that define a BERT encoder. */
export interface BertConfig extends TransformerConfig {
  /** `model_type`. */
  readonly modelType: "bert";
  /** Rows of the embedding of token types; all tokens have type 0. */
  readonly tokenTypes: number;
  /** `"tanh"` for the approximation of GELU, undefined for GELU itself. */
  readonly activation: "tanh" | undefined;
  /** Classes of a sequence; null where the output is the last hidden state. */
  readonly labels: readonly string[] | null;
}

/** Fields that change the mathematics, with the only value supported. */
const NEUTRAL: readonly (readonly [field: string, value: JsonValue])[] = [
  ["is_decoder", false],
  ["add_cross_attention", false],
  ["position_embedding_type", "absolute"],
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
export function readBertConfig(json: ReadonlyMap<string, JsonValue>, file: string): BertConfig {
  const fields = new ConfigFields(json, file);
  fields.requireNeutral(NEUTRAL);
  const hiddenSize = fields.integer("hidden_size", { max: 2 ** 20 });
  const heads = fields.integer("num_attention_heads", { max: 2 ** 14 });
  if (hiddenSize % heads !== 0) fields.refuse("num_attention_heads", `a divisor of hidden_size = ${hiddenSize}`);
  return {
    modelType: "bert",
    hiddenSize,
    intermediateSize: fields.integer("intermediate_size", { max: 2 ** 22 }),
    layers: fields.integer("num_hidden_layers", { max: 1024 }),
    heads,
    vocabSize: fields.integer("vocab_size", { max: 2 ** 24 }),
    maxPositions: fields.integer("max_position_embeddings", { max: 2 ** 31 - 1 }),
    tokenTypes: fields.integer("type_vocab_size", { max: 2 ** 16, absent: 2 }),
    normEps: fields.positive("layer_norm_eps", { absent: 1e-12 }),
    activation: fields.gelu("hidden_act", "gelu"),
    labels: readLabels(fields),
  };
}

/** The classes by their number, where the checkpoint is one of a sequence classifier; two where none are named. */
function readLabels(fields: ConfigFields): string[] | null {
  const architectures = fields.value("architectures");
  const isClassifier = Array.isArray(architectures) && architectures.includes("BertForSequenceClassification");
  if (!isClassifier) return null;
  const names = fields.value("id2label");
  if (names === null) return ["LABEL_0", "LABEL_1"];
  if (!(names instanceof Map)) return fields.refuse("id2label", "an object");
  return Array.from({ length: names.size }, (_, i) => {
    const name = names.get(String(i));
    return typeof name === "string" ? name : fields.refuse("id2label", `a name for each number below ${names.size}`);
  });
}

/** What the names of modules begin with. */
export function bertPrefix({ labels }: Pick<BertConfig, "labels">): string {
  return labels ? "bert." : "";
}

/** Every parameter's shape: matrices (out, in), vectors (out). */
export function bertParameters(config: BertConfig): Map<string, readonly number[]> {
  const { hiddenSize, intermediateSize, labels } = config;
  const shapes = new Map<string, readonly number[]>();
  const prefix = bertPrefix(config);
  const add = (path: string, ...shape: number[]): void => {
    shapes.set(`${prefix}${path}.weight`, shape);
    shapes.set(`${prefix}${path}.bias`, [shape[0]!]);
  };
  const table = (name: string, rows: number) => shapes.set(`${prefix}embeddings.${name}.weight`, [rows, hiddenSize]);
  table("word_embeddings", config.vocabSize);
  table("position_embeddings", config.maxPositions);
  table("token_type_embeddings", config.tokenTypes);
  add("embeddings.LayerNorm", hiddenSize);
  for (let i = 0; i < config.layers; i++) {
    const layer = `encoder.layer.${i}`;
    for (const part of ["query", "key", "value"]) add(`${layer}.attention.self.${part}`, hiddenSize, hiddenSize);
    add(`${layer}.attention.output.dense`, hiddenSize, hiddenSize);
    add(`${layer}.attention.output.LayerNorm`, hiddenSize);
    add(`${layer}.intermediate.dense`, intermediateSize, hiddenSize);
    add(`${layer}.output.dense`, hiddenSize, intermediateSize);
    add(`${layer}.output.LayerNorm`, hiddenSize);
  }
  if (labels) {
    add("pooler.dense", hiddenSize, hiddenSize);
    shapes.set("classifier.weight", [labels.length, hiddenSize]);
    shapes.set("classifier.bias", [labels.length]);
  }
  return shapes;
}

/** Whether a tensor that is no parameter may stand in a checkpoint: other heads, a pooler that is not used, buffers. */
export function isSpareBertTensor(name: string): boolean {
  return /^cls\.|\bpooler\.|\.position_ids$/.test(name);
}
