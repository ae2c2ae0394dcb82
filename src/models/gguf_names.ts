/**
 * Hugging Face names of the tensors of a GGUF file.
 *
 * @module
 */

const TOP: ReadonlyMap<string, string> = new Map([
  ["token_embd", "model.embed_tokens"],
  ["output_norm", "model.norm"],
  ["output", "lm_head"],
]);

const IN_LAYER: ReadonlyMap<string, string> = new Map([
  ["attn_norm", "input_layernorm"],
  ["attn_q", "self_attn.q_proj"],
  ["attn_k", "self_attn.k_proj"],
  ["attn_v", "self_attn.v_proj"],
  ["attn_output", "self_attn.o_proj"],
  ["attn_q_norm", "self_attn.q_norm"],
  ["attn_k_norm", "self_attn.k_norm"],
  ["ffn_norm", "post_attention_layernorm"],
  ["ffn_gate", "mlp.gate_proj"],
  ["ffn_up", "mlp.up_proj"],
  ["ffn_down", "mlp.down_proj"],
]);

/**
 * Translates a name; one that is not known stays as it is, for the loader to refuse.
 *
 * @param name As in `blk.3.attn_q.weight`.
 */
export function huggingFaceName(name: string): string {
  const [, layer, part, kind] = /^(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)$/.exec(name) ?? [];
  const path = part && (layer === undefined ? TOP : IN_LAYER).get(part);
  if (path === undefined || path === "") return name;
  return layer === undefined ? `${path}.${kind}` : `model.layers.${layer}.${path}.${kind}`;
}
