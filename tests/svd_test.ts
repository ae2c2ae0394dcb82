import assert from "node:assert/strict";
import { test } from "node:test";
import {
  frobeniusNorm,
  type Matrix,
  multiply,
  multiplyTransposed,
  orthogonalize,
  transpose,
} from "../src/adapter/linear_algebra.ts";
import { type Factors, productNorm, productVectors, singularVectors } from "../src/adapter/svd.ts";
import { random } from "./values.ts";

function randomMatrix(rows: number, columns: number, seed: number): Matrix {
  const next = random(seed);
  return { rows, columns, values: Float64Array.from({ length: rows * columns }, next) };
}

/** Q of a random matrix: orthonormal rows. */
function orthonormal(rows: number, columns: number, seed: number): Matrix {
  return orthogonalize(randomMatrix(rows, columns, seed)).q;
}

/** A matrix (m, n) with these singular values. */
function withValues(m: number, n: number, sigma: readonly number[]): Matrix {
  const right = orthonormal(sigma.length, n, 2);
  const scaled = { ...right, values: right.values.map((value, i) => value * sigma[Math.floor(i / n)]!) };
  return multiply(transpose(orthonormal(sigma.length, m, 1)), scaled);
}

function distance(x: Matrix, y: Matrix): number {
  assert.deepEqual([x.rows, x.columns], [y.rows, y.columns]);
  return frobeniusNorm({ ...x, values: x.values.map((value, i) => value - y.values[i]!) });
}

function assertOrthonormalRows(x: Matrix, label: string): void {
  const gram = multiplyTransposed(x, x);
  const identity = gram.values.map((_, i) => i % (x.rows + 1) === 0 ? 1 : 0);
  assert.ok(distance(gram, { ...gram, values: identity }) < 1e-13 * (x.rows + 1), label);
}

const SHAPES: readonly (readonly [number, number])[] = [[1, 1], [1, 7], [7, 1], [5, 5], [13, 4], [4, 13], [31, 17]];

test("orthogonalize() gives orthonormal rows and an upper triangle whose product is the input", () => {
  for (const [rows, columns] of SHAPES) {
    const x = randomMatrix(rows, columns, rows * 100 + columns);
    const { q, r } = orthogonalize(x);
    const label = `[${rows}, ${columns}]`;
    assert.deepEqual([q.rows, r.rows, r.columns], [Math.min(rows, columns), q.rows, rows], label);
    assertOrthonormalRows(q, label);
    assert.ok(distance(multiply(transpose(r), q), x) < 1e-13 * frobeniusNorm(x), label);
    for (let i = 0; i < r.rows; i++) assert.ok(r.values.subarray(i * rows, i * rows + i).every((value) => value === 0));
  }
});

test("orthogonalize() stays orthonormal where vectors are zero, equal or tiny", () => {
  const x = randomMatrix(4, 9, 5);
  x.values.set(x.values.subarray(0, 9), 9);
  x.values.fill(0, 18, 27);
  for (let i = 27; i < 36; i++) x.values[i]! *= 1e-30;
  const { q, r } = orthogonalize(x);
  assertOrthonormalRows(q, "dependent vectors");
  assert.ok(distance(multiply(transpose(r), q), x) < 1e-14);
  assertOrthonormalRows(orthogonalize({ rows: 2, columns: 3, values: new Float64Array(6) }).q, "zeros");
});

test("singularVectors() finds the singular values that a matrix was made of, also far apart, equal and zero", () => {
  const spectra = [[3, 2, 1], [1, 1, 1, 1], [1e6, 1, 1e-6], [5, 0.5, 0, 0], [0, 0], [2], [9, 3, 3, 3, 1e-3]];
  for (const sigma of spectra) {
    for (const [m, n] of [[5, 8], [8, 5], [5, 5], [40, 6]] as const) {
      const x = withValues(m, n, sigma);
      const found = singularVectors(x);
      const label = `${sigma} in [${m}, ${n}]`;
      const padded = [...sigma, ...Array<number>(Math.min(m, n) - sigma.length).fill(0)];
      padded.forEach((value, i) => assert.ok(Math.abs(found.sigma[i]! - value) <= 1e-14 * (sigma[0]! + 1) * 8, label));
      assert.ok(distance(multiply(transpose(found.left), found.right), x) <= 1e-13 * (sigma[0]! + 1), label);
    }
  }
});

test("singularVectors() gives orthonormal right vectors, and left ones as long as the singular values", () => {
  for (const [rows, columns] of SHAPES) {
    const { sigma, left, right } = singularVectors(randomMatrix(rows, columns, 7));
    const label = `[${rows}, ${columns}]`;
    assertOrthonormalRows(right, label);
    const gram = multiplyTransposed(left, left);
    const squares = gram.values.map((_, i) => i % (left.rows + 1) === 0 ? sigma[i / (left.rows + 1)]! ** 2 : 0);
    assert.ok(distance(gram, { ...gram, values: squares }) < 1e-12 * frobeniusNorm(gram), label);
    assert.deepEqual([...sigma], [...sigma].sort((a, b) => b - a), label);
  }
});

test("productVectors() and productNorm() agree with the product formed in full, for ranks above the sides too", () => {
  for (const [rank, inFeatures, outFeatures] of [[1, 1, 1], [3, 9, 14], [14, 9, 5], [8, 8, 8], [6, 40, 3]] as const) {
    const factors: Factors = { a: randomMatrix(rank, inFeatures, 3), b: randomMatrix(rank, outFeatures, 4) };
    const delta = multiply(transpose(factors.b), factors.a);
    const label = `rank ${rank} of [${outFeatures}, ${inFeatures}]`;
    const [found, whole] = [productVectors(factors), singularVectors(delta)];
    assert.equal(found.sigma.length, Math.min(rank, inFeatures, outFeatures), label);
    found.sigma.forEach((value, i) => assert.ok(Math.abs(value - whole.sigma[i]!) < 1e-13 * whole.sigma[0]!, label));
    assert.ok(distance(multiply(transpose(found.left), found.right), delta) < 1e-13 * frobeniusNorm(delta), label);
    assert.ok(Math.abs(productNorm(factors) - frobeniusNorm(delta)) < 1e-13 * frobeniusNorm(delta), label);
  }
});

test("productNorm() sees a difference of 1e-9, which sums of inner products would lose", () => {
  const [a, b] = [randomMatrix(4, 30, 8), randomMatrix(4, 20, 9)];
  const other = { ...a, values: a.values.map((value) => -value * (1 + 1e-9)) };
  const stacked: Factors = {
    a: { rows: 8, columns: 30, values: Float64Array.from([...a.values, ...other.values]) },
    b: { rows: 8, columns: 20, values: Float64Array.from([...b.values, ...b.values]) },
  };
  assert.ok(Math.abs(productNorm(stacked) / productNorm({ a, b }) / 1e-9 - 1) < 1e-5);
});
