/**
 * Running a causal language model, whatever its architecture: block by block, over tokens that follow those of a cache.
 *
 * @module
 */

import type { Backend, Tensor } from "../backend.ts";
import { type RowMix, takeMixes } from "../lora/selection.ts";
import type { KvCache } from "./kv_cache.ts";
import type { ModelLayers } from "./model_layers.ts";
import { type AdapterStarts, tokenMixes } from "./token_mixes.ts";

/** One forward pass over a batch of sequences of one length. */
export interface NetworkPass {
  /** Sequences; the token rows are `batch` times their length. */
  readonly batch: number;
  /** Adapters per range of sequences. */
  readonly mixes: readonly RowMix[];
  /** Where adapters that wait for their invocation begin. */
  readonly starts: AdapterStarts;
  /**
   * What the sequences have seen before, in one cache where they have seen as many tokens, or one for each; null when
   * these are their first positions and no more will come.
   */
  readonly cache: KvCache | readonly KvCache[] | null;
  /** Awaited between blocks; what it throws ends the pass. */
  readonly pause: () => Promise<void>;
}

/** What is the same in every block of one pass. */
export interface BlockContext {
  /** Sequences. */
  readonly batch: number;
  /** Tokens of each in this pass. */
  readonly length: number;
  /** Positions that each has seen before. */
  readonly pasts: readonly number[];
  /** Keys and values of those positions; null when there are none, and no more will come. */
  readonly cache: NetworkPass["cache"];
  /** Adapters per range of token rows. */
  readonly mixes: readonly RowMix[];
  /** Tensors that the architecture made at the start of the pass. */
  readonly shared: readonly Tensor[];
}

/** What an architecture makes of its layers. */
export interface Architecture {
  /** All its layers. */
  readonly layers: ModelLayers;
  /** How many blocks it has. */
  readonly blocks: number;
  /** The first x (batch · length, width), and what all blocks share. Runs in a scope. */
  begin(ids: Uint32Array, context: Omit<BlockContext, "shared">): [x: Tensor, ...shared: Tensor[]];
  /** The x after block `index`; what else it makes it frees. */
  block(index: number, x: Tensor, context: BlockContext): Tensor | Promise<Tensor>;
  /** Logits (rows, vocabulary). Runs in a scope. */
  readOut(x: Tensor, mixes: readonly RowMix[]): Tensor;
}

/** Rows whose logits are held at once when losses are computed: 25 MB for a vocabulary of 50,000. */
const LOSS_ROWS = 128;

/** Logits and losses of an architecture. */
export class CausalNetwork {
  /** All layers. */
  readonly layers: ModelLayers;
  readonly #backend: Backend;
  readonly #architecture: Architecture;

  /** Runs this architecture. */
  constructor(architecture: Architecture) {
    this.layers = architecture.layers;
    this.#backend = architecture.layers.backend;
    this.#architecture = architecture;
  }

  /** Logits (batch · length, vocabSize) for `ids`, sequence by sequence. The caller disposes them. */
  async logits(ids: Uint32Array, pass: NetworkPass): Promise<Tensor> {
    const { hidden, mixes } = await this.#run(ids, pass);
    try {
      return this.#backend.scope(() => this.#architecture.readOut(hidden, mixes));
    } finally {
      hidden.dispose();
    }
  }

  /** Logits (batch, vocabSize) after the last of `ids` in every sequence. The caller disposes them. */
  async nextLogits(ids: Uint32Array, pass: NetworkPass): Promise<Tensor> {
    const { hidden, mixes } = await this.#run(ids, pass);
    const length = ids.length / pass.batch;
    const last = Uint32Array.from({ length: pass.batch }, (_, i) => (i + 1) * length - 1);
    try {
      return this.#backend.scope(() => this.#readRows(hidden, last, mixes));
    } finally {
      hidden.dispose();
    }
  }

  /** Losses (length) of `targets` after each of `ids`, for one sequence. */
  async losses(ids: Uint32Array, targets: Uint32Array, pass: NetworkPass): Promise<Float32Array> {
    if (targets.length === 0) return new Float32Array();
    const backend = this.#backend;
    const { hidden, mixes } = await this.#run(ids, pass);
    const losses = new Float32Array(targets.length);
    try {
      for (let start = 0; start < targets.length; start += LOSS_ROWS) {
        await pass.pause();
        const some = targets.slice(start, start + LOSS_ROWS);
        const rows = some.map((_, i) => start + i);
        const loss = backend.scope(() => backend.crossEntropy(this.#readRows(hidden, rows, mixes), some));
        losses.set(await backend.read(loss).finally(() => loss.dispose()), start);
      }
      return losses;
    } finally {
      hidden.dispose();
    }
  }

  #readRows(hidden: Tensor, rows: Uint32Array, mixes: readonly RowMix[]): Tensor {
    return this.#architecture.readOut(this.#backend.takeRows(hidden, rows), takeMixes(mixes, rows));
  }

  /** The last block's output (batch · length, width), and the adapters of its rows. */
  async #run(ids: Uint32Array, pass: NetworkPass): Promise<{ hidden: Tensor; mixes: readonly RowMix[] }> {
    const { batch, cache, pause } = pass;
    const length = ids.length / batch;
    await pause();
    const caches = cache === null ? [] : [cache].flat();
    for (const one of caches) one.reserve(length);
    const pasts = Array.from({ length: batch }, (_, row) => (caches[row] ?? caches[0])?.length ?? 0);
    const mixes = tokenMixes(pass, { length, pasts });
    const start = { batch, length, pasts, cache, mixes };
    const [first, ...shared] = this.#backend.scope(() => this.#architecture.begin(ids, start));
    let x = first;
    try {
      for (let index = 0; index < this.#architecture.blocks; index++) {
        const y = await this.#architecture.block(index, x, { ...start, shared });
        x.dispose();
        x = y;
        await pause();
      }
    } catch (error) {
      x.dispose();
      throw error;
    } finally {
      for (const tensor of shared) tensor.dispose();
    }
    for (const one of caches) one.advance(length);
    return { hidden: x, mixes };
  }
}
