/** `linear` and its gradient over weights below bf16, against float64 and against themselves. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { BACKENDS, forEachBackend, forEachBuild } from "./backends.ts";
import { assertClose, assertSameBits, runGuarded } from "./compare.ts";
import { activations, held, INTEGERS, QUANTIZED } from "./quantized.ts";
import * as reference from "./reference.ts";
import { absolute, matrix } from "./reference.ts";
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

forEachBuild("linear() of a row over integers has the same bits in every batch", async (backend) => {
  const next = random(5);
  for (const dtype of INTEGERS) {
    const weight = weightOf(backend, randomMatrix(next, 19, 100), dtype);
    const x = randomMatrix(next, 7, 100);
    const all = await backend.read(backend.linear(tensorOf(backend, x), weight));
    for (let row = 0; row < 7; row++) {
      const one = await backend.read(backend.linear(tensorOf(backend, reference.rowRange(x, row, row + 1)), weight));
      assertSameBits(one, all.slice(row * 19, (row + 1) * 19), `${dtype} row ${row}`);
    }
  }
});

test("linear() over integers has the same bits in both builds", async () => {
  const [relaxed, simd] = await Promise.all(BACKENDS.slice(0, 2).map((row) => row.skip ? null : row.open()));
  if (!relaxed || !simd) return;
  const next = random(6);
  for (const dtype of INTEGERS) {
    for (const [n, k] of [[9, 33], [40, 576], [8, 1536]] as const) {
      const [w, x] = [randomMatrix(next, n, k), randomMatrix(next, 6, k, { scale: 30 })];
      const [a, b] = await Promise.all([relaxed, simd].map((backend) => {
        return backend.read(backend.linear(tensorOf(backend, x), weightOf(backend, w, dtype)));
      }));
      assertSameBits(a!, b!, `${dtype} [${n}, ${k}]`);
    }
  }
  relaxed.dispose();
  simd.dispose();
});

forEachBackend(
  "linear() over integers gives NaN for a row with NaN, and only for it; infinity is not finite",
  async (backend) => {
    const next = random(7);
    for (const dtype of INTEGERS) {
      const weight = weightOf(backend, randomMatrix(next, 9, 70), dtype);
      const x = randomMatrix(next, 5, 70);
      x.values[70 + 69] = NaN;
      x.values[2 * 70] = Infinity;
      const got = await backend.read(backend.linear(tensorOf(backend, x), weight));
      for (let row = 0; row < 5; row++) {
        const values = got.slice(row * 9, row * 9 + 9);
        if (row === 1) assert.ok(values.every(Number.isNaN), `${dtype}: NaN`);
        else assert.equal(values.every(Number.isFinite), row !== 2, `${dtype} row ${row}`);
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
