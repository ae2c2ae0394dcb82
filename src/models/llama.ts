/**
 * The Llama architecture (Touvron et al. 2023), with what Mistral, Qwen2 and Qwen3 change in it:
 *
 * ```text
 * x = embedding(ids)
 * layer   h = rmsNorm(x)     q, k, v = h Wqᵀ, h Wkᵀ, h Wvᵀ     [q, k = rmsNorm per head]     q, k = rope
 *         x = x + attention(q, cached k, cached v) Woᵀ
 *         h = rmsNorm(x)     x = x + (silu(h Wgᵀ) ∘ h Wuᵀ) Wdᵀ
 * logits  rmsNorm(x) Whᵀ     (Wh is the embedding where the head is tied)
 * ```
 *
 * @module
 */

import type { Backend, Tensor, Weight } from "../backend.ts";
import { LoraLinear } from "../lora/lora_linear.ts";
import type { RowMix } from "../lora/selection.ts";
import type { KvCache } from "./kv_cache.ts";
import type { LlamaConfig } from "./llama_config.ts";
import { inverseFrequencies, ropeRows } from "./rope.ts";
import type { ModelParameters } from "./weights.ts";

/** One forward pass over a batch of sequences of one length. */
export interface LlamaPass {
  /** Sequences; the token rows are `batch` times their length. */
  readonly batch: number;
  /** Adapters per range of sequences. */
  readonly mixes: readonly RowMix[];
  /** What the sequences have seen before; null when these are their first positions and no more will come. */
  readonly cache: KvCache | null;
  /** Awaited between layers; what it throws ends the pass. */
  readonly pause: () => Promise<void>;
}

interface Layer {
  readonly index: number;
  readonly inputNorm: Tensor;
  readonly q: LoraLinear;
  readonly k: LoraLinear;
  readonly v: LoraLinear;
  readonly o: LoraLinear;
  readonly qNorm: Tensor | undefined;
  readonly kNorm: Tensor | undefined;
  readonly postNorm: Tensor;
  readonly gate: LoraLinear;
  readonly up: LoraLinear;
  readonly down: LoraLinear;
  readonly window: number | null;
}

/** What is the same in every layer of one pass; the mixes are per token row. */
interface LayerContext {
  readonly cos: Tensor;
  readonly sin: Tensor;
  readonly batch: number;
  readonly cache: KvCache | null;
  readonly mixes: readonly RowMix[];
}

/** Rows whose logits are held at once when losses are computed: 25 MB for a vocabulary of 50,000. */
const LOSS_ROWS = 128;

/** The network. It owns its adapters' factors; the parameters stay their loader's. */
export class Llama {
  /** The linear layers by their path in the base model, as PEFT names them. */
  readonly modules: ReadonlyMap<string, LoraLinear>;
  readonly #backend: Backend;
  readonly #config: LlamaConfig;
  readonly #frequencies: Float64Array;
  readonly #embedding: Weight;
  readonly #layers: readonly Layer[];
  readonly #norm: Tensor;
  readonly #head: LoraLinear;

  /** Puts parameters that match the config in their places. */
  constructor(backend: Backend, config: LlamaConfig, parameters: ModelParameters) {
    const { weights, vectors } = parameters;
    const modules = new Map<string, LoraLinear>();
    const linear = (path: string): LoraLinear => {
      const bias = vectors.get(`${path}.bias`);
      const layer = new LoraLinear(backend, { weight: weights.get(`${path}.weight`)!, ...(bias && { bias }) });
      modules.set(path, layer);
      return layer;
    };
    this.#backend = backend;
    this.#config = config;
    this.#frequencies = inverseFrequencies(config);
    this.#embedding = weights.get("model.embed_tokens.weight")!;
    this.#layers = config.windows.map((window, index) => {
      const path = `model.layers.${index}`;
      return {
        index,
        inputNorm: vectors.get(`${path}.input_layernorm.weight`)!,
        q: linear(`${path}.self_attn.q_proj`),
        k: linear(`${path}.self_attn.k_proj`),
        v: linear(`${path}.self_attn.v_proj`),
        o: linear(`${path}.self_attn.o_proj`),
        qNorm: vectors.get(`${path}.self_attn.q_norm.weight`),
        kNorm: vectors.get(`${path}.self_attn.k_norm.weight`),
        postNorm: vectors.get(`${path}.post_attention_layernorm.weight`)!,
        gate: linear(`${path}.mlp.gate_proj`),
        up: linear(`${path}.mlp.up_proj`),
        down: linear(`${path}.mlp.down_proj`),
        window,
      };
    });
    this.#norm = vectors.get("model.norm.weight")!;
    // A tied head takes no adapter of its own: merging one would change the embedding too.
    this.#head = config.tiedHead ? new LoraLinear(backend, { weight: this.#embedding }) : linear("lm_head");
    this.modules = modules;
  }

  /** Logits (batch · length, vocabSize) for `ids`, sequence by sequence. The caller disposes them. */
  async logits(ids: Uint32Array, pass: LlamaPass): Promise<Tensor> {
    const hidden = await this.#hidden(ids, pass);
    try {
      return this.#backend.scope(() => this.#readOut(hidden, tokenMixes(ids, pass)));
    } finally {
      hidden.dispose();
    }
  }

  /** Logits (batch, vocabSize) after the last of `ids` in every sequence. The caller disposes them. */
  async nextLogits(ids: Uint32Array, pass: LlamaPass): Promise<Tensor> {
    const hidden = await this.#hidden(ids, pass);
    const length = ids.length / pass.batch;
    const last = Uint32Array.from({ length: pass.batch }, (_, i) => (i + 1) * length - 1);
    try {
      return this.#backend.scope(() => this.#readOut(this.#backend.takeRows(hidden, last), pass.mixes));
    } finally {
      hidden.dispose();
    }
  }

  /** Losses (length) of `targets` after each of `ids`, for one sequence. */
  async losses(ids: Uint32Array, targets: Uint32Array, pass: LlamaPass): Promise<Float32Array> {
    if (targets.length === 0) return new Float32Array();
    const backend = this.#backend;
    const hidden = await this.#hidden(ids, pass);
    const losses = new Float32Array(targets.length);
    try {
      for (let start = 0; start < targets.length; start += LOSS_ROWS) {
        await pass.pause();
        const some = targets.slice(start, start + LOSS_ROWS);
        const loss = backend.scope(() => {
          const rows = backend.takeRows(hidden, some.map((_, i) => start + i));
          return backend.crossEntropy(this.#readOut(rows, tokenMixes(some, pass)), some);
        });
        losses.set(await backend.read(loss).finally(() => loss.dispose()), start);
      }
      return losses;
    } finally {
      hidden.dispose();
    }
  }

  /** The last layer's output (batch · length, hiddenSize). */
  async #hidden(ids: Uint32Array, pass: LlamaPass): Promise<Tensor> {
    const backend = this.#backend;
    const { batch, cache, pause } = pass;
    const length = ids.length / batch;
    await pause();
    cache?.reserve(length);
    const rows = ropeRows(this.#frequencies, { batch, length, past: cache?.length ?? 0 });
    const shape = [ids.length, this.#frequencies.length];
    const [embedded, cos, sin] = backend.scope((): [Tensor, Tensor, Tensor] => [
      backend.embedding(ids, this.#embedding),
      backend.tensor(shape, rows.cos),
      backend.tensor(shape, rows.sin),
    ]);
    const context = { cos, sin, batch, cache, mixes: tokenMixes(ids, pass) };
    let x = embedded;
    try {
      for (const layer of this.#layers) {
        const y = backend.scope(() => this.#layer(layer, x, context));
        x.dispose();
        x = y;
        await pause();
      }
    } catch (error) {
      x.dispose();
      throw error;
    } finally {
      cos.dispose();
      sin.dispose();
    }
    cache?.advance(length);
    return x;
  }

  #readOut(x: Tensor, mixes: readonly RowMix[]): Tensor {
    return this.#head.apply(this.#normalize(x, this.#norm), mixes);
  }

  #normalize(x: Tensor, gain: Tensor): Tensor {
    return this.#backend.rmsNorm(x, gain, this.#config.normEps);
  }

  #layer(layer: Layer, x: Tensor, context: LayerContext): Tensor {
    const backend = this.#backend;
    const { mixes } = context;
    const attended = this.#attention(layer, this.#normalize(x, layer.inputNorm), context);
    const middle = backend.add(x, layer.o.apply(attended, mixes));
    const h = this.#normalize(middle, layer.postNorm);
    const gated = backend.siluMul(layer.gate.apply(h, mixes), layer.up.apply(h, mixes));
    return backend.add(middle, layer.down.apply(gated, mixes));
  }

  #attention(layer: Layer, h: Tensor, context: LayerContext): Tensor {
    const { heads, kvHeads } = this.#config;
    const { index, q, k, v, qNorm, kNorm, window } = layer;
    const { batch, cache, mixes } = context;
    const queries = this.#rotate(q.apply(h, mixes), qNorm, context);
    const newKeys = this.#rotate(k.apply(h, mixes), kNorm, context);
    const newValues = v.apply(h, mixes);
    const { keys, values } = cache
      ? cache.append(index, newKeys, newValues)
      : { keys: this.#perSequence(newKeys, batch), values: this.#perSequence(newValues, batch) };
    const sizes = { heads, kvHeads, batch, past: cache?.length ?? 0 };
    return this.#backend.attention(queries, keys, values, { ...sizes, ...(window !== null && { window }) });
  }

  #rotate(x: Tensor, norm: Tensor | undefined, { cos, sin }: LayerContext): Tensor {
    return this.#backend.rope(norm ? this.#normalize(x, norm) : x, cos, sin);
  }

  /** (batch · length, dim) as (batch, length, dim): without a cache, the rows themselves are all there is to see. */
  #perSequence(x: Tensor, batch: number): Tensor {
    const [rows = 0, dim = 0] = x.shape;
    return this.#backend.reshape(x, [batch, rows / batch, dim]);
  }
}

/** From ranges of sequences to ranges of token rows. */
function tokenMixes(ids: Uint32Array, { batch, mixes }: LlamaPass): RowMix[] {
  const length = ids.length / batch;
  return mixes.map(({ start, end, mix }) => ({ start: start * length, end: end * length, mix }));
}
