/**
 * The tensors of a model of the Llama architecture, by their Hugging Face names.
 *
 * @module
 */

import type { LlamaConfig } from "./llama_config.ts";

/**
 * Every parameter's shape: matrices (out, in), those of experts behind each other, vectors (out).
 *
 * @param config The model's config.
 */
export function llamaParameters(config: LlamaConfig): Map<string, readonly number[]> {
  const { hiddenSize, intermediateSize, headDim, vocabSize } = config;
  const [queries, keys] = [config.heads * headDim, config.kvHeads * headDim];
  const shapes = new Map<string, readonly number[]>([["model.embed_tokens.weight", [vocabSize, hiddenSize]]]);
  const linear = (path: string, out: number, inner: number, bias: boolean): void => {
    shapes.set(`${path}.weight`, [out, inner]);
    if (bias) shapes.set(`${path}.bias`, [out]);
  };
  for (let i = 0; i < config.layers; i++) {
    const layer = `model.layers.${i}`;
    linear(`${layer}.self_attn.q_proj`, queries, hiddenSize, config.qkvBias);
    linear(`${layer}.self_attn.k_proj`, keys, hiddenSize, config.qkvBias);
    linear(`${layer}.self_attn.v_proj`, keys, hiddenSize, config.qkvBias);
    linear(`${layer}.self_attn.o_proj`, hiddenSize, queries, config.outputBias);
    if (config.experts) {
      const { count } = config.experts;
      linear(`${layer}.mlp.gate`, count, hiddenSize, false);
      shapes.set(`${layer}.mlp.experts.gate_up_proj`, [count, 2 * intermediateSize, hiddenSize]);
      shapes.set(`${layer}.mlp.experts.down_proj`, [count, hiddenSize, intermediateSize]);
    } else {
      linear(`${layer}.mlp.gate_proj`, intermediateSize, hiddenSize, config.mlpBias);
      linear(`${layer}.mlp.up_proj`, intermediateSize, hiddenSize, config.mlpBias);
      linear(`${layer}.mlp.down_proj`, hiddenSize, intermediateSize, config.mlpBias);
    }
    shapes.set(`${layer}.input_layernorm.weight`, [hiddenSize]);
    shapes.set(`${layer}.post_attention_layernorm.weight`, [hiddenSize]);
    if (config.qkNorm) shapes.set(`${layer}.self_attn.q_norm.weight`, [headDim]);
    if (config.qkNorm) shapes.set(`${layer}.self_attn.k_norm.weight`, [headDim]);
  }
  shapes.set("model.norm.weight", [hiddenSize]);
  if (!config.tiedHead) shapes.set("lm_head.weight", [vocabSize, hiddenSize]);
  return shapes;
}

/** Whether a tensor that is no parameter may stand in a checkpoint: old files keep buffers, and tied heads twice. */
export function isSpareTensor(name: string, config: LlamaConfig): boolean {
  return name.endsWith(".rotary_emb.inv_freq") || (config.tiedHead && name === "lm_head.weight");
}
