/**
 * BERT (Devlin et al. 2019), as an encoder or with a classifier of sequences:
 *
 * ```text
 * x = layerNorm(words(ids) + positions + types(0))
 * layer   q, k, v of x     x = layerNorm(x + attention(q, k, v) Woᵀ + bo)     every token sees all of its sequence
 *         x = layerNorm(x + gelu(x Wuᵀ + bu) Wdᵀ + bd)
 * classes tanh(x₀ Wpᵀ + bp) Wcᵀ + bc     (x₀ is the first token)
 * ```
 *
 * @module
 */

import type { Backend, Tensor } from "../backend.ts";
import type { LoraEmbedding } from "../lora/lora_embedding.ts";
import type { LoraLinear } from "../lora/lora_linear.ts";
import { type RowMix, takeMixes } from "../lora/selection.ts";
import { type BertConfig, bertPrefix } from "./bert_config.ts";
import type { ModelLayers } from "./model_layers.ts";
import type { Norm } from "./norm.ts";

interface Layer {
  readonly query: LoraLinear;
  readonly key: LoraLinear;
  readonly value: LoraLinear;
  readonly output: LoraLinear;
  readonly outputNorm: Norm;
  readonly up: LoraLinear;
  readonly down: LoraLinear;
  readonly norm: Norm;
}

/** One forward pass over a batch of sequences of one length. */
export interface BertPass {
  /** Sequences; the token rows are `batch` times their length. */
  readonly batch: number;
  /** Adapters per range of token rows. */
  readonly mixes: readonly RowMix[];
  /** Awaited between layers; what it throws ends the pass. */
  readonly pause: () => Promise<void>;
}

/** The network over layers that own their adapters' factors. */
export class Bert {
  /** All layers. */
  readonly layers: ModelLayers;
  readonly #backend: Backend;
  readonly #config: BertConfig;
  readonly #words: LoraEmbedding;
  readonly #positions: LoraEmbedding;
  readonly #types: LoraEmbedding;
  readonly #norm: Norm;
  readonly #blocks: readonly Layer[];
  readonly #head: { readonly pooler: LoraLinear; readonly classifier: LoraLinear } | null;

  /** Makes layers of parameters that match the config. */
  constructor(layers: ModelLayers, config: BertConfig) {
    const prefix = bertPrefix(config);
    this.layers = layers;
    this.#backend = layers.backend;
    this.#config = config;
    this.#words = layers.embedding(`${prefix}embeddings.word_embeddings`);
    this.#positions = layers.embedding(`${prefix}embeddings.position_embeddings`);
    this.#types = layers.embedding(`${prefix}embeddings.token_type_embeddings`);
    this.#norm = layers.norm(`${prefix}embeddings.LayerNorm`, config.normEps);
    this.#blocks = Array.from({ length: config.layers }, (_, i) => {
      const path = `${prefix}encoder.layer.${i}`;
      return {
        query: layers.linear(`${path}.attention.self.query`),
        key: layers.linear(`${path}.attention.self.key`),
        value: layers.linear(`${path}.attention.self.value`),
        output: layers.linear(`${path}.attention.output.dense`),
        outputNorm: layers.norm(`${path}.attention.output.LayerNorm`, config.normEps),
        up: layers.linear(`${path}.intermediate.dense`),
        down: layers.linear(`${path}.output.dense`),
        norm: layers.norm(`${path}.output.LayerNorm`, config.normEps),
      };
    });
    this.#head = config.labels && {
      pooler: layers.linear(`${prefix}pooler.dense`),
      classifier: layers.linear("classifier"),
    };
  }

  /** The last hidden state (batch · length, width), or logits (batch, labels). The caller disposes it. */
  async run(ids: Uint32Array, { batch, mixes, pause }: BertPass): Promise<Tensor> {
    const backend = this.#backend;
    const length = ids.length / batch;
    await pause();
    let x = backend.scope(() => this.#embed(ids, length, mixes));
    try {
      for (const layer of this.#blocks) {
        const y = backend.scope(() => this.#layer(layer, x, { batch, mixes }));
        x.dispose();
        x = y;
        await pause();
      }
      const hidden = x;
      if (!this.#head) return hidden;
      const logits = backend.scope(() => this.#classify(hidden, batch, mixes));
      hidden.dispose();
      return logits;
    } catch (error) {
      x.dispose();
      throw error;
    }
  }

  #embed(ids: Uint32Array, length: number, mixes: readonly RowMix[]): Tensor {
    const backend = this.#backend;
    const positions = this.#positions.apply(ids.map((_, i) => i % length), mixes);
    const types = this.#types.apply(new Uint32Array(ids.length), mixes);
    const sum = backend.add(backend.add(this.#words.apply(ids, mixes), types), positions);
    return this.#norm.apply(sum, mixes);
  }

  #layer(layer: Layer, x: Tensor, { batch, mixes }: Pick<BertPass, "batch" | "mixes">): Tensor {
    const backend = this.#backend;
    const { heads, activation } = this.#config;
    const [rows = 0, width = 0] = x.shape;
    const perSequence = (linear: LoraLinear) => backend.reshape(linear.apply(x, mixes), [batch, rows / batch, width]);
    const sizes = { heads, kvHeads: heads, batch, past: 0, causal: false };
    const queries = layer.query.apply(x, mixes);
    const attended = backend.attention(queries, perSequence(layer.key), perSequence(layer.value), sizes);
    const middle = layer.outputNorm.apply(backend.add(layer.output.apply(attended, mixes), x), mixes);
    const wide = backend.gelu(layer.up.apply(middle, mixes), activation);
    return layer.norm.apply(backend.add(layer.down.apply(wide, mixes), middle), mixes);
  }

  #classify(hidden: Tensor, batch: number, mixes: readonly RowMix[]): Tensor {
    const backend = this.#backend;
    const length = (hidden.shape[0] ?? 0) / batch;
    const rows = Uint32Array.from({ length: batch }, (_, i) => i * length);
    const own = takeMixes(mixes, rows);
    const { pooler, classifier } = this.#head!;
    return classifier.apply(backend.tanh(pooler.apply(backend.takeRows(hidden, rows), own)), own);
  }
}
