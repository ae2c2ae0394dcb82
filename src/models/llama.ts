/**
 * The Llama architecture (Touvron et al. 2023), with what Mistral, Qwen2, Qwen3 and Mixtral change in it:
 *
 * ```text
 * x = embedding(ids)
 * layer   h = rmsNorm(x)     q, k, v = h Wqᵀ, h Wkᵀ, h Wvᵀ     [q, k = rmsNorm per head]     q, k = rope
 *         x = x + attention(q, cached k, cached v) Woᵀ
 *         h = rmsNorm(x)     x = x + (silu(h Wgᵀ) ∘ h Wuᵀ) Wdᵀ     (Mixtral: of some experts, see mixture.ts)
 * logits  rmsNorm(x) Whᵀ     (Wh is the embedding where the head is tied)
 * ```
 *
 * @module
 */

import type { Backend, Tensor } from "../backend.ts";
import type { LoraEmbedding } from "../lora/lora_embedding.ts";
import type { LoraLinear } from "../lora/lora_linear.ts";
import type { RowMix } from "../lora/selection.ts";
import { attend } from "./attend.ts";
import type { Architecture, BlockContext } from "./causal_network.ts";
import type { LlamaConfig } from "./llama_config.ts";
import { Mixture } from "./mixture.ts";
import type { ModelLayers } from "./model_layers.ts";
import type { Norm } from "./norm.ts";
import { inverseFrequencies, ropeRows } from "./rope.ts";

interface Layer {
  readonly inputNorm: Norm;
  readonly q: LoraLinear;
  readonly k: LoraLinear;
  readonly v: LoraLinear;
  readonly o: LoraLinear;
  readonly qNorm: Norm | undefined;
  readonly kNorm: Norm | undefined;
  readonly postNorm: Norm;
  readonly feedForward: FeedForward | Mixture;
  readonly window: number | null;
}

/** gate, up and down. */
interface FeedForward {
  readonly gate: LoraLinear;
  readonly up: LoraLinear;
  readonly down: LoraLinear;
}

/** The blocks of a Llama, over layers that own their adapters' factors. */
export class Llama implements Architecture {
  /** All layers. */
  readonly layers: ModelLayers;
  readonly #backend: Backend;
  readonly #config: LlamaConfig;
  readonly #frequencies: Float64Array;
  readonly #embedding: LoraEmbedding;
  readonly #blocks: readonly Layer[];
  readonly #norm: Norm;
  readonly #head: LoraLinear;

  /** Makes layers of parameters that match the config. */
  constructor(layers: ModelLayers, config: LlamaConfig) {
    this.layers = layers;
    this.#backend = layers.backend;
    this.#config = config;
    this.#frequencies = inverseFrequencies(config);
    this.#embedding = layers.embedding("model.embed_tokens", config.tiedHead);
    this.#blocks = config.windows.map((window, index) => makeLayer(layers, config, { index, window }));
    this.#norm = layers.norm("model.norm", config.normEps);
    this.#head = config.tiedHead ? layers.tiedHead("lm_head", "model.embed_tokens") : layers.linear("lm_head");
  }

  /** How many blocks it has. */
  get blocks(): number {
    return this.#blocks.length;
  }

  /** Embeds the ids, and computes the cosines and sines of their positions. */
  begin(ids: Uint32Array, { length, pasts, mixes }: Omit<BlockContext, "shared">): [Tensor, Tensor, Tensor] {
    const rows = ropeRows(this.#frequencies, { length, pasts });
    const shape = [ids.length, this.#frequencies.length];
    return [
      this.#embedding.apply(ids, mixes),
      this.#backend.tensor(shape, rows.cos),
      this.#backend.tensor(shape, rows.sin),
    ];
  }

  /** One layer: attention and feed-forward, each added to x. */
  block(index: number, x: Tensor, context: BlockContext): Tensor | Promise<Tensor> {
    const backend = this.#backend;
    const layer = this.#blocks[index]!;
    const { feedForward } = layer;
    const { mixes } = context;
    const attended = () => {
      const h = this.#attention(index, layer.inputNorm.apply(x, mixes), context);
      return backend.add(x, layer.o.apply(h, mixes));
    };
    if (feedForward instanceof Mixture) {
      const [middle, h] = backend.scope(() => {
        const middle = attended();
        return [middle, layer.postNorm.apply(middle, mixes)] as const;
      });
      return feedForward.add(middle, h, mixes);
    }
    return backend.scope(() => {
      const middle = attended();
      const h = layer.postNorm.apply(middle, mixes);
      const gated = backend.siluMul(feedForward.gate.apply(h, mixes), feedForward.up.apply(h, mixes));
      return backend.add(middle, feedForward.down.apply(gated, mixes));
    });
  }

  #attention(index: number, h: Tensor, context: BlockContext): Tensor {
    const { heads, kvHeads } = this.#config;
    const { q, k, v, qNorm, kNorm, window } = this.#blocks[index]!;
    const { mixes } = context;
    const queries = this.#rotate(q.apply(h, mixes), qNorm, context);
    const keys = this.#rotate(k.apply(h, mixes), kNorm, context);
    const sizes = { heads, kvHeads, ...(window !== null && { window }) };
    return attend(this.#backend, { layer: index, queries, keys, values: v.apply(h, mixes) }, context, sizes);
  }

  #rotate(x: Tensor, norm: Norm | undefined, { shared: [cos, sin], mixes }: BlockContext): Tensor {
    return this.#backend.rope(norm ? norm.apply(x, mixes) : x, cos!, sin!);
  }

  /** Logits of the last block's rows. */
  readOut(x: Tensor, mixes: readonly RowMix[]): Tensor {
    return this.#head.apply(this.#norm.apply(x, mixes), mixes);
  }
}

function makeLayer(
  layers: ModelLayers,
  config: LlamaConfig,
  { index, window }: { index: number; window: number | null },
): Layer {
  const path = `model.layers.${index}`;
  const headNorm = (name: string) =>
    config.qkNorm ? layers.norm(`${path}.self_attn.${name}`, config.normEps) : undefined;
  return {
    inputNorm: layers.norm(`${path}.input_layernorm`, config.normEps),
    q: layers.linear(`${path}.self_attn.q_proj`),
    k: layers.linear(`${path}.self_attn.k_proj`),
    v: layers.linear(`${path}.self_attn.v_proj`),
    o: layers.linear(`${path}.self_attn.o_proj`),
    qNorm: headNorm("q_norm"),
    kNorm: headNorm("k_norm"),
    postNorm: layers.norm(`${path}.post_attention_layernorm`, config.normEps),
    feedForward: config.experts ? new Mixture(layers, `${path}.mlp`, config.experts) : {
      gate: layers.linear(`${path}.mlp.gate_proj`),
      up: layers.linear(`${path}.mlp.up_proj`),
      down: layers.linear(`${path}.mlp.down_proj`),
    },
    window,
  };
}
