/** `linear` and its gradient over weights below bf16, against float64 and against themselves. */
import assert from "node:assert/strict";
import { test } from "node:test";
import type { Backend, Weight } from "../src/backend.ts";
import { BACKENDS, forEachBackend, forEachBuild } from "./backends.ts";
import { assertClose, assertSameBits, runGuarded } from "./compare.ts";
import { activations, held, INTEGERS, QUANTIZED, randomBlocks } from "./quantized.ts";
import * as reference from "./reference.ts";
import { absolute, type Matrix, matrix } from "./reference.ts";
import { random, randomBranch, randomMatrix, rowsOf, storedF32, tensorOf, vectorOf, weightOf } from "./values.ts";

/** [out, in]: around panels of 8, blocks of 32 and 64, and the widened blocks of 256 and 1024. */
const SIZES = [[1, 1], [8, 32], [7, 31], [9, 33], [16, 64], [17, 65], [3, 130], [24, 257], [5, 1060], [0, 7], [7, 0]];
const ROWS = [0, 1, 2, 3, 4, 5, 8, 13];

for (const dtype of QUANTIZED) {
  forEachBackend(`linear() is x Wᵀ + bias for the values that a ${dtype} weight holds`, async (backend) => {
    const next = random(2);
    for (const [n, k] of SIZES as [number, number][]) {
      const w = await held(backend, randomMatrix(next, n, k, { scale: 0.05 }), dtype);
      const weight = weightOf(backend, w, dtype);
      assertSameBits(await backend.readWeight(weight), w, "what is held is held again");
      const bias = randomMatrix(next, 1, n);
      for (const m of ROWS) {
        const x = randomMatrix(next, m, k);
        const input = tensorOf(backend, x);
        const options = m % 2 ? {} : { bias: vectorOf(backend, bias) };
        const got = await runGuarded(
          backend,
          { shape: [m, n], inputs: [input] },
          () => backend.linear(input, weight, options),
        );
        const rounded = activations(x, dtype, backend);
        const want = reference.linear(rounded, w, m % 2 ? {} : { bias });
        const scale = reference.linear(absolute(x), absolute(w), m % 2 ? {} : { bias: absolute(bias) });
        assertClose(got, want, { k: k + 4, scale, label: `${dtype} x [${m}, ${k}], W [${n}, ${k}]` });
      }
    }
  });
}

for (const dtype of INTEGERS) {
  forEachBackend(`linear() over an exact ${dtype} weight does not round x`, async (backend) => {
    const next = random(3);
    for (const [n, k] of [[7, 31], [24, 257], [5, 1060]] as const) {
      const w = await held(backend, randomMatrix(next, n, k), dtype);
      const weight = backend.weight(storedF32(w), { dtype, exact: true });
      assert.equal(weight.dtype, dtype);
      for (const m of [1, 4, 7]) {
        const x = randomMatrix(next, m, k);
        const got = await backend.read(backend.linear(tensorOf(backend, x), weight));
        const scale = reference.linear(absolute(x), absolute(w));
        assertClose(got, reference.linear(x, w), { k, scale, label: `exact ${dtype} [${m}, ${k}] [${n}, ${k}]` });
      }
    }
  });
}

forEachBackend("linear() keeps adapters float over a quantized weight, per row range", async (backend) => {
  const next = random(4);
  for (const dtype of QUANTIZED) {
    for (const [n, k] of [[17, 40], [300, 33]] as const) {
      const w = await held(backend, randomMatrix(next, n, k), dtype);
      const x = randomMatrix(next, 6, k);
      const branches = [8, 3].map((rank) => randomBranch(next, { inFeatures: k, outFeatures: n, rank }));
      for (const ranges of [[[0, 6]], [[0, 1], [2, 6]]] as [number, number][][]) {
        const adapters = ranges.map(([start, end]) => ({ start, end, branches }));
        const got = await backend.read(
          backend.linear(tensorOf(backend, x), weightOf(backend, w, dtype), { adapters: rowsOf(backend, adapters) }),
        );
        const base = reference.linear(activations(x, dtype, backend), w);
        const none = matrix(n, k, () => 0);
        const want = reference.add(base, reference.linear(x, none, { adapters }));
        const positive = adapters.map((range) => ({
          ...range,
          branches: branches.map(({ a, b, scaling }) => ({ a: absolute(a), b: absolute(b), scaling })),
        }));
        const scale = reference.linear(absolute(x), absolute(w), { adapters: positive });
        assertClose(got, want, { k: k + 20, scale, label: `${dtype} [${n}, ${k}] ${JSON.stringify(ranges)}` });
      }
    }
  }
});

/** Every form that integers have, of random values; k is a multiple of 32. */
function integerWeights(backend: Backend, shape: readonly [number, number]): [string, Weight][] {
  const next = random(5);
  const [values, blocks] = [storedF32(randomMatrix(next, ...shape)), randomBlocks(next, shape, "q4_1")];
  const forms = [["int8", values], ["int4", values], ["int4", blocks]] as const;
  return forms.map(([dtype, from]) => [`${dtype} of ${from.dtype}`, backend.weight(from, { dtype })]);
}

/** Rows that share strips: usual ones, zeros, outliers, single numbers, and those that have no inverse, or no digits. */
function unlikeRows(rows: number, k: number): Matrix {
  const next = random(6);
  const kinds: ((column: number) => number)[] = [
    () => 30,
    () => 0,
    (column) => column % 77 === 0 ? 100 : 1,
    () => 2 ** -130,
    (column) => column % 32 === 5 ? 1 : 0,
    () => 1e-36,
    (column) => 2 ** -(column % 150),
  ];
  return matrix(rows, k, (row, column) => Math.fround(next() * kinds[row % kinds.length]!(column)));
}

forEachBuild("linear() of a row over integers has the same bits in every batch", async (backend) => {
  for (const [n, k] of [[19, 96], [41, 1056], [8, 20000]] as const) {
    const x = unlikeRows(11, k);
    for (const [label, weight] of integerWeights(backend, [n, k])) {
      const run = (from: number, to: number) =>
        backend.read(backend.linear(tensorOf(backend, reference.rowRange(x, from, to)), weight));
      const all = await run(0, 11);
      for (let m = 1; m < 11; m++) {
        for (const from of [0, 11 - m]) {
          const want = all.subarray(from * n, (from + m) * n);
          assertSameBits(await run(from, from + m), want, `${label} [${n}, ${k}], rows ${from} to ${from + m}`);
        }
      }
      weight.dispose();
    }
  }
});

test("linear() over integers has the same bits in both builds and on several threads", async () => {
  const backends = await Promise.all(BACKENDS.slice(0, 3).filter((row) => !row.skip).map((row) => row.open()));
  for (const [n, k] of [[9, 32], [40, 576], [70, 1536]] as const) {
    const x = unlikeRows(13, k);
    for (const m of [1, 13]) {
      const results = await Promise.all(backends.flatMap((backend) => {
        const input = tensorOf(backend, reference.rowRange(x, 0, m));
        return integerWeights(backend, [n, k]).map(([, weight]) => backend.read(backend.linear(input, weight)));
      }));
      results.forEach((got, i) => assertSameBits(got, results[i % 3]!, `result ${i}, ${m} rows, [${n}, ${k}]`));
    }
  }
  for (const backend of backends) backend.dispose();
});

forEachBuild(
  "linear() over integers is as exact for small and large numbers, and 0 for those near the least",
  async (backend) => {
    const [n, k] = [9, 96];
    for (const [label, weight] of integerWeights(backend, [n, k])) {
      const w: Matrix = { shape: [n, k], values: Float64Array.from(await backend.readWeight(weight)) };
      for (const exponent of [17, -10, -20, -28, -35, -36, -37, -37.4, -38, -40, -45]) {
        const next = random(exponent);
        const x = matrix(6, k, (_, column) => column % 7 === 0 ? 0 : Math.fround(next() * 10 ** exponent));
        const got = await backend.read(backend.linear(tensorOf(backend, x), weight));
        const [want, scale] = [reference.linear(x, w), reference.linear(absolute(x), absolute(w))];
        got.forEach((value, i) => {
          const allowed = 0.01 * scale.values[i]! + 1e-31;
          assert.ok(Math.abs(value - want.values[i]!) <= allowed, `${label} of 1e${exponent}: ${value}, at ${i}`);
        });
      }
    }
  },
);

forEachBackend(
  "linear() over integers gives NaN for a row with NaN, and only for it; infinity is not finite",
  async (backend) => {
    const next = random(7);
    const [n, k] = [9, 96];
    for (const [label, weight] of integerWeights(backend, [n, k])) {
      const places = [[1, 5], [0, 1], [5, 6], [0, 7], [8, 11]] as const;
      for (const [row, m] of backend.name === "webgpu" ? places.slice(0, 1) : places) {
        const x = randomMatrix(next, m, k);
        const clean = await backend.read(backend.linear(tensorOf(backend, x), weight));
        for (const [at, bad] of [[95, NaN], [0, Infinity], [40, -Infinity]] as const) {
          const values = x.values.slice();
          values[row * k + at] = bad;
          const got = await backend.read(backend.linear(tensorOf(backend, { ...x, values }), weight));
          const own = got.slice(row * n, row * n + n);
          assert.ok(
            own.every(Number.isNaN(bad) ? Number.isNaN : (y) => !Number.isFinite(y)),
            `${label}: ${bad} in ${own}`,
          );
          got.set(clean.subarray(row * n, row * n + n), row * n);
          assertSameBits(got, clean, `${label}: rows beside ${bad}`);
        }
      }
    }
  },
);

forEachBackend("linearBackward() adds dy W for the values that a quantized weight holds", async (backend) => {
  const next = random(9);
  for (const dtype of QUANTIZED) {
    for (const [n, k] of [[9, 33], [40, 130], [5, 300]] as const) {
      const w = await held(backend, randomMatrix(next, n, k), dtype);
      for (const m of [1, 5, 9]) {
        const [x, dy] = [randomMatrix(next, m, k), randomMatrix(next, m, n)];
        const dx = backend.tensor([m, k]);
        backend.linearBackward(tensorOf(backend, dy), tensorOf(backend, x), weightOf(backend, w, dtype), { dx });
        const [want, scale] = [reference.product(dy, w), reference.product(absolute(dy), absolute(w))];
        assertClose(await backend.read(dx), want, { k: n, scale, label: `${dtype} [${m}, ${n}] [${n}, ${k}]` });
      }
    }
  }
});
