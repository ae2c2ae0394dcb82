/** Caches: what they keep of what is appended, and the memory that they take. */
import assert from "node:assert/strict";
import type { Backend, Cache, CacheDtype, CacheShape } from "../src/backend.ts";
import { CACHE_DTYPES } from "../src/cache.ts";
import { forEachBackend } from "./backends.ts";
import { awayFromTies, readCache, roundedToCache } from "./cache_support.ts";
import { assertSameBits } from "./compare.ts";
import * as reference from "./reference.ts";
import { type Matrix, matrix } from "./reference.ts";
import { random, randomMatrix, tensorOf } from "./values.ts";

/** [shape, positions appended at once and then, magnitude]. */
const CASES: readonly (readonly [CacheShape, readonly number[], number])[] = [
  [[1, 1, 1, 1], [1], 1],
  [[1, 9, 1, 3], [4, 0, 5], 300],
  [[2, 7, 3, 5], [1, 1, 1, 2], 1e-6],
  [[1, 40, 3, 64], [33, 1], 1],
  [[3, 6, 2, 67], [5], 1e-3],
  [[1, 3, 2, 260], [1, 2], 6e4],
  [[2, 5, 2, 8], [5], 1e-6],
];
const NARROW = ["f16", "int8"] as const;

/** Appends random rows and returns them, sequence by sequence. */
function fill(backend: Backend, cache: Cache, [lengths, scale]: readonly [readonly number[], number]): Matrix[] {
  const next = random(1);
  const [batch, , heads, d] = cache.shape;
  const given: Matrix[][] = Array.from({ length: batch }, () => []);
  let past = 0;
  for (const length of lengths) {
    const drawn = randomMatrix(next, batch * length, heads * d, { scale });
    const x = cache.dtype === "int8" ? awayFromTies(drawn, d) : drawn;
    backend.append(cache, tensorOf(backend, x), past);
    given.forEach((rows, i) => rows.push(reference.rowRange(x, i * length, (i + 1) * length)));
    past += length;
  }
  return given.flat();
}

forEachBackend("append() to a cache rounds to nearest even, head by head", async (backend) => {
  // a GPU may divide with another last bit
  const allowed = { f32: 0, f16: 0, int8: backend.name === "webgpu" ? 1e-6 : 0 };
  for (const dtype of CACHE_DTYPES) {
    for (const [shape, ...rows] of CASES) {
      const cache = backend.cache(shape, dtype);
      const want = fill(backend, cache, rows).flatMap((m) => [...roundedToCache(m, dtype, shape[3]).values]);
      const got = await readCache(backend, cache, rows[0].reduce((sum, length) => sum + length));
      assert.equal(got.length, want.length);
      got.forEach((value, i) => {
        const near = Math.abs(value - want[i]!) <= allowed[dtype] * Math.abs(want[i]!);
        assert.ok(near, `${dtype} [${shape}]: got ${value}, want ${want[i]} at ${i}`);
      });
      cache.dispose();
    }
  }
});

forEachBackend("append() to a cache keeps an error below half a step of each element", async (backend) => {
  const [heads, d] = [3, 37];
  const x = randomMatrix(random(2), 11, heads * d, { scale: 5 });
  for (const dtype of NARROW) {
    const cache = backend.cache([1, 11, heads, d], dtype);
    backend.append(cache, tensorOf(backend, x), 0);
    (await readCache(backend, cache, 11)).forEach((value, i) => {
      const want = x.values[i]!;
      const head = x.values.subarray(i - i % d, i - i % d + d);
      const step = dtype === "f16" ? Math.abs(want) * 2 ** -10 : Math.max(...head.map(Math.abs)) / 127;
      assert.ok(Math.abs(value - want) <= step * 0.50001, `${dtype}: ${want} became ${value}`);
    });
  }
});

/** A head of each row of [NaN or infinite elements, zeros, small and large numbers]. */
const SPECIAL = [[1, NaN, -3], [Infinity, 2, 1], [2, -Infinity, 1], [0, 0, 0], [-0, 1e-42, 1e-44], [65519, 7e4, -7e4]];

forEachBackend("a cache shows what is not finite, and nothing else of it", async (backend) => {
  const x = matrix(4, 18, (row, column) => row === 2 ? SPECIAL[Math.floor(column / 3)]![column % 3]! : column + 1);
  const want: Record<CacheDtype, number[][]> = {
    f32: SPECIAL,
    f16: [...SPECIAL.slice(0, 4), [0, 0, 0], [65504, Infinity, -Infinity]],
    int8: [[NaN, NaN, NaN], [NaN, NaN, NaN], [NaN, NaN, NaN], [0, 0, 0], [0, 0, 0], [119 * 7e4 / 127, 7e4, -7e4]],
  };
  for (const dtype of CACHE_DTYPES) {
    const cache = backend.cache([1, 4, 6, 3], dtype);
    backend.append(cache, tensorOf(backend, x), 0);
    for (const [row, list] of [[2, want[dtype].flat()], [3, x.values.subarray(54)]] as const) {
      const read = (await readCache(backend, cache, 4)).subarray(18 * row, 18 * row + 18);
      read.forEach((value, i) => {
        const error = Math.abs(value - list[i]!);
        const same = Object.is(value, list[i]) || error <= 1e-40 || error <= Math.abs(value) * (row === 2 ? 1e-6 : 0.1);
        assert.ok(same, `${dtype}: got ${value}, want ${list[i]} at ${i} of row ${row}`);
      });
    }
  }
});

forEachBackend("append() of a cache to another one copies its bits, and nothing beyond", async (backend) => {
  for (const dtype of CACHE_DTYPES) {
    for (const d of [4, 7]) {
      const x = randomMatrix(random(3), 6, 2 * d);
      const [small, large] = [3, 5].map((capacity) => backend.cache([2, capacity, 2, d], dtype));
      backend.append(small!, tensorOf(backend, x), 0);
      backend.append(large!, tensorOf(backend, randomMatrix(random(4), 10, 2 * d)), 0);
      const [before, after] = [await readCache(backend, small!, 3), await readCache(backend, large!, 5)];
      backend.append(large!, small!, 1);
      for (const sequence of [0, 1]) {
        const rows = before.subarray(sequence * 6 * d, (sequence + 1) * 6 * d);
        after.set(rows, (sequence * 5 + 1) * 2 * d);
      }
      assertSameBits(await readCache(backend, large!, 5), after, `${dtype}, d ${d}`);
    }
  }
});

forEachBackend("a cache takes half the bytes in f16, and d + 4 per head instead of 4 d in int8", (backend) => {
  for (const d of [64, 128, 5]) {
    const bytes = CACHE_DTYPES.map((dtype) => {
      const held = backend.bytes;
      const cache = backend.cache([2, 100, 3, d], dtype);
      const taken = backend.bytes - held;
      assert.ok(taken >= cache.bytes && taken < cache.bytes + 64, `${dtype}: ${taken} for ${cache.bytes}`);
      cache.dispose();
      cache.dispose();
      assert.equal(backend.bytes, held);
      return cache.bytes / 600;
    });
    const padded = Math.ceil(d / 8) * 8;
    assert.deepEqual(bytes, [4 * d, 2 * padded, padded + 4]);
  }
});

forEachBackend("cache() refuses what is no shape or type of a cache", (backend) => {
  const shape = [1, 2, 3, 4] as const;
  assert.throws(() => backend.cache(shape, "f8" as "f16"), {
    name: "TypeError",
    message: /"f8": expected f32, f16, int8/,
  });
  assert.throws(() => backend.cache([1, 2, 3] as unknown as CacheShape, "f16"), { name: "ShapeError" });
  assert.throws(() => backend.cache([1, 2, 3, -4], "f16"), { name: "ShapeError" });
});
