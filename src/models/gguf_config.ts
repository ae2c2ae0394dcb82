/**
 * A Hugging Face `config.json` made from the metadata of a GGUF file.
 *
 * @module
 */

import { FormatError } from "../errors.ts";
import type { Gguf, GgufValue } from "../formats/gguf.ts";
import { quote } from "../formats/quote.ts";
import { inverseFrequencies } from "./rope.ts";

/** Architectures of GGUF files that this package reads, with their `model_type`. */
const MODEL_TYPES: ReadonlyMap<string, string> = new Map([["llama", "llama"], ["qwen2", "qwen2"], ["qwen3", "qwen3"]]);

/** Keys under the architecture's prefix that change nothing, or are read below; any other is refused by name. */
const KNOWN_KEYS: ReadonlySet<string> = new Set([
  "attention.head_count",
  "attention.head_count_kv",
  "attention.key_length",
  "attention.layer_norm_rms_epsilon",
  "attention.sliding_window",
  "attention.value_length",
  "block_count",
  "context_length",
  "embedding_length",
  "expert_count",
  "expert_used_count",
  "feed_forward_length",
  "rope.dimension_count",
  "rope.freq_base",
  "rope.scaling.factor",
  "rope.scaling.finetuned",
  "rope.scaling.original_context_length",
  "rope.scaling.type",
  "vocab_size",
]);

/** What {@linkcode ggufConfig} found. */
export interface GgufConfig {
  /** The object to write as `config.json`. */
  readonly json: Readonly<Record<string, unknown>>;
  /** Ids that end a text. */
  readonly eosIds: readonly number[];
  /** Rows of q and k stand in the order of the original Llama code, (2, d/2) of every head interleaved. */
  readonly permuted: boolean;
}

/**
 * Translates a GGUF file's metadata. Its values are checked where the made `config.json` is read.
 *
 * @param gguf The file's header.
 * @param file Name that stands in messages.
 * @param ropeFactors The tensor `rope_freqs.weight`, where the file has it.
 * @throws {FormatError} If the architecture is not covered, or a key asks for what it lacks.
 */
export function ggufConfig(gguf: Gguf, file: string, ropeFactors: Float32Array | null): GgufConfig {
  const architecture = gguf.metadata.get("general.architecture");
  const modelType = typeof architecture === "string" ? MODEL_TYPES.get(architecture) : undefined;
  if (modelType === undefined) {
    return refuse(file, "general.architecture", architecture, [...MODEL_TYPES.keys()].join(", "));
  }
  const metadata = new Metadata(gguf, file, `${architecture}.`);
  metadata.refuseUnknown();
  metadata.require("expert_count", 0);
  const eosIds = tokenIds(gguf, ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"]);
  const window = metadata.get("attention.sliding_window");
  const json = {
    architectures: [ARCHITECTURES[modelType]],
    // A Mistral with a window is stored as "llama"; only the name mistral makes the window apply.
    model_type: window !== undefined && modelType === "llama" ? "mistral" : modelType,
    ...widthFields(metadata),
    intermediate_size: metadata.get("feed_forward_length"),
    num_hidden_layers: metadata.get("block_count"),
    vocab_size: gguf.tensors.get("token_embd.weight")?.shape[0],
    max_position_embeddings: metadata.get("context_length"),
    rms_norm_eps: metadata.get("attention.layer_norm_rms_epsilon"),
    ...ropeFields(metadata, ropeFactors),
    hidden_act: "silu",
    tie_word_embeddings: !gguf.tensors.has("output.weight"),
    attention_bias: modelType === "llama" && gguf.tensors.has("blk.0.attn_q.bias"),
    mlp_bias: gguf.tensors.has("blk.0.ffn_gate.bias"),
    ...windowFields(modelType, window),
    bos_token_id: tokenIds(gguf, ["tokenizer.ggml.bos_token_id"])[0] ?? null,
    eos_token_id: eosIds[0] ?? null,
  };
  return { json, eosIds, permuted: architecture === "llama" };
}

const ARCHITECTURES: Readonly<Record<string, string>> = {
  llama: "LlamaForCausalLM",
  qwen2: "Qwen2ForCausalLM",
  qwen3: "Qwen3ForCausalLM",
};

function refuse(file: string, field: string, found: GgufValue | undefined, expected: string): never {
  throw new FormatError(`Cannot read ${quote(file)} with ${quote(field)} = ${show(found)}: expected ${expected}`, {
    file,
    field,
    found,
    expected,
  });
}

function show(found: GgufValue | undefined): string {
  if (found === undefined) return "nothing";
  if (typeof found === "object") return "a list";
  return typeof found === "string" ? quote(found) : String(found);
}

/** The keys under the architecture's prefix. */
class Metadata {
  readonly #gguf: Gguf;
  readonly #file: string;
  readonly #prefix: string;

  constructor(gguf: Gguf, file: string, prefix: string) {
    this.#gguf = gguf;
    this.#file = file;
    this.#prefix = prefix;
  }

  /** The value; integers as numbers, and float32 as the decimal that was meant (1e-5, not 9.999999747378752e-6). */
  get(key: string): number | string | boolean | undefined {
    const value = this.#gguf.metadata.get(this.#prefix + key);
    if (typeof value === "bigint") return Number(value);
    if (typeof value === "object") return this.refuse(key, "one value for all layers");
    if (typeof value !== "number") return value;
    // JSON would write null for it, which stands for a default.
    if (!Number.isFinite(value)) return this.refuse(key, "a finite number");
    const short = Number(value.toPrecision(7));
    return Math.fround(short) === Math.fround(value) && !Number.isInteger(value) ? short : value;
  }

  /** Refuses the key's value where it is present and not `expected`. */
  require(key: string, expected: number | string | boolean | undefined): void {
    if ((this.get(key) ?? expected) !== expected) this.refuse(key, `${expected}`);
  }

  refuse(key: string, expected: string): never {
    return refuse(this.#file, this.#prefix + key, this.#gguf.metadata.get(this.#prefix + key), expected);
  }

  refuseUnknown(): void {
    for (const key of this.#gguf.metadata.keys()) {
      if (key.startsWith(this.#prefix) && !KNOWN_KEYS.has(key.slice(this.#prefix.length))) {
        this.refuse(key.slice(this.#prefix.length), "no such key: its meaning is not known here");
      }
    }
  }
}

function widthFields(metadata: Metadata): Record<string, unknown> {
  const hidden = metadata.get("embedding_length");
  const heads = metadata.get("attention.head_count");
  const quotient = typeof hidden === "number" && typeof heads === "number" ? hidden / heads : undefined;
  const headDim = metadata.get("attention.key_length") ?? quotient;
  metadata.require("attention.value_length", headDim);
  metadata.require("rope.dimension_count", headDim);
  return {
    hidden_size: hidden,
    num_attention_heads: heads,
    num_key_value_heads: metadata.get("attention.head_count_kv") ?? heads,
    head_dim: headDim,
  };
}

function tokenIds(gguf: Gguf, keys: readonly string[]): number[] {
  const ids = keys.map((key) => gguf.metadata.get(key)).filter((id) => typeof id === "number");
  return [...new Set(ids)];
}

function windowFields(modelType: string, window: number | string | boolean | undefined): Record<string, unknown> {
  if (window === undefined) return {};
  return modelType === "llama"
    ? { sliding_window: window }
    : { sliding_window: window, use_sliding_window: true, max_window_layers: 0 };
}

/** In the form that old and new versions of transformers read. */
function ropeFields(metadata: Metadata, factors: Float32Array | null): Record<string, unknown> {
  const theta = metadata.get("rope.freq_base") ?? 10000;
  const type = metadata.get("rope.scaling.type") ?? "none";
  if (factors) return { rope_theta: theta, rope_scaling: llama3Scaling(metadata, factors) };
  if (type === "none") return { rope_theta: theta, rope_scaling: null };
  metadata.require("rope.scaling.type", "linear");
  return { rope_theta: theta, rope_scaling: { rope_type: "linear", factor: metadata.get("rope.scaling.factor") } };
}

/**
 * Llama 3.1 and later: the converter stores what each frequency is divided by, not the four numbers that made it.
 * Every such model has low 1, high 4 and 8192 original positions; the factor is the greatest divisor.
 */
function llama3Scaling(metadata: Metadata, factors: Float32Array): Record<string, unknown> {
  const scaling = { factor: Math.max(...factors), lowFreqFactor: 1, highFreqFactor: 4, originalMaxPositions: 8192 };
  const [headDim, ropeTheta] = [2 * factors.length, Number(metadata.get("rope.freq_base") ?? 10000)];
  const plain = inverseFrequencies({ headDim, ropeTheta, ropeScaling: { type: "default" } });
  const scaled = inverseFrequencies({ headDim, ropeTheta, ropeScaling: { type: "llama3", ...scaling } });
  const explained = factors.every((factor, i) => Math.abs(plain[i]! / scaled[i]! - factor) <= 1e-3 * factor);
  if (!explained) metadata.refuse("rope.freq_base", "rope_freqs.weight to be the scaling of Llama 3.1");
  return {
    rope_type: "llama3",
    factor: scaling.factor,
    low_freq_factor: scaling.lowFreqFactor,
    high_freq_factor: scaling.highFreqFactor,
    original_max_position_embeddings: scaling.originalMaxPositions,
  };
}
