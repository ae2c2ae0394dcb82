import assert from "node:assert/strict";
import { test } from "node:test";
import { combineAdapters } from "../src/adapter/combine.ts";
import { compareAdapters, deltaNorm } from "../src/adapter/compare.ts";
import { loadAdapter } from "../src/adapter/load.ts";
import { createAdapter } from "../src/adapter/create.ts";
import { MismatchError } from "../src/errors.ts";
import { fromFloat32 } from "../src/formats/dtype.ts";
import { deltaOf, makeAdapter, norm } from "./adapter_combine_support.ts";
import { smallAdapter } from "./adapter_fixtures.ts";

const Q = "layers.0.q_proj";

function stored(rows: readonly (readonly number[])[]) {
  return fromFloat32(Float32Array.from(rows.flat()), [rows.length, rows[0]!.length]);
}

/** An adapter whose A has singular values 2 and 1, directions given. */
function withDirections(first: readonly number[], second: readonly number[]) {
  const a = stored([first.map((value) => 2 * value), second]);
  const b = stored([[3, 0], [0, 1], [0, 0], [0, 0], [0, 0], [0, 0]]);
  const path = `base_model.model.${Q}`;
  return loadAdapter(smallAdapter({ tensors: { [`${path}.lora_A.weight`]: a, [`${path}.lora_B.weight`]: b } }));
}

test("compareAdapters() gives φ, norms and cosine of directions known by hand", async () => {
  const h = Math.SQRT1_2;
  const a = await withDirections([1, 0, 0, 0], [0, 1, 0, 0]);
  const b = await withDirections([0, 1, 0, 0], [h, 0, h, 0]);
  const { modules: [module], norms, cosine, onlyFirst, onlySecond } = await compareAdapters(a, b);
  // Columns: e2, (e1 + e3)/√2. Rows: e1, e2. Squares of the products: 0, ½; 1, 0.
  const expected = [[0, 0.5], [1, 0.75]];
  module!.input.forEach((row, i) => row.forEach((phi, j) => assert.ok(Math.abs(phi - expected[i]![j]!) < 1e-7)));
  module!.output.flat().forEach((phi) => assert.ok(Math.abs(phi - 1) < 1e-7), "B is the same");
  assert.deepEqual([module!.module, module!.ranks, onlyFirst, onlySecond], [Q, [2, 2], [], []]);
  // ΔW = s (3 · 2 u₁ v₁ᵀ + u₂ v₂ᵀ), s = 2.
  assert.ok(Math.abs(norms[0] - 2 * Math.sqrt(37)) < 1e-6 && Math.abs(norms[1] - norms[0]) < 1e-6);
  // ⟨ΔW₁, ΔW₂⟩ = s² (36 v₁·w₁ + v₂·w₂) = 0.
  assert.ok(Math.abs(cosine) < 1e-12 && Math.abs(module!.cosine) < 1e-12);
});

test("compareAdapters() of an adapter with itself is 1 where i = j, and of its own negative has cosine -1", async () => {
  const a = await makeAdapter(1, { [Q]: { rank: 5 }, other: { rank: 3 } });
  const negative = await combineAdapters([{ adapter: a, weight: -1 }]);
  const { modules, cosine, norms } = await compareAdapters(a, negative);
  for (const { input, output, cosine } of modules) {
    for (const table of [input, output]) table.forEach((row, i) => assert.ok(Math.abs(row[i]! - 1) < 1e-6));
    assert.ok(Math.abs(cosine + 1) < 1e-6);
  }
  assert.ok(Math.abs(cosine + 1) < 1e-6 && Math.abs(norms[0] - norms[1]) < 1e-6 * norms[0]);
});

test("compareAdapters() of the updates sees the same subspaces whatever the factors, that of the factors does not", async () => {
  const a = await makeAdapter(2, { [Q]: { rank: 4 } });
  const same = await combineAdapters([{ adapter: a }], { method: "svd" });
  const least = (
    { input, output }: { input: readonly (readonly number[])[]; output: readonly (readonly number[])[] },
  ) => Math.min(...input.map((row, i) => row[i]!), ...output.map((row, i) => row[i]!));
  const [delta, factors] = [await compareAdapters(a, same, { of: "delta" }), await compareAdapters(a, same)];
  assert.ok(least(delta.modules[0]!) > 1 - 1e-6, `${least(delta.modules[0]!)}`);
  assert.ok(least(factors.modules[0]!) < 0.9, `${least(factors.modules[0]!)}`);
  assert.ok(Math.abs(factors.modules[0]!.input[3]![3]! - 1) < 1e-6, "all directions together are the same span");
});

test("compareAdapters() names modules of one side, and shows no directions of an update that is zero", async () => {
  const modules = [{ name: Q, inFeatures: 12, outFeatures: 9 }, { name: "new", inFeatures: 4, outFeatures: 4 }];
  const fresh = await createAdapter({ modules, targetModules: ["q_proj", "new"], r: 3 });
  const other = await makeAdapter(3, { [Q]: { rank: 2 }, old: { rank: 2 } });
  const found = await compareAdapters(fresh, other);
  assert.deepEqual([found.onlyFirst, found.onlySecond, found.cosine], [["new"], ["old"], 0]);
  assert.deepEqual([found.modules[0]!.input.length, found.modules[0]!.output, found.norms[0]], [3, [], 0]);
  await assert.rejects(compareAdapters(fresh, await makeAdapter(4, { else: { rank: 1 } })), /without a common module/);
  const shape = await makeAdapter(5, { [Q]: { rank: 2, inFeatures: 5 } });
  await assert.rejects(compareAdapters(other, shape), MismatchError);
});

test("compareAdapters() counts directions, not rows: an adapter beside itself has no more of them", async () => {
  const a = await makeAdapter(7, { [Q]: { rank: 4 } });
  const twice = await combineAdapters([{ adapter: a }, { adapter: a }]);
  for (const whose of ["factors", "delta"] as const) {
    const { modules: [module] } = await compareAdapters(twice, a, { of: whose });
    assert.deepEqual([module!.ranks, module!.input.length, module!.output.length], [[8, 4], 4, 4]);
    assert.ok(Math.abs(module!.cosine - 1) < 1e-7 && Math.abs(module!.norms[0] / module!.norms[1] - 2) < 1e-6);
  }
});

test("deltaNorm() is the norm of s B A", async () => {
  const adapter = await makeAdapter(6, { [Q]: { rank: 4 } }, { use_rslora: true, lora_alpha: -3 });
  const module = adapter.modules.get(Q)!;
  assert.ok(Math.abs(deltaNorm(module) / norm(deltaOf(module)) - 1) < 1e-13);
});
