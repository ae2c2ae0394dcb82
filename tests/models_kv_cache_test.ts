/** The cache of keys and values. */
import assert from "node:assert/strict";
import type { Tensor } from "../src/backend.ts";
import { KvCache } from "../src/models/kv_cache.ts";
import { forEachBackend } from "./backends.ts";

forEachBackend("KvCache keeps what it has when it grows, sequence by sequence", async (backend) => {
  const cache = new KvCache(backend, { layers: 2, batch: 2, kvDim: 3, capacity: 2 });
  const made: Tensor[] = [];
  const tensor = (first: number, rows: number): Tensor => {
    const values = Float32Array.from({ length: rows * 3 }, (_, i) => first + i);
    made.push(backend.tensor([rows, 3], values));
    return made.at(-1)!;
  };
  for (const layer of [0, 1]) cache.append(layer, tensor(100 * layer, 4), tensor(1000 * layer, 4));
  cache.advance(2);
  const full = backend.bytes;
  cache.reserve(3);
  assert.equal(cache.length, 2);
  assert.ok(backend.bytes > full);
  const { keys, values } = cache.append(1, tensor(500, 2), tensor(5000, 2));
  assert.deepEqual(keys.shape, [2, 5, 3]);
  const rows = await backend.read(keys);
  assert.deepEqual([...rows.subarray(0, 9)], [100, 101, 102, 103, 104, 105, 500, 501, 502]);
  assert.deepEqual([...rows.subarray(15, 24)], [106, 107, 108, 109, 110, 111, 503, 504, 505]);
  assert.equal((await backend.read(values))[6], 5000);
  cache.dispose();
  cache.dispose();
  for (const each of made) each.dispose();
  assert.equal(backend.bytes, 0);
});
