import assert from "node:assert/strict";
import { NumericError, ShapeError } from "../src/errors.ts";
import { forEachBackend } from "./backends.ts";
import { absoluteBranch, assertClose, assertSameBits, runGuarded } from "./compare.ts";
import { absolute, add, matrix, merge, rowRange, scaled, transpose } from "./reference.ts";
import * as reference from "./reference_rows.ts";
import { branchOf, random, randomBranch, randomMatrix, storedF32, tensorOf, vectorOf, weightOf } from "./values.ts";

const SHAPES = [[0, 3], [1, 1], [5, 4], [7, 9], [13, 67], [70, 130]] as const;

forEachBackend("affineRows() scales and shifts the rows of a range, and copies the others", async (backend) => {
  const next = random(1);
  for (const [rows, dim] of SHAPES) {
    const [x, scale, shift] = [randomMatrix(next, rows, dim), randomMatrix(next, 1, dim), randomMatrix(next, 1, dim)];
    const inputs = [tensorOf(backend, x), vectorOf(backend, scale), vectorOf(backend, shift)] as const;
    const [from, to] = [rows >> 2, rows - (rows >> 2)];
    for (const [factor, by, plus] of [[1, scale, null], [-2.5, null, shift], [0.7, scale, shift]] as const) {
      const range = {
        ...{ start: from, end: to, factor },
        ...(by && { scale: inputs[1] }),
        ...(plus && { shift: inputs[2] }),
      };
      const got = await runGuarded(backend, { shape: x.shape, inputs }, () => backend.affineRows(inputs[0], [range]));
      const middle = reference.affine(rowRange(x, from, to), factor, by, plus);
      const size = matrix(to - from, dim, () => 3.5);
      assertClose(got.subarray(from * dim, to * dim), middle, { k: 0, scale: size, label: `[${rows}, ${dim}]` });
      assertSameBits(got.subarray(0, from * dim), rowRange(x, 0, from), "rows before");
      assertSameBits(got.subarray(to * dim), rowRange(x, to, rows), "rows behind");
    }
  }
});

forEachBackend("columnSums() adds the sums of products to what is there", async (backend) => {
  const next = random(2);
  for (const [rows, dim] of SHAPES) {
    const [x, y, before] = [randomMatrix(next, rows, dim), randomMatrix(next, rows, dim), randomMatrix(next, 1, dim)];
    const [sums, alone] = [vectorOf(backend, before), vectorOf(backend, before)];
    backend.columnSums(sums, tensorOf(backend, x), { y: tensorOf(backend, y), factor: -0.5 });
    backend.columnSums(alone, tensorOf(backend, x));
    const scale = matrix(1, dim, () => rows + 1);
    const label = `[${rows}, ${dim}]`;
    const want = add(before, scaled(reference.columnSums(x, y), -0.5));
    assertClose(await backend.read(sums), want, { k: rows, scale, label });
    const ones = matrix(rows, dim, () => 1);
    assertClose(await backend.read(alone), add(before, reference.columnSums(x, ones)), { k: rows, scale, label });
  }
});

forEachBackend("gatherSum() sums the rows of each list, and gives zeros for none", async (backend) => {
  const next = random(3);
  for (const [rows, dim] of [[1, 1], [3, 4], [5, 9], [9, 67]] as const) {
    const x = randomMatrix(next, rows, dim);
    const lists = Array.from({ length: 11 }, (_, i) => {
      return Array.from({ length: i % 4 }, (_, j) => [(i * 5 + j) % rows, Math.fround(next())] as const);
    });
    const offsets = Uint32Array.from([0, ...lists.keys()], (_, i) => lists.slice(0, i).flat().length);
    const terms = lists.flat();
    const given = { offsets, rows: Uint32Array.from(terms, ([row]) => row) };
    const input = tensorOf(backend, x);
    const run = (all: Parameters<typeof backend.gatherSum>[1]) =>
      runGuarded(backend, { shape: [11, dim], inputs: [input] }, () => backend.gatherSum(input, all));
    const scale = matrix(11, dim, () => 3);
    const weighted = await run({ ...given, weights: Float32Array.from(terms, ([, weight]) => weight) });
    assertClose(weighted, reference.gatherSum(x, lists), { k: 3, scale, label: "weighted" });
    const ones = lists.map((list) => list.map(([row]) => [row, 1] as const));
    assertClose(await run(given), reference.gatherSum(x, ones), { k: 3, scale, label: "plain" });
    assert.ok(weighted.subarray(0, dim).every((value) => value === 0));
  }
});

forEachBackend("gatherSum() refuses lists that are torn or name no row", (backend) => {
  const x = backend.tensor([2, 3]);
  const u32 = (...values: number[]) => Uint32Array.from(values);
  for (const [offsets, rows] of [[u32(), u32()], [u32(0, 2), u32(0)], [u32(1, 1), u32(0)], [u32(0, 1), u32(2)]]) {
    assert.throws(() => backend.gatherSum(x, { offsets: offsets!, rows: rows! }), ShapeError);
  }
  assert.throws(() => backend.gatherSum(x, { offsets: u32(0, 2, 1), rows: u32(0) }), ShapeError);
  const weights = new Float32Array(2);
  assert.throws(() => backend.gatherSum(x, { offsets: u32(0, 1), rows: u32(0), weights }), ShapeError);
});

forEachBackend("transpose() turns every matrix of a batch", async (backend) => {
  const next = random(4);
  for (const [batch, rows, columns] of [[1, 1, 1], [0, 2, 3], [2, 3, 5], [1, 17, 33], [3, 40, 7]] as const) {
    const all = Array.from({ length: batch }, () => randomMatrix(next, rows, columns));
    const values = Float32Array.from(all.flatMap((m) => [...m.values]));
    const input = backend.tensor([batch, rows, columns], values);
    const shape = [batch, columns, rows];
    const got = await runGuarded(backend, { shape, inputs: [input] }, () => backend.transpose(input));
    assertSameBits(got, Float32Array.from(all.flatMap((m) => [...transpose(m).values])), `${shape}`);
  }
});

forEachBackend("inverseNorms() is 1 / ‖W + s B A‖ per row and per column, and 0 for 0", async (backend) => {
  const next = random(5);
  for (const [out, inner, rank] of [[1, 1, 1], [9, 5, 2], [24, 67, 9], [130, 33, 3]] as const) {
    for (const dtype of ["f32", "bf16"] as const) {
      const w = randomMatrix(next, out, inner, { dtype });
      const branch = randomBranch(next, { inFeatures: inner, outFeatures: out, rank, scaling: -1.5 });
      const [weight, uploaded] = [weightOf(backend, w, dtype), branchOf(backend, branch)];
      for (const columns of [false, true]) {
        const want = reference.inverseNorms(w, branch, columns);
        const got = await backend.read(backend.inverseNorms(weight, uploaded, { columns }));
        // W and Δ may cancel: an error of the norm is one of |W| + |Δ|, relative to the norm.
        const size = reference.inverseNorms(
          merge(absolute(w), [absoluteBranch(branch)]),
          { ...branch, scaling: 0 },
          columns,
        );
        const scale = matrix(1, want.shape[1], (_, i) => want.values[i]! ** 2 / size.values[i]!);
        assertClose(got, want, { k: rank + inner + out, scale, label: `${dtype} [${out}, ${inner}] ${columns}` });
      }
    }
  }
  const zero = branchOf(backend, randomBranch(next, { inFeatures: 3, outFeatures: 2, rank: 1, scaling: 0 }));
  const nothing = weightOf(backend, matrix(2, 3, () => 0));
  assert.deepEqual([...await backend.read(backend.inverseNorms(nothing, zero))], [0, 0]);
});

forEachBackend("replace() overwrites a weight, and unmerge() puts its bits back", async (backend) => {
  const next = random(6);
  const [w, other, x] = [randomMatrix(next, 9, 5), randomMatrix(next, 9, 5), randomMatrix(next, 2, 5)];
  const [weight, input] = [weightOf(backend, w), tensorOf(backend, x)];
  const want = await backend.read(backend.linear(input, weightOf(backend, other)));
  const held = backend.bytes;
  backend.replace(weight, storedF32(other));
  assert.equal(weight.merged, true);
  const got = backend.linear(input, weight);
  assertSameBits(await backend.read(got), want, "with the other weight");
  got.dispose();
  assert.throws(() => backend.replace(weight, storedF32(w)), /^RangeError: Cannot merge twice/);
  backend.unmerge(weight);
  assertSameBits(await backend.readWeight(weight), w, "restored");
  assert.equal(backend.bytes, held);
  for (const bad of [NaN, Infinity]) {
    const values = storedF32(matrix(9, 5, (i) => i === 8 ? bad : 1));
    assert.throws(() => backend.replace(weight, values), NumericError);
  }
  const large = storedF32(matrix(9, 5, () => 3.4e38));
  assert.throws(() => backend.replace(weightOf(backend, w, "bf16"), large), NumericError);
  assert.throws(() => backend.replace(weight, storedF32(x)), ShapeError);
});
