import assert from "node:assert/strict";
import type { AttentionOptions, Backend, Cache, CacheDtype } from "../src/backend.ts";
import { forEachBackend } from "./backends.ts";
import { awayFromTies, roundedToCache } from "./cache_support.ts";
import { assertClose, assertSameBits, runGuarded } from "./compare.ts";
import * as reference from "./reference.ts";
import { absolute, type Matrix, matrix, scaled } from "./reference.ts";
import { random, randomMatrix, tensorOf } from "./values.ts";

interface Case extends AttentionOptions {
  readonly length: number;
  readonly capacity: number;
  /** Width of a head. */
  readonly d: number;
  /** Magnitude of the queries. */
  readonly magnitude: number;
}

const BASE: Case = { heads: 4, kvHeads: 2, batch: 1, length: 5, past: 0, capacity: 5, d: 8, magnitude: 1 };

const CASES: readonly Case[] = [
  BASE,
  { ...BASE, heads: 1, kvHeads: 1, length: 1, capacity: 1, d: 1 },
  { ...BASE, length: 0, past: 3 },
  { ...BASE, length: 1, past: 4 },
  { ...BASE, length: 1, past: 0, capacity: 9 },
  { ...BASE, length: 3, past: 2, capacity: 11 },
  { ...BASE, batch: 2, length: 3, past: 2, capacity: 7 },
  { ...BASE, batch: 3, length: 1, past: 6, capacity: 8, d: 5 },
  { ...BASE, heads: 3, kvHeads: 3, d: 2 },
  { ...BASE, heads: 3, kvHeads: 1, d: 3 },
  { ...BASE, heads: 9, kvHeads: 3, d: 64, length: 7, past: 6, capacity: 16 },
  { ...BASE, heads: 2, kvHeads: 1, d: 7, length: 25, capacity: 25 },
  { ...BASE, heads: 2, kvHeads: 2, d: 9, length: 24, past: 1, capacity: 26 },
  { ...BASE, heads: 1, kvHeads: 1, d: 16, length: 1, past: 258, capacity: 260 },
  { ...BASE, heads: 2, kvHeads: 1, d: 33, length: 6, past: 65, capacity: 80 },
  { ...BASE, length: 3, past: 7, capacity: 10 },
  { ...BASE, length: 4, past: 7, capacity: 11 },
  { ...BASE, length: 47, past: 5, capacity: 52, d: 40 },
  { ...BASE, length: 2, past: 3, capacity: 5, d: 32 },
  { ...BASE, length: 1, past: 20, capacity: 30, d: 101 },
  { ...BASE, heads: 1, kvHeads: 1, length: 7, past: 1100, capacity: 1110, d: 5 },
  { ...BASE, window: 5, length: 26, past: 43, capacity: 70, batch: 2, d: 6 },
  { ...BASE, window: 9, length: 2, past: 43, capacity: 50, batch: 2, d: 35 },
  { ...BASE, window: 1 },
  { ...BASE, window: 2, length: 7, past: 4, capacity: 12 },
  { ...BASE, window: 4, length: 1, past: 9, capacity: 10, batch: 2 },
  { ...BASE, window: 100 },
  { ...BASE, causal: false },
  { ...BASE, causal: false, length: 1, past: 2 },
  { ...BASE, causal: false, length: 3, past: 2, capacity: 7, batch: 2, d: 5 },
  { ...BASE, causal: false, length: 29, past: 1, capacity: 40, batch: 3, d: 33, heads: 3, kvHeads: 3 },
  { ...BASE, causal: false, length: 70, capacity: 70 },
  { ...BASE, magnitude: 30 },
  { ...BASE, magnitude: 3000, length: 13, capacity: 13 },
  { ...BASE, magnitude: 0 },
];

/** Rows of the cache that hold no position yet become NaN: whoever reads one shows it. */
function unfilled(m: Matrix, { capacity, past, length }: Case): Matrix {
  return matrix(...m.shape, (row, j) => row % capacity < past + length ? reference.at(m, row, j) : NaN);
}

function runOn(backend: Backend, c: Case, [q, keys, values]: readonly [Matrix, Matrix, Matrix]): Promise<Float32Array> {
  const cache = (m: Matrix) => tensorOf(backend, unfilled(m, c), [c.batch, c.capacity, c.kvHeads * c.d]);
  const inputs = [tensorOf(backend, q), cache(keys), cache(values)] as const;
  return runGuarded(backend, { shape: q.shape, inputs }, () => backend.attention(...inputs, c));
}

/** The same over caches of `dtype`. */
function runOverCaches(
  backend: Backend,
  { dtype, ...c }: Case & { readonly dtype: CacheDtype },
  [q, keys, values]: readonly [Matrix, Matrix, Matrix],
): Promise<Float32Array> {
  const caches: Cache[] = [keys, values].map((m) => {
    const cache = backend.cache([c.batch, c.capacity, c.kvHeads, c.d], dtype);
    backend.append(cache, tensorOf(backend, unfilled(m, c)), 0);
    return cache;
  });
  const input = tensorOf(backend, q);
  return runGuarded(backend, { shape: q.shape, inputs: [input] }, () => {
    return backend.attention(input, caches[0]!, caches[1]!, c);
  });
}

function randomOperands(next: () => number, c: Case): [q: Matrix, keys: Matrix, values: Matrix] {
  const cache = () => randomMatrix(next, c.batch * c.capacity, c.kvHeads * c.d);
  return [randomMatrix(next, c.batch * c.length, c.heads * c.d, { scale: c.magnitude }), cache(), cache()];
}

forEachBackend("attention() is the causal softmax(q kᵀ / sqrt d) v of every head", async (backend) => {
  const next = random(1);
  for (const c of CASES) {
    const [q, keys, values] = randomOperands(next, c);
    const largestScore = c.magnitude * Math.sqrt(c.d);
    const scale = scaled(reference.attention(q, keys, absolute(values), c), 1 + 2 * largestScore);
    const k = c.d + c.past + c.length;
    const want = reference.attention(q, keys, values, c);
    assertClose(await runOn(backend, c, [q, keys, values]), want, { k, scale, label: JSON.stringify(c) });
  }
});

forEachBackend("attention() over caches of f16 and int8 is that of their rounded elements", async (backend) => {
  const next = random(5);
  for (const dtype of ["f32", "f16", "int8"] as const) {
    for (const c of CASES.filter(({ magnitude }) => magnitude === 1)) {
      const [q, ...caches] = randomOperands(next, c);
      const given = caches.map((m) => dtype === "int8" ? awayFromTies(m, c.d) : m) as [Matrix, Matrix];
      const [keys, values] = given.map((m) => roundedToCache(m, dtype, c.d)) as [Matrix, Matrix];
      const scale = scaled(reference.attention(q, keys, absolute(values), c), 1 + 2 * Math.sqrt(c.d));
      const want = reference.attention(q, keys, values, c);
      const label = `${dtype} ${JSON.stringify(c)}`;
      assertClose(await runOverCaches(backend, { ...c, dtype }, [q, ...given]), want, {
        k: c.d + c.past + c.length,
        scale,
        label,
      });
    }
  }
});

forEachBackend(
  "attention() is the same whatever is at positions that no query or not this one sees",
  async (backend) => {
    const next = random(6);
    const sizes = [{ length: 30, capacity: 31 }, { length: 2, past: 3 }, { length: 30, capacity: 30, window: 3 }];
    for (const c of sizes.map((size) => ({ ...BASE, ...size }))) {
      const [q, keys, values] = randomOperands(next, c);
      const clean = await runOn(backend, c, [q, keys, values]);
      for (const bad of [NaN, Infinity]) {
        const at = c.past + (c.length >> 1);
        const spoilt = (m: Matrix) => matrix(...m.shape, (row, j) => row === at ? bad : reference.at(m, row, j));
        const got = await runOn(backend, c, [q, spoilt(keys), spoilt(values)]);
        got.forEach((value, i) => {
          const position = c.past + Math.floor(i / q.shape[1]);
          const sees = position >= at && position < at + (c.window ?? Infinity);
          const label = `${bad} at ${at}, position ${position} of ${JSON.stringify(c)}`;
          if (sees) return assert.ok(Number.isNaN(value), label);
          assert.ok(Math.abs(value - clean[i]!) <= 1e-6, `${label}: ${value}, not ${clean[i]}`);
        });
      }
    }
  },
);

forEachBackend("attention() of equal scores, however low, is the mean of the values", async (backend) => {
  const next = random(4);
  for (const c of [{ ...BASE, length: 7, capacity: 7 }, { ...BASE, length: 2, past: 3 }]) {
    const [q, keys, values] = randomOperands(next, c);
    const low: readonly [Matrix, Matrix, Matrix] = [
      matrix(...q.shape, () => 100),
      matrix(...keys.shape, () => -100),
      values,
    ];
    const want = reference.attention(...low, c);
    const scale = reference.attention(low[0], low[1], absolute(values), c);
    assertClose(await runOn(backend, c, low), want, { k: c.d + c.capacity, scale, label: JSON.stringify(c) });
  }
});

forEachBackend("attention() never looks ahead", async (backend) => {
  const next = random(2);
  const c = { ...BASE, length: 7, past: 2, capacity: 9 };
  const [q, keys, values] = randomOperands(next, c);
  const before = await runOn(backend, c, [q, keys, values]);
  const changed = (m: Matrix) => matrix(...m.shape, (row, j) => row >= 6 ? 100 - row : reference.at(m, row, j));
  const after = await runOn(backend, c, [q, changed(keys), changed(values)]);
  const seen = 4 * q.shape[1];
  assertSameBits(after.subarray(0, seen), before.subarray(0, seen), "queries before the change");
  assert.notDeepEqual(after.subarray(seen), before.subarray(seen), "queries that see the change");
});

forEachBackend("attention() of a chunked prompt equals attention() of the whole prompt", async (backend) => {
  const next = random(3);
  const c = { ...BASE, length: 11, capacity: 11 };
  const [q, keys, values] = randomOperands(next, c);
  const whole = await runOn(backend, c, [q, keys, values]);
  let past = 0;
  for (const length of [1, 5, 4, 1]) {
    const part = await runOn(backend, { ...c, past, length }, [
      reference.rowRange(q, past, past + length),
      keys,
      values,
    ]);
    part.forEach((value, i) => {
      const want = whole[past * q.shape[1] + i]!;
      assert.ok(Math.abs(value - want) <= 1e-5, `got ${value}, want ${want} at ${i} of ${length} after ${past}`);
    });
    past += length;
  }
});

forEachBackend(
  "attention() of a key or a query with NaN in it is NaN where it is seen, though no value is",
  async (backend) => {
    const next = random(8);
    for (const dtype of ["f32", "f16", "int8"] as const) {
      for (const length of [1, 2, 9]) {
        const [heads, d, capacity, past] = [2, 5, 12, 3];
        const options = { heads, kvHeads: heads, batch: 1, past };
        const [q, keys, values] = [length, capacity, capacity].map((rows) => randomMatrix(next, rows, heads * d));
        const cached = (m: Matrix) => {
          const cache = backend.cache([1, capacity, heads, d], dtype);
          backend.append(cache, tensorOf(backend, m), 0);
          return cache;
        };
        const spoil = (m: Matrix, at: number) =>
          matrix(...m.shape, (i, j) => i === at && j === 1 ? NaN : reference.at(m, i, j));
        for (const at of [0, past]) {
          const y = backend.attention(tensorOf(backend, q!), cached(spoil(keys!, at)), cached(values!), options);
          const isNan = [...await backend.read(y)].map(Number.isNaN);
          assert.ok(isNan.every((is, i) => is === (i % (heads * d) < d)), `key ${at}, ${length} queries, ${dtype}`);
        }
        const y = backend.attention(tensorOf(backend, spoil(q!, length - 1)), cached(keys!), cached(values!), options);
        const isNan = [...await backend.read(y)].map(Number.isNaN);
        const first = (length - 1) * heads * d;
        assert.ok(isNan.every((is, i) => is === (i >= first && i < first + d)), `query, ${length} queries, ${dtype}`);
      }
    }
  },
);
