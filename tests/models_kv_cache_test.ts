/** The cache of keys and values. */
import assert from "node:assert/strict";
import type { Tensor } from "../src/backend.ts";
import { CACHE_DTYPES } from "../src/cache.ts";
import { KvCache } from "../src/models/kv_cache.ts";
import { forEachBackend } from "./backends.ts";
import { readCache } from "./cache_support.ts";

forEachBackend("KvCache keeps what it has when it grows, sequence by sequence", async (backend) => {
  for (const dtype of CACHE_DTYPES) {
    const cache = new KvCache(backend, { layers: 2, batch: 2, kvHeads: 1, headDim: 3, capacity: 2, dtype });
    const made: Tensor[] = [];
    const rows = (...starts: number[]): Tensor => {
      // 127 is the largest of each row: int8 keeps whole numbers up to it
      const values = Float32Array.from({ length: starts.length * 3 }, (_, i) => [starts[i / 3 | 0]!, 127, -i][i % 3]!);
      made.push(backend.tensor([starts.length, 3], values));
      return made.at(-1)!;
    };
    for (const layer of [0, 1]) {
      cache.append(layer, rows(...[1, 2, 3, 4].map((i) => i + 10 * layer)), rows(21, 22, 23, 24));
    }
    cache.advance(2);
    const full = backend.bytes;
    cache.reserve(3);
    assert.equal(cache.length, 2);
    assert.ok(backend.bytes > full);
    const { keys, values } = cache.append(1, rows(5, 6), rows(25, 26));
    assert.deepEqual([...keys.shape], [2, 5, 1, 3]);
    const first = async (from: typeof keys) => {
      const read = await readCache(backend, from, 3);
      return Array.from({ length: 6 }, (_, row) => read[3 * row]);
    };
    assert.deepEqual(await first(keys), [11, 12, 5, 13, 14, 6], dtype);
    assert.deepEqual(await first(values), [21, 22, 25, 23, 24, 26], dtype);
    cache.dispose();
    cache.dispose();
    for (const each of made) each.dispose();
    assert.equal(backend.bytes, 0);
  }
});
