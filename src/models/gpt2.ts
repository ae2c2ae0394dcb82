/**
 * GPT-2 (Radford et al. 2019):
 *
 * ```text
 * x = tokens(ids) + positions
 * layer   q, k, v = parts of layerNorm(x) Waᵀ + ba     x = x + attention(q, cached k, cached v) Wpᵀ + bp
 *         x = x + gelu(layerNorm(x) Wfᵀ + bf) Woᵀ + bo
 * logits  layerNorm(x) Whᵀ     (Wh is the embedding of tokens where the head is tied)
 * ```
 *
 * @module
 */

import type { Backend, Tensor } from "../backend.ts";
import type { LoraEmbedding } from "../lora/lora_embedding.ts";
import type { LoraLinear } from "../lora/lora_linear.ts";
import { numbersFrom } from "../lora/rows.ts";
import type { RowMix } from "../lora/selection.ts";
import { attend } from "./attend.ts";
import type { Architecture, BlockContext } from "./causal_network.ts";
import type { Gpt2Config } from "./gpt2_config.ts";
import type { ModelLayers } from "./model_layers.ts";
import type { Norm } from "./norm.ts";

interface Layer {
  readonly firstNorm: Norm;
  readonly qkv: LoraLinear;
  readonly output: LoraLinear;
  readonly secondNorm: Norm;
  readonly up: LoraLinear;
  readonly down: LoraLinear;
}

/** The blocks of a GPT-2, over layers that own their adapters' factors. */
export class Gpt2 implements Architecture {
  /** All layers. */
  readonly layers: ModelLayers;
  readonly #backend: Backend;
  readonly #config: Gpt2Config;
  readonly #tokens: LoraEmbedding;
  readonly #positions: LoraEmbedding;
  readonly #blocks: readonly Layer[];
  readonly #norm: Norm;
  readonly #head: LoraLinear;

  /** Makes layers of parameters that match the config. */
  constructor(layers: ModelLayers, config: Gpt2Config) {
    this.layers = layers;
    this.#backend = layers.backend;
    this.#config = config;
    this.#tokens = layers.embedding("transformer.wte", config.tiedHead);
    this.#positions = layers.embedding("transformer.wpe");
    this.#blocks = Array.from({ length: config.layers }, (_, index) => {
      const path = `transformer.h.${index}`;
      return {
        firstNorm: layers.norm(`${path}.ln_1`, config.normEps),
        qkv: layers.linear(`${path}.attn.c_attn`),
        output: layers.linear(`${path}.attn.c_proj`),
        secondNorm: layers.norm(`${path}.ln_2`, config.normEps),
        up: layers.linear(`${path}.mlp.c_fc`),
        down: layers.linear(`${path}.mlp.c_proj`),
      };
    });
    this.#norm = layers.norm("transformer.ln_f", config.normEps);
    this.#head = config.tiedHead ? layers.tiedHead("lm_head", "transformer.wte") : layers.linear("lm_head");
  }

  /** How many blocks it has. */
  get blocks(): number {
    return this.#blocks.length;
  }

  /** Embeds the ids and their positions. */
  begin(ids: Uint32Array, { length, pasts, mixes }: Omit<BlockContext, "shared">): [Tensor] {
    const positions = ids.map((_, i) => pasts[Math.floor(i / length)]! + i % length);
    return [this.#backend.add(this.#tokens.apply(ids, mixes), this.#positions.apply(positions, mixes))];
  }

  /** One layer: attention and feed-forward, each added to x. */
  block(index: number, x: Tensor, context: BlockContext): Tensor {
    const backend = this.#backend;
    const { firstNorm, qkv, output, secondNorm, up, down } = this.#blocks[index]!;
    const { heads, activation } = this.#config;
    const { mixes } = context;
    return backend.scope(() => {
      const [queries, keys, values] = splitColumns(backend, qkv.apply(firstNorm.apply(x, mixes), mixes), 3);
      const parts = { layer: index, queries: queries!, keys: keys!, values: values! };
      const attended = attend(backend, parts, context, { heads, kvHeads: heads });
      const middle = backend.add(x, output.apply(attended, mixes));
      const wide = up.apply(secondNorm.apply(middle, mixes), mixes);
      return backend.add(middle, down.apply(backend.gelu(wide, activation), mixes));
    });
  }

  /** Logits of the last block's rows. */
  readOut(x: Tensor, mixes: readonly RowMix[]): Tensor {
    return this.#head.apply(this.#norm.apply(x, mixes), mixes);
  }
}

/** x (n, parts · width) as `parts` tensors (n, width). */
function splitColumns(backend: Backend, x: Tensor, parts: number): Tensor[] {
  const [rows = 0, columns = 0] = x.shape;
  const pieces = backend.reshape(x, [rows * parts, columns / parts]);
  const all = numbersFrom({ start: 0, end: rows });
  return Array.from({ length: parts }, (_, part) => backend.takeRows(pieces, all.map((row) => row * parts + part)));
}
