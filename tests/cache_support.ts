/** How caches round, and what they hold, as tests see it. */
import type { Backend, Cache, CacheDtype } from "../src/backend.ts";
import { decodeF16, encodeF16 } from "../src/formats/float16.ts";
import { at, type Matrix, matrix } from "./reference.ts";

/** The scale of each head of width d in each row: its largest magnitude / 127. */
function scaleOf(m: Matrix, row: number, head: number, d: number): number {
  const magnitudes = Array.from({ length: d }, (_, i) => Math.abs(at(m, row, head * d + i)));
  return Math.fround(Math.max(...magnitudes) / 127);
}

/** x / scale in f32. */
function steps(m: Matrix, row: number, column: number, d: number): number {
  return Math.fround(at(m, row, column) / scaleOf(m, row, Math.floor(column / d), d));
}

/** The matrix with 0 where its integers are not the same in every rounding. */
export function awayFromTies(m: Matrix, d: number): Matrix {
  return matrix(...m.shape, (row, column) => {
    const q = steps(m, row, column, d);
    return Math.abs(Math.abs(q % 1) - 0.5) < 1e-3 ? 0 : at(m, row, column);
  });
}

/** What a cache keeps of rows (n, heads · d). */
export function roundedToCache(m: Matrix, dtype: CacheDtype, d: number): Matrix {
  if (dtype === "f32") return m;
  if (dtype === "f16") return { ...m, values: Float64Array.from(decodeF16(encodeF16(Float32Array.from(m.values)))) };
  return matrix(...m.shape, (row, column) => {
    const scale = scaleOf(m, row, Math.floor(column / d), d);
    return scale === 0 ? 0 : Math.fround(scale * Math.round(steps(m, row, column, d)));
  });
}

/** The first positions of each sequence (batch · positions, heads · d): attention that sees one position is its value. */
export async function readCache(backend: Backend, cache: Cache, positions: number): Promise<Float32Array> {
  const [batch, , heads, d] = cache.shape;
  const q = backend.tensor([batch * positions, heads * d]);
  const keys = backend.cache(cache.shape, cache.dtype);
  backend.append(keys, q, 0);
  const y = backend.attention(q, keys, cache, { heads, kvHeads: heads, batch, past: 0, window: 1 });
  const values = await backend.read(y);
  for (const handle of [q, keys, y]) handle.dispose();
  return values;
}
