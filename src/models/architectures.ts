/**
 * The architectures by `model_type`: how each reads its config, which tensors it wants, and what it makes of them.
 *
 * @module
 */

import { FormatError } from "../errors.ts";
import type { JsonValue } from "../formats/json.ts";
import { quote } from "../formats/quote.ts";
import { Bert } from "./bert.ts";
import { type BertConfig, bertParameters, isSpareBertTensor, readBertConfig } from "./bert_config.ts";
import { CausalNetwork } from "./causal_network.ts";
import { Gpt2 } from "./gpt2.ts";
import { type Gpt2Config, gpt2Parameters, isConv1d, isSpareGpt2Tensor, readGpt2Config } from "./gpt2_config.ts";
import { Llama } from "./llama.ts";
import { type LlamaConfig, readLlamaConfig } from "./llama_config.ts";
import { isSpareTensor, llamaParameters } from "./llama_parameters.ts";
import type { ModelLayers, TensorRules } from "./model_layers.ts";

/** What a model wants of its checkpoint. */
export interface ModelTensors extends TensorRules {
  /** Shape by name, as stored. */
  readonly shapes: ReadonlyMap<string, readonly number[]>;
  /** What the names of tensors begin with, where a checkpoint may leave it out, or may have it in spite of us. */
  readonly prefix: { readonly name: string; readonly ours: boolean } | null;
}

/** A causal language model by its config. */
export interface CausalPlan {
  /** Its numbers. */
  readonly config: LlamaConfig | Gpt2Config;
  /** Its tensors. */
  readonly tensors: ModelTensors;
  /** Makes the network. */
  readonly build: (layers: ModelLayers) => CausalNetwork;
}

/** An encoder by its config. */
export interface EncoderPlan {
  /** Its numbers. */
  readonly config: BertConfig;
  /** Its tensors. */
  readonly tensors: ModelTensors;
  /** Makes the network. */
  readonly build: (layers: ModelLayers) => Bert;
}

/**
 * Plans a causal language model.
 *
 * @throws {FormatError} If the config is of another kind of model, or asks for what is not supported.
 */
export function planCausal(json: JsonValue, file: string): CausalPlan {
  const { fields, modelType } = readType(json, file);
  if (modelType === "bert") {
    const message = `Cannot read ${quote(file)} with "model_type" = "bert" as a language model: it is an encoder`;
    throw new FormatError(`${message}, expected loadEncoder()`, { file, field: "model_type", found: modelType });
  }
  if (modelType === "gpt2") {
    const config = readGpt2Config(fields, file);
    const tensors: ModelTensors = {
      shapes: gpt2Parameters(config),
      isSpare: (name) => isSpareGpt2Tensor(name, config),
      isTransposed: isConv1d,
      prefix: { name: "transformer.", ours: true },
    };
    return { config, tensors, build: (layers) => new CausalNetwork(new Gpt2(layers, config)) };
  }
  const config = readLlamaConfig(json, file);
  const isSpare = (name: string) => isSpareTensor(name, config);
  const tensors: ModelTensors = { shapes: llamaParameters(config), isSpare, prefix: null };
  return { config, tensors, build: (layers) => new CausalNetwork(new Llama(layers, config)) };
}

/**
 * Plans an encoder.
 *
 * @throws {FormatError} If the config is of another kind of model, or asks for what is not supported.
 */
export function planEncoder(json: JsonValue, file: string): EncoderPlan {
  const { fields, modelType } = readType(json, file);
  if (modelType !== "bert") {
    const message = `Cannot read ${quote(file)} with "model_type" = ${JSON.stringify(modelType)} as an encoder`;
    throw new FormatError(`${message}: expected "bert"`, { file, field: "model_type", found: modelType });
  }
  const config = readBertConfig(fields, file);
  const prefix = { name: "bert.", ours: config.labels !== null };
  const tensors = { shapes: bertParameters(config), isSpare: isSpareBertTensor, prefix };
  return { config, tensors, build: (layers) => new Bert(layers, config) };
}

function readType(json: JsonValue, file: string): { fields: ReadonlyMap<string, JsonValue>; modelType: unknown } {
  if (json instanceof Map) return { fields: json, modelType: json.get("model_type") };
  throw new FormatError(`Cannot read ${quote(file)}: expected a JSON object`, { file, expected: "a JSON object" });
}

/** How names of parameters and of a checkpoint's tensors belong together. */
export interface TensorNames {
  /** The tensor of a parameter. */
  readonly tensorOf: (name: string) => string;
  /** The parameter of a tensor. */
  readonly nameOf: (tensor: string) => string;
}

/** Finds whether a checkpoint has the prefix that its model has, or has one that its model lacks. */
export function matchNames({ prefix }: ModelTensors, tensors: { keys(): Iterable<string> }): TensorNames {
  const same = { tensorOf: (name: string) => name, nameOf: (tensor: string) => tensor };
  if (!prefix) return same;
  const { name: text, ours } = prefix;
  const has = [...tensors.keys()].some((name) => name.startsWith(text));
  if (has === ours) return same;
  const cut = (name: string) => name.startsWith(text) ? name.slice(text.length) : name;
  const isOutside = (name: string) => /^(?:lm_head|classifier|cls)\./.test(name);
  const add = (name: string) => isOutside(name) ? name : text + name;
  return ours ? { tensorOf: cut, nameOf: add } : { tensorOf: add, nameOf: cut };
}
