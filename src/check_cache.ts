/**
 * The checks of a cache, of what is appended to it and of attention over it, made once, before dispatch, for all backends.
 *
 * @module
 */

import type { AttentionOptions, Cache, CacheDtype, CacheShape, Tensor } from "./backend.ts";
import { CACHE_DTYPES } from "./cache.ts";
import { dtypeOf, PackedCache } from "./packed_cache.ts";
import {
  formatShape,
  refuse,
  refuseValue,
  requireColumns,
  requireMatrix,
  requireShape,
  requireWhole,
  sizeOf,
} from "./shape.ts";

/** Checks the arguments of `cache`. */
export function checkCache(shape: CacheShape, dtype: CacheDtype): void {
  checkCacheDtype("create a cache of", dtype);
  if (shape.length !== 4) throw refuse("create a cache", "lengths", shape, "[batch, capacity, heads, d]");
  sizeOf(shape);
}

/** Refuses what is no type of a cache. */
export function checkCacheDtype(action: string, dtype: CacheDtype): void {
  if (CACHE_DTYPES.includes(dtype)) return;
  throw new TypeError(`Cannot ${action} "${dtype}": expected ${CACHE_DTYPES.join(", ")}`);
}

/** What `append` does. */
export interface AppendSizes {
  /** Sequences. */
  readonly batch: number;
  /** Positions that the cache has room for. */
  readonly capacity: number;
  /** Positions of each sequence in x. */
  readonly length: number;
  /** Heads; 1 of a tensor. */
  readonly heads: number;
  /** Elements of a head. */
  readonly d: number;
  /** How the elements are stored. */
  readonly dtype: CacheDtype;
}

/** Checks the arguments of `append`. */
export function checkAppend(cache: Tensor | Cache, x: Tensor | Cache, past: number): AppendSizes {
  const isPacked = cache instanceof PackedCache;
  if (!isPacked && cache.shape.length !== 3) {
    throw refuse("run append", "cache", cache.shape, "[batch, capacity, dim]");
  }
  const [batch = 0, capacity = 0] = cache.shape;
  const [heads = 0, d = 0] = isPacked ? cache.shape.slice(2) : [1, cache.shape[2]];
  const dtype = dtypeOf(cache);
  const length = x instanceof PackedCache
    ? positionsOf(x, [batch, heads, d], dtype)
    : appended(x as Tensor, cache.shape, [batch, heads * d]);
  requireWhole("append", "past", past, 0);
  if (past + length > capacity) {
    throw refuseValue("run append", "past + length", past + length, `at most the capacity of ${capacity}`);
  }
  return { batch, capacity, length, heads, d, dtype };
}

function appended(x: Tensor, cache: readonly number[], [batch, dim]: readonly [number, number]): number {
  const rows = requireColumns("append", "x", x, dim, `cache of shape ${formatShape(cache)}`);
  if (batch === 0 ? rows !== 0 : rows % batch !== 0) {
    throw refuse("run append", "x", x.shape, `rows that are a multiple of the batch of ${batch}`);
  }
  return batch === 0 ? 0 : rows / batch;
}

function positionsOf(
  { shape, dtype: found }: PackedCache,
  [batch, heads, d]: readonly [number, number, number],
  dtype: CacheDtype,
): number {
  const length = shape[1];
  if (shape[0] !== batch || shape[2] !== heads || shape[3] !== d) {
    throw refuse("run append", "x", shape, formatShape([batch, length, heads, d]));
  }
  if (found !== dtype) throw refuseValue("run append", "x of dtype", found, `${dtype}, as the cache has`);
  return length;
}

/** Checks the arguments of `attention`; returns the queries per sequence, the room of the cache, the width of a head. */
export function checkAttention(
  q: Tensor,
  keys: Tensor | Cache,
  values: Tensor | Cache,
  options: AttentionOptions,
): { length: number; capacity: number; d: number; dtype: CacheDtype } {
  const { heads, kvHeads, batch, past, window = 1, causal = true } = options;
  const operation = "attention";
  if (!causal && options.window !== undefined) {
    throw refuseValue("run attention", "window", window, "none if not causal");
  }
  for (const [field, value] of Object.entries({ kvHeads, heads, batch, window })) {
    requireWhole(operation, field, value, 1);
  }
  requireWhole(operation, "past", past, 0);
  if (heads % kvHeads !== 0) throw refuseValue("run attention", "heads", heads, `a multiple of kvHeads ${kvHeads}`);
  const [rows, columns] = requireMatrix(operation, "q", q);
  if (columns % heads !== 0) throw refuse("run attention", "q", q.shape, `columns that are a multiple of ${heads}`);
  if (rows % batch !== 0) throw refuse("run attention", "q", q.shape, `rows that are a multiple of ${batch}`);
  const [length, d] = [rows / batch, columns / heads];
  const { capacity, dtype } = checkSeen(keys, values, [batch, kvHeads, d]);
  if (past + length > capacity) {
    throw refuseValue("run attention", "past + length", past + length, `at most the capacity of ${capacity}`);
  }
  return { length, capacity, d, dtype };
}

function checkSeen(
  keys: Tensor | Cache,
  values: Tensor | Cache,
  [batch, kvHeads, d]: readonly [number, number, number],
): { capacity: number; dtype: CacheDtype } {
  const capacity = keys.shape[1] ?? 0;
  for (const [field, seen] of Object.entries({ keys, values })) {
    const perHead = seen instanceof PackedCache ? [kvHeads, d] : [kvHeads * d];
    requireShape("attention", field, seen, [batch, capacity, ...perHead]);
  }
  const [dtype, found] = [dtypeOf(keys), dtypeOf(values)];
  if (found !== dtype) throw refuseValue("run attention", "values of dtype", found, `${dtype}, as the keys have`);
  return { capacity, dtype };
}
