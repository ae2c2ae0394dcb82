import assert from "node:assert/strict";
import { forEachBackend } from "./backends.ts";
import { assertClose, runGuarded } from "./compare.ts";
import { absolute, at, matrix } from "./reference.ts";
import { erfc, gelu, geluTanh } from "./reference_rows.ts";
import { random, randomMatrix, tensorOf } from "./values.ts";

const SHAPES = [[0, 3], [1, 1], [2, 3], [1, 4], [5, 7], [13, 67]] as const;

forEachBackend("gelu(), its approximation and tanh() work on every shape and size", async (backend) => {
  const next = random(1);
  for (const [rows, columns] of SHAPES) {
    for (const scale of [1e-3, 1, 12]) {
      const x = randomMatrix(next, rows, columns, { scale });
      const input = tensorOf(backend, x);
      const run = (operation: () => ReturnType<typeof backend.gelu>) =>
        runGuarded(backend, { shape: x.shape, inputs: [input] }, operation);
      const label = `[${rows}, ${columns}] of size ${scale}`;
      assertClose(await run(() => backend.gelu(input)), gelu(x), { k: 0, scale: absolute(x), label });
      const approximate = await run(() => backend.gelu(input, "tanh"));
      assertClose(approximate, geluTanh(x), { k: 0, scale: absolute(x), label });
      const tanh = matrix(rows, columns, (i, j) => Math.tanh(at(x, i, j)));
      assertClose(await run(() => backend.tanh(input)), tanh, { k: 0, scale: absolute(tanh), label });
    }
  }
});

forEachBackend("gelu() keeps its digits where it is small, and tanh() everywhere", async (backend) => {
  const values = Float32Array.from({ length: 2000 }, (_, i) => (i - 1000) / 200);
  const x = backend.tensor([values.length], values);
  const [y, t] = [await backend.read(backend.gelu(x)), await backend.read(backend.tanh(x))];
  values.forEach((value, i) => {
    const want = value / 2 * erfc(-value / Math.SQRT2);
    assert.ok(Math.abs(y[i]! - want) <= 4e-6 * Math.abs(want), `gelu(${value}) is ${y[i]}, not ${want}`);
    const tanh = Math.tanh(value);
    assert.ok(Math.abs(t[i]! - tanh) <= 5e-7 * Math.abs(tanh), `tanh(${value}) is ${t[i]}, not ${tanh}`);
  });
});

forEachBackend("gelu() and tanh() stay finite for large numbers", async (backend) => {
  const x = backend.tensor([4], Float32Array.of(-3e38, -100, 100, 3e38));
  assert.deepEqual([...await backend.read(backend.tanh(x))], [-1, -1, 1, 1]);
  for (const y of [backend.gelu(x), backend.gelu(x, "tanh")]) {
    assert.deepEqual([...await backend.read(y)].map(Math.abs), [0, 0, 100, Math.fround(3e38)]);
  }
});

forEachBackend(
  "gelu(), tanh() and siluMul() of NaN are NaN, of which the numbers beside it do not know",
  async (backend) => {
    for (const length of [1, 4, 7]) {
      const ones = backend.tensor([1, length], new Float32Array(length).fill(1));
      for (let at = 0; at < length; at++) {
        const x = backend.tensor([1, length], new Float32Array(length).fill(2).with(at, NaN));
        for (const y of [backend.gelu(x), backend.gelu(x, "tanh"), backend.tanh(x), backend.siluMul(x, ones)]) {
          const values = await backend.read(y);
          values.forEach((value, i) => assert.equal(Number.isNaN(value), i === at, `${i} of ${length}: ${value}`));
        }
      }
    }
  },
);
