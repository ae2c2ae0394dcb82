/**
 * Attention over what a cache holds.
 *
 * @module
 */

import type { Backend, Tensor } from "../backend.ts";
import type { BlockContext } from "./causal_network.ts";

/** Queries (n, heads · d), keys and values (n, kvHeads · d) of one layer. */
export interface Projections {
  /** Number of the layer. */
  readonly layer: number;
  /** q. */
  readonly queries: Tensor;
  /** k of the same tokens. */
  readonly keys: Tensor;
  /** v of the same tokens. */
  readonly values: Tensor;
}

/** Causal attention of new tokens over those before them and themselves. */
export function attend(
  backend: Backend,
  { layer, queries, keys, values }: Projections,
  { batch, length, past, cache }: Pick<BlockContext, "batch" | "length" | "past" | "cache">,
  sizes: { readonly heads: number; readonly kvHeads: number; readonly window?: number },
): Tensor {
  // Without a cache, the rows themselves are all there is to see.
  const perSequence = (x: Tensor) => backend.reshape(x, [batch, length, x.shape[1] ?? 0]);
  const seen = cache ? cache.append(layer, keys, values) : { keys: perSequence(keys), values: perSequence(values) };
  return backend.attention(queries, seen.keys, seen.values, { ...sizes, batch, past });
}
