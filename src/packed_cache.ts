/**
 * A cache as every backend holds it: words in a tensor, whose meaning the kernels know.
 *
 * @module
 */

import type { Cache, CacheDtype, CacheShape, Tensor } from "./backend.ts";

/** Words of 4 bytes that a position takes per head: the block of `rust-kernels/src/cache.rs`. */
function blockWords(d: number, dtype: CacheDtype): number {
  const groups = Math.ceil(d / 8);
  return { f32: d, f16: 4 * groups, int8: 1 + 2 * groups }[dtype];
}

/** A cache of any backend: a tensor of words (batch · heads, capacity, words of a block). */
export class PackedCache implements Cache {
  /** `[batch, capacity, heads, d]`. */
  readonly shape: CacheShape;
  /** How the elements are stored. */
  readonly dtype: CacheDtype;
  /** Where they are, as bits. */
  readonly words: Tensor;

  /** Allocates the words. */
  constructor(shape: CacheShape, dtype: CacheDtype, allocate: (shape: readonly number[]) => Tensor) {
    const [batch, capacity, heads, d] = shape;
    this.shape = Object.freeze([batch, capacity, heads, d] as const);
    this.dtype = dtype;
    this.words = allocate([batch * heads, capacity, blockWords(d, dtype)]);
  }

  /** Memory held. */
  get bytes(): number {
    return 4 * this.words.size;
  }

  /** Frees the memory. */
  dispose(): void {
    this.words.dispose();
  }

  /** The same as `dispose()`. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** The tensor that holds a cache: of plain floats where it is one. */
export function wordsOf(cache: Tensor | Cache): Tensor {
  return cache instanceof PackedCache ? cache.words : cache as Tensor;
}

/** How a cache stores its elements; a tensor has floats. */
export function dtypeOf(cache: Tensor | Cache): CacheDtype {
  return cache instanceof PackedCache ? cache.dtype : "f32";
}
