/** The fixtures' models as GGUF files. */
import type { Source } from "../src/formats/source.ts";
import { type GgufParts, ggufSource } from "./gguf_writer.ts";
import { fixture, readCheckpoint } from "./models_support.ts";

const PARTS: Readonly<Record<string, string>> = {
  "model.embed_tokens": "token_embd",
  "model.norm": "output_norm",
  "lm_head": "output",
  "input_layernorm": "attn_norm",
  "self_attn.q_proj": "attn_q",
  "self_attn.k_proj": "attn_k",
  "self_attn.v_proj": "attn_v",
  "self_attn.o_proj": "attn_output",
  "self_attn.q_norm": "attn_q_norm",
  "self_attn.k_norm": "attn_k_norm",
  "post_attention_layernorm": "ffn_norm",
  "mlp.gate_proj": "ffn_gate",
  "mlp.up_proj": "ffn_up",
  "mlp.down_proj": "ffn_down",
};

/** Tensors by name. */
export type Tensors = Map<string, { shape: readonly number[]; values: Float32Array }>;

function ggufName(name: string): string {
  const [, layer, path, kind] = /^(?:model\.layers\.(\d+)\.)?(.+)\.(weight|bias)$/.exec(name)!;
  return `${layer === undefined ? "" : `blk.${layer}.`}${PARTS[path!]}.${kind}`;
}

/** As llama.cpp's converter has it: reshape(heads, 2, d / 2, width), swap the middle axes. */
function interleave(values: Float32Array, heads: number, rows: number): Float32Array {
  const [width, half] = [values.length / rows, rows / heads / 2];
  const out: number[] = [];
  for (let head = 0; head < heads; head++) {
    for (let pair = 0; pair < half; pair++) {
      for (let side = 0; side < 2; side++) {
        const row = head * 2 * half + side * half + pair;
        out.push(...values.subarray(row * width, (row + 1) * width));
      }
    }
  }
  return Float32Array.from(out);
}

/** Hugging Face's tensors as llama.cpp's converter names and orders them; `heads` where q and k are in pairs. */
export function convert(tensors: Tensors, heads: { q: number; k: number } | null): Tensors {
  const converted: Tensors = new Map();
  for (const [name, { shape, values }] of tensors) {
    const projection = /\.([qk])_proj\./.exec(name)?.[1] as "q" | "k" | undefined;
    const rows = heads && projection ? interleave(values, heads[projection], shape[0]!) : values;
    converted.set(ggufName(name), { shape, values: rows });
  }
  return converted;
}

/** The keys of an architecture. */
export function metadata(
  architecture: string,
  numbers: Readonly<Record<string, number | string>>,
): GgufParts["metadata"] {
  const own = Object.entries(numbers).map(([key, value]) => [`${architecture}.${key}`, value]);
  return { "general.architecture": architecture, "tokenizer.ggml.eos_token_id": 2, ...Object.fromEntries(own) };
}

/** The llama of the fixtures. */
export const LLAMA = {
  "block_count": 2,
  "context_length": 128,
  "embedding_length": 48,
  "feed_forward_length": 72,
  "attention.head_count": 4,
  "attention.head_count_kv": 2,
  "attention.layer_norm_rms_epsilon": 1e-6,
  "rope.dimension_count": 12,
  "rope.freq_base": 10000,
};
/** Its heads. */
export const HEADS = { q: 4, k: 2 };
/** The qwen3 of the fixtures. */
export const QWEN3: typeof LLAMA & Readonly<Record<string, number>> = {
  ...LLAMA,
  "feed_forward_length": 80,
  "rope.dimension_count": 16,
  "attention.key_length": 16,
  "attention.value_length": 16,
};

/** What makes {@linkcode llamaGguf} another file than the fixture. */
export interface GgufChanges {
  readonly architecture?: string;
  /** Keys of the architecture. */
  readonly numbers?: Readonly<Record<string, number | string>>;
  /** Other keys. */
  readonly keys?: GgufParts["metadata"];
  /** Edits the tensors, under GGUF's names. */
  readonly change?: (tensors: Tensors) => void;
}

/** The llama of the fixtures as a GGUF file. */
export async function llamaGguf(changes: GgufChanges = {}): Promise<Source> {
  const { architecture = "llama", numbers, keys, change } = changes;
  const tensors = convert(await readCheckpoint(fixture("base/llama")), HEADS);
  change?.(tensors);
  return ggufSource("llama.gguf", {
    metadata: { ...metadata(architecture, { ...LLAMA, ...numbers }), ...keys },
    tensors,
  });
}
