/**
 * Keys and values of the positions that a model has already seen.
 *
 * @module
 */

import type { Backend, Cache, CacheDtype, Tensor } from "../backend.ts";

/** The keys and values of one layer, with room for more. */
interface LayerCache {
  keys: Cache;
  values: Cache;
}

/** Sizes of a {@linkcode KvCache}. */
export interface KvCacheOptions {
  /** Layers of the model. */
  readonly layers: number;
  /** Sequences. */
  readonly batch: number;
  /** Heads of keys and values. */
  readonly kvHeads: number;
  /** Their width. */
  readonly headDim: number;
  /** How they are stored. */
  readonly dtype: CacheDtype;
  /** Positions to make room for; more is made when they are used up. */
  readonly capacity: number;
}

/** Keys and values (batch, capacity, kvHeads, headDim) per layer. Its owner disposes it. */
export class KvCache {
  readonly #backend: Backend;
  readonly #layers: LayerCache[] = [];
  readonly #options: KvCacheOptions;
  #capacity: number;
  #length = 0;

  /**
   * Allocates the cache.
   *
   * @throws {OutOfMemoryError} If it does not fit; nothing stays allocated.
   */
  constructor(backend: Backend, options: KvCacheOptions) {
    this.#backend = backend;
    this.#options = options;
    this.#capacity = options.capacity;
    try {
      for (let i = 0; i < options.layers; i++) {
        const keys = this.#allocate(options.capacity);
        this.#layers.push({ keys, values: keys });
        this.#layers[i]!.values = this.#allocate(options.capacity);
      }
    } catch (cause) {
      this.dispose();
      throw cause;
    }
  }

  /** Positions filled in every layer. */
  get length(): number {
    return this.#length;
  }

  /** Puts keys and values (batch · length, kvHeads · headDim) behind those of the layer and returns all of them. */
  append(layer: number, keys: Tensor, values: Tensor): { keys: Cache; values: Cache } {
    const cache = this.#layers[layer]!;
    this.#backend.append(cache.keys, keys, this.#length);
    this.#backend.append(cache.values, values, this.#length);
    return cache;
  }

  /** Makes room for `count` more positions, by doubling. */
  reserve(count: number): void {
    if (this.#length + count <= this.#capacity) return;
    const capacity = Math.max(this.#length + count, 2 * this.#capacity);
    for (const cache of this.#layers) {
      cache.keys = this.#grow(cache.keys, capacity);
      cache.values = this.#grow(cache.values, capacity);
    }
    this.#capacity = capacity;
  }

  /** Counts `count` positions as filled, once every layer has appended them. */
  advance(count: number): void {
    this.#length += count;
  }

  /** Frees the memory. */
  dispose(): void {
    for (const { keys, values } of this.#layers) {
      keys.dispose();
      values.dispose();
    }
    this.#layers.length = 0;
  }

  #allocate(capacity: number): Cache {
    const { batch, kvHeads, headDim, dtype } = this.#options;
    return this.#backend.cache([batch, capacity, kvHeads, headDim], dtype);
  }

  #grow(cache: Cache, capacity: number): Cache {
    const grown = this.#allocate(capacity);
    this.#backend.append(grown, cache, 0);
    cache.dispose();
    return grown;
  }
}
