/**
 * Attention over what a cache holds.
 *
 * @module
 */

import type { Backend, Tensor } from "../backend.ts";
import type { BlockContext } from "./causal_network.ts";
import type { KvCache } from "./kv_cache.ts";

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
  projections: Projections,
  context: Pick<BlockContext, "batch" | "length" | "pasts" | "cache">,
  sizes: AttentionSizes,
): Tensor {
  const { layer, queries, keys, values } = projections;
  const { batch, length, pasts, cache } = context;
  if (isPerSequence(cache)) return attendEach(backend, projections, { ...context, cache }, sizes);
  // Without a cache, the rows themselves are all there is to see.
  const perSequence = (x: Tensor) => backend.reshape(x, [batch, length, x.shape[1] ?? 0]);
  const seen = cache ? cache.append(layer, keys, values) : { keys: perSequence(keys), values: perSequence(values) };
  return backend.attention(queries, seen.keys, seen.values, { ...sizes, batch, past: pasts[0] ?? 0 });
}

interface AttentionSizes {
  readonly heads: number;
  readonly kvHeads: number;
  readonly window?: number;
}

/** Sequences that have seen different numbers of tokens: one attention for each. */
function attendEach(
  backend: Backend,
  { layer, queries, keys, values }: Projections,
  { length, pasts, cache }: Pick<BlockContext, "length" | "pasts"> & { readonly cache: readonly KvCache[] },
  sizes: AttentionSizes,
): Tensor {
  const [rows = 0, width = 0] = queries.shape;
  const attended = backend.tensor([1, rows, width]);
  cache.forEach((own, sequence) => {
    const of = Uint32Array.from({ length }, (_, i) => sequence * length + i);
    const [q, k, v] = [queries, keys, values].map((x) => backend.takeRows(x, of)) as [Tensor, Tensor, Tensor];
    const seen = own.append(layer, k, v);
    const past = pasts[sequence]!;
    backend.append(attended, backend.attention(q, seen.keys, seen.values, { ...sizes, batch: 1, past }), of[0]!);
  });
  return backend.reshape(attended, [rows, width]);
}

function isPerSequence(cache: BlockContext["cache"]): cache is readonly KvCache[] {
  return Array.isArray(cache);
}
