/**
 * One sequence that grows: the model sees each token once and keeps what it saw.
 *
 * @module
 */

import type { Backend } from "../backend.ts";
import type { CausalNetwork, NetworkPass } from "./causal_network.ts";
import { KvCache, type KvCacheOptions } from "./kv_cache.ts";
import type { Sampler } from "./sampler.ts";

/** What a {@linkcode Decoder} works with. */
export interface DecoderOptions {
  /** Where it computes. */
  readonly backend: Backend;
  /** The network. */
  readonly network: CausalNetwork;
  /** Adapters and pauses of every step. */
  readonly pass: Omit<NetworkPass, "cache">;
  /** Size of the cache, which is made at the first step. */
  readonly cache: KvCacheOptions;
  /** Holds every decoder that has a cache, so that a model's end frees them. */
  readonly live: Set<{ dispose(): void }>;
}

/** Chooses tokens step by step. */
export class Decoder {
  readonly #options: DecoderOptions;
  #cache: KvCache | null = null;

  /** Allocates nothing yet. */
  constructor(options: DecoderOptions) {
    this.#options = options;
  }

  /** The token that `sampler` chooses after the last of `ids`, which follow those of earlier steps. */
  async step(ids: readonly number[], sampler: Sampler): Promise<number> {
    const { backend, network, pass, live } = this.#options;
    this.#cache ??= new KvCache(backend, this.#options.cache);
    live.add(this);
    const logits = await network.nextLogits(Uint32Array.from(ids), { ...pass, cache: this.#cache });
    try {
      return await sampler.next(backend, logits);
    } finally {
      logits.dispose();
    }
  }

  /** Frees the cache. */
  dispose(): void {
    this.#cache?.dispose();
    this.#cache = null;
    this.#options.live.delete(this);
  }
}
