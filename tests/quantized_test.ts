/** Weights below bf16: what they keep, what `linear` makes of them, and what it refuses. */
import assert from "node:assert/strict";
import { test } from "node:test";
import type { MatrixValues, WeightDtype } from "../src/backend.ts";
import { NumericError, ShapeError } from "../src/errors.ts";
import { dequantizer } from "../src/formats/gguf_quants.ts";
import { openBackend } from "../src/open.ts";
import { BACKENDS, forEachBackend } from "./backends.ts";
import { assertClose, assertSameBits, runGuarded } from "./compare.ts";
import { activations, BLOCKS, held, QUANTIZED, quantized, randomBlocks } from "./quantized.ts";
import * as reference from "./reference.ts";
import { absolute, type Matrix, matrix } from "./reference.ts";
import { branchOf, random, randomBranch, randomMatrix, storedF32, tensorOf, weightOf } from "./values.ts";

/** [out, in]: around panels of 8, blocks of 32 and 64, and the widened blocks of 256 and 1024. */
const SIZES = [[1, 1], [8, 32], [7, 31], [9, 33], [16, 64], [17, 65], [3, 130], [24, 257], [5, 1060], [0, 7], [7, 0]];

/**
 * Fails unless each element is the reference's; one in a hundred may be the next step, because a quotient near a half
 * falls to either side in f32.
 */
function assertQuantized(got: Matrix, want: Matrix, source: Matrix, label: string): void {
  let others = 0;
  got.values.forEach((value, i) => {
    if (Math.abs(value - want.values[i]!) <= 1e-5 * Math.abs(want.values[i]!)) return;
    const [error, least] = [value, want.values[i]!].map((held) => Math.abs(held - source.values[i]!)) as [
      number,
      number,
    ];
    assert.ok(
      error <= least * 1.01 + 1e-6,
      `${label}: ${value}, want ${want.values[i]} for ${source.values[i]} at ${i}`,
    );
    others++;
  });
  assert.ok(others <= 2 + got.values.length / 100, `${label}: ${others} of ${got.values.length} differ`);
}

for (const dtype of QUANTIZED) {
  forEachBackend(`weight() keeps of each value what ${dtype} can hold, in either order of storage`, async (backend) => {
    const next = random(1);
    for (const [n, k] of SIZES as [number, number][]) {
      const w = randomMatrix(next, n, k, { scale: 0.05 });
      const got = await held(backend, w, dtype);
      assertQuantized(got, quantized(w, dtype), w, `${dtype} [${n}, ${k}]`);
      const turned = backend.weight(storedF32(reference.transpose(w)), { dtype, transposed: true });
      assertSameBits(await backend.readWeight(turned), got, `${dtype} [${n}, ${k}], transposed`);
    }
  });
}

forEachBackend("embedding() gives the rows of a quantized table, widened", async (backend) => {
  const next = random(8);
  for (const dtype of QUANTIZED) {
    for (const [n, k] of [[3, 5], [17, 64], [40, 130]] as const) {
      const table = weightOf(backend, randomMatrix(next, n, k), dtype);
      const ids = Uint32Array.of(n - 1, 0, 2, n - 1);
      const rows = await backend.readWeight(table);
      const want = matrix(4, k, (i, j) => rows[ids[i]! * k + j]!);
      const got = await runGuarded(backend, { shape: [4, k], inputs: [] }, () => backend.embedding(ids, table));
      assertSameBits(got, want, `${dtype} [${n}, ${k}]`);
    }
  }
});

forEachBackend(
  "merge() into a quantized weight quantizes the sum, says what that lost, and is undone bit for bit",
  async (backend) => {
    const next = random(10);
    for (const dtype of QUANTIZED) {
      const [n, k] = [19, 70];
      const weight = weightOf(backend, randomMatrix(next, n, k), dtype);
      const before = await backend.readWeight(weight);
      const w: Matrix = { shape: [n, k], values: Float64Array.from(before) };
      const branch = randomBranch(next, { inFeatures: k, outFeatures: n, rank: 4 });
      const bytes = weight.bytes;
      const { error } = await backend.merge(weight, [branchOf(backend, branch)]);
      assert.equal(weight.bytes, 2 * bytes);
      const merged = await backend.readWeight(weight);
      const exact = reference.merge(w, [branch]);
      const square = (m: Matrix, of: (i: number) => number) =>
        Math.sqrt(m.values.reduce((s, _, i) => s + of(i) ** 2, 0));
      const lost = square(w, (i) => merged[i]! - exact.values[i]!);
      const added = square(w, (i) => exact.values[i]! - w.values[i]!);
      assert.ok(Math.abs(error - lost / added) <= 0.02 * error, `${dtype}: reports ${error}, lost ${lost / added}`);
      assert.ok(error > 0 && error < 1, `${dtype}: ${error}`);
      backend.unmerge(weight);
      assertSameBits(await backend.readWeight(weight), before, dtype);
    }
  },
);

for (const dtype of ["q8_0", "q4_0", "q4_1"] as const) {
  forEachBackend(`weight() keeps every bit of ${dtype} blocks, and linear() multiplies them`, async (backend) => {
    const next = random(11);
    const [wanted, , type] = BLOCKS[dtype];
    for (const shape of [[1, 32], [8, 64], [19, 96], [3, 1056], [0, 32]] as [number, number][]) {
      const stored = randomBlocks(next, shape, dtype);
      const values = new Float32Array(shape[0] * shape[1]);
      dequantizer(type)!(stored.bytes, values);
      const label = `${dtype} [${shape}]`;
      const weight = backend.weight(stored, { dtype: wanted });
      assert.equal(weight.dtype, wanted);
      assertSameBits(await backend.readWeight(weight), values.map((value) => value + 0), label);
      const w: Matrix = { shape, values: Float64Array.from(values) };
      for (const [m, exact] of [[1, false], [6, false], [6, true]] as const) {
        const x = randomMatrix(next, m, shape[1]);
        const used = exact ? backend.weight(stored, { dtype: wanted, exact }) : weight;
        const got = await backend.read(backend.linear(tensorOf(backend, x), used));
        // a minimum is added apart, so that terms of both signs may be larger than the weight
        const scale = matrix(
          m,
          shape[0],
          (i) => 40 * reference.product(absolute(x), matrix(shape[1], 1, () => 1)).values[i]!,
        );
        const want = reference.linear(exact ? x : activations(x, wanted, backend), w);
        assertClose(got, want, { k: shape[1], scale, label: `${label} ${m} rows${exact ? ", exact" : ""}` });
      }
    }
  });
}

forEachBackend("weight() refuses what a type cannot hold, and keeps nothing", (backend) => {
  const bytes = backend.bytes;
  for (const dtype of QUANTIZED) {
    for (const bad of [NaN, Infinity, ...(dtype === "f16" ? [65_520] : [])]) {
      const w = matrix(9, 33, (i, j) => i === 8 && j === 32 ? bad : 1);
      assert.throws(() => weightOf(backend, w, dtype), NumericError, `${dtype} ${bad}`);
    }
  }
  const stored: MatrixValues = { shape: [1, 32], dtype: "q8_0", bytes: new Uint8Array(34) };
  assert.throws(() => backend.weight(stored, { dtype: "int4" }), ShapeError);
  assert.throws(() => backend.weight(stored), ShapeError);
  assert.throws(() => backend.weight(stored, { dtype: "int8", transposed: true }), ShapeError);
  assert.throws(() => backend.weight({ ...stored, shape: [32, 1] }, { dtype: "int8" }), ShapeError);
  assert.throws(() => backend.weight({ ...stored, bytes: new Uint8Array(33) }, { dtype: "int8" }), ShapeError);
  assert.throws(() => weightOf(backend, matrix(1, 1, () => 1), "int2" as WeightDtype), TypeError);
  const infinite = Uint8Array.from({ length: 20 }, (_, i) => i === 3 ? 0x7c : 0);
  assert.throws(
    () => backend.weight({ shape: [1, 32], dtype: "q4_1", bytes: infinite }, { dtype: "int4" }),
    NumericError,
  );
  assert.equal(backend.bytes, bytes);
});

test("weight() keeps the same bits on the GPU as in WebAssembly", async (t) => {
  const row = BACKENDS.find(({ name }) => name === "webgpu")!;
  if (row.skip !== undefined) return t.skip(row.skip);
  const [gpu, wasm] = [await row.open(), await openBackend({ prefer: "wasm" })];
  const next = random(12);
  for (const dtype of QUANTIZED) {
    const w = randomMatrix(next, 67, 330);
    const [got, want] = [weightOf(gpu, w, dtype), weightOf(wasm, w, dtype)];
    assert.deepEqual([got.dtype, got.bytes], [want.dtype, want.bytes]);
    assertSameBits(await gpu.readWeight(got), await wasm.readWeight(want), dtype);
  }
  assert.deepEqual(gpu.info.weightDtypes, wasm.info.weightDtypes);
  gpu.dispose();
  wasm.dispose();
});

test("openBackend() finds the dot product of this engine exact", async () => {
  const backend = await openBackend({ prefer: "wasm" });
  assert.equal(backend.info.variant, BACKENDS[0]!.skip === undefined ? "relaxed" : "simd");
  backend.dispose();
});
