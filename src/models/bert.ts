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
import type { PackedGroup, PackedRows } from "./packed_rows.ts";

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

/** One forward pass over a batch without padding. */
export interface BertPass {
  /** Its tokens. */
  readonly rows: PackedRows;
  /** Adapters per range of token rows. */
  readonly mixes: readonly RowMix[];
  /** Whether a classifier says its classes; else there is the last hidden state. */
  readonly classify: boolean;
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

  /** The last hidden state (tokens, width), or logits (sequences, labels), in packed order. The caller disposes it. */
  async run({ rows, mixes, classify, pause }: BertPass): Promise<Tensor> {
    const backend = this.#backend;
    await pause();
    let x = backend.scope(() => this.#embed(rows, mixes));
    try {
      for (const layer of this.#blocks) {
        const y = backend.scope(() => this.#layer(layer, x, { rows, mixes }));
        x.dispose();
        x = y;
        await pause();
      }
      const hidden = x;
      if (!this.#head || !classify) return hidden;
      const logits = backend.scope(() => this.#classify(hidden, rows, mixes));
      hidden.dispose();
      return logits;
    } catch (error) {
      x.dispose();
      throw error;
    }
  }

  #embed({ ids, positions: places }: PackedRows, mixes: readonly RowMix[]): Tensor {
    const backend = this.#backend;
    const positions = this.#positions.apply(places, mixes);
    const types = this.#types.apply(new Uint32Array(ids.length), mixes);
    const sum = backend.add(backend.add(this.#words.apply(ids, mixes), types), positions);
    return this.#norm.apply(sum, mixes);
  }

  #layer(layer: Layer, x: Tensor, { rows, mixes }: Pick<BertPass, "rows" | "mixes">): Tensor {
    const backend = this.#backend;
    const [queries, keys, values] = [layer.query, layer.key, layer.value].map((linear) => linear.apply(x, mixes));
    const attended = this.#attend(rows.groups, { queries: queries!, keys: keys!, values: values! });
    const middle = layer.outputNorm.apply(backend.add(layer.output.apply(attended, mixes), x), mixes);
    const wide = backend.gelu(layer.up.apply(middle, mixes), this.#config.activation);
    return layer.norm.apply(backend.add(layer.down.apply(wide, mixes), middle), mixes);
  }

  /** Attention within each sequence, for all sequences of one length at a time. */
  #attend(groups: readonly PackedGroup[], { queries, keys, values }: Record<"queries" | "keys" | "values", Tensor>) {
    const backend = this.#backend;
    const [tokens = 0, width = 0] = queries.shape;
    const { heads } = this.#config;
    const within = ({ batch, length }: PackedGroup, take: (x: Tensor) => Tensor): Tensor => {
      const perSequence = (x: Tensor) => backend.reshape(take(x), [batch, length, width]);
      const sizes = { heads, kvHeads: heads, batch, past: 0, causal: false };
      return backend.attention(take(queries), perSequence(keys), perSequence(values), sizes);
    };
    if (groups.length === 1) return within(groups[0]!, (x) => x);
    const attended = backend.tensor([1, tokens, width]);
    for (const group of groups) {
      const rows = Uint32Array.from({ length: group.batch * group.length }, (_, i) => group.start + i);
      backend.append(attended, within(group, (x) => backend.takeRows(x, rows)), group.start);
    }
    return backend.reshape(attended, [tokens, width]);
  }

  #classify(hidden: Tensor, { sequences }: PackedRows, mixes: readonly RowMix[]): Tensor {
    const backend = this.#backend;
    const rows = Uint32Array.from(sequences, ({ start }) => start);
    const own = takeMixes(mixes, rows);
    const { pooler, classifier } = this.#head!;
    return classifier.apply(backend.tanh(pooler.apply(backend.takeRows(hidden, rows), own)), own);
  }
}
