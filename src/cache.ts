/**
 * How keys and values of past positions are held. Types and contracts only, as in `backend.ts`.
 *
 * @module
 */

/**
 * How a cache stores its elements, rounded once to nearest even when they are appended.
 *
 * - `f32`: as they are.
 * - `f16`: half the bytes; magnitudes above 65,504 become infinite.
 * - `int8`: per position and head an f32 scale, the largest magnitude / 127, and integers −127 to 127; where an element
 *   is not finite, all of that head read as NaN.
 */
export type CacheDtype = "f32" | "f16" | "int8";

/** The types that caches have. */
export const CACHE_DTYPES: readonly CacheDtype[] = ["f32", "f16", "int8"];

/** `[batch, capacity, heads, d]`: sequences, positions that there is room for, heads, and their width. */
export type CacheShape = readonly [batch: number, capacity: number, heads: number, d: number];

/** Keys, or values, of the positions that sequences have seen. */
export interface Cache extends Disposable {
  /** `[batch, capacity, heads, d]`. */
  readonly shape: CacheShape;
  /** How the elements are stored. */
  readonly dtype: CacheDtype;
  /** Memory held, in bytes: batch · capacity · heads · (4 d, or with d rounded up to 8: f16 2 d, int8 d + 4). */
  readonly bytes: number;
  /** Frees the memory; a second call does nothing. */
  dispose(): void;
}
