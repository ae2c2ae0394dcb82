/**
 * Where `combineAdapters()` is not `add_weighted_adapter` of PEFT 0.21.2: each test computes PEFT's value by its formula
 * and ours, and shows both beside what was asked for.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import type { Adapter } from "../src/adapter/adapter.ts";
import { concatenate, type ModulePart } from "../src/adapter/combine_module.ts";
import { combineAdapters } from "../src/adapter/combine.ts";
import { loadAdapter } from "../src/adapter/load.ts";
import { readFactors } from "../src/adapter/factors.ts";
import { singularVectors } from "../src/adapter/svd.ts";
import { type StoredTensor, toFloat32 } from "../src/formats/dtype.ts";
import { deltaOf, distance, makeAdapter, norm, reportedError, wantedSum } from "./adapter_combine_support.ts";
import { peftFiles, store } from "./dialects_support.ts";
import { add, type Matrix, matrix, product, scaled } from "./reference.ts";
import { random } from "./values.ts";

const Q = "layers.0.q_proj";
const V = "layers.0.v_proj";

function tensor(next: () => number, ...shape: number[]): StoredTensor {
  return { ...store("F32", 1, shape.reduce((x, y) => x * y), next), shape };
}

/** An adapter of one module that is no linear layer, or that has more parts. */
async function oneModule(seed: number, shapes: Record<string, number[]>, config: object): Promise<Adapter> {
  const next = random(seed);
  const tensors = new Map(
    Object.entries(shapes).map(([end, shape]) => [`base_model.model.x.${end}`, tensor(next, ...shape)]),
  );
  return await loadAdapter(peftFiles({ lora_alpha: 6, ...config }, tensors));
}

/** ΔW of any kind as a matrix. */
function flatDelta(adapter: Adapter, module = "x"): Matrix {
  const { scaling, ...found } = adapter.modules.get(module)!;
  const { a, b } = readFactors(found);
  const asMatrix = ({ rows, columns, values }: typeof a) => matrix(rows, columns, (i, j) => values[i * columns + j]!);
  const [left, right] = [asMatrix(b), asMatrix(a)];
  const transposed = matrix(b.columns, b.rows, (i, j) => left.values[j * b.columns + i]!);
  return scaled(product(transposed, right), scaling);
}

function bound(wanted: Matrix, rank: number): number {
  const [rows, columns] = wanted.shape;
  const { sigma } = singularVectors({ rows, columns, values: wanted.values });
  return Math.sqrt(sigma.slice(rank).reduce((sum, value) => sum + value * value, 0)) / norm(wanted);
}

test("exact: the factors of the sum are the sum to the rounding of float64", async () => {
  const adapters = await Promise.all(
    [1, 2, 3].map((seed) => makeAdapter(seed, { [Q]: { rank: seed + 1 } }, { use_rslora: seed === 2 })),
  );
  const weights = [0.7, -0.4, 1.3];
  const parts = adapters.map(({ modules }, index): ModulePart => {
    const module = modules.get(Q)!;
    return { index, weight: weights[index]!, scaling: module.scaling, factors: readFactors(module), module };
  });
  const { a, b } = concatenate(parts);
  const sum = matrix(b.columns, a.columns, (i, j) => {
    let value = 0;
    for (let k = 0; k < a.rows; k++) value += b.values[k * b.columns + i]! * a.values[k * a.columns + j]!;
    return value;
  });
  const wanted = wantedSum(adapters.map((adapter, i) => [adapter, weights[i]!] as const), Q);
  assert.ok(distance(sum, wanted) < 1e-15, `${distance(sum, wanted)}`);
  const exact = await combineAdapters(adapters.map((adapter, i) => ({ adapter, weight: weights[i]! })), {
    method: "exact",
  });
  assert.ok(reportedError(exact, Q) < 6e-8, "what is stored is rounded to float32 once");
});

test("biases of B: PEFT loses them, ours is Σ weight · s · b", async () => {
  const shapes = { "lora_A.weight": [2, 5], "lora_B.weight": [4, 2], "lora_B.bias": [4] };
  const config = { r: 2, lora_bias: true };
  const [a, b] = [await oneModule(1, shapes, config), await oneModule(2, shapes, { ...config, lora_alpha: 5 })];
  const combined = await combineAdapters([{ adapter: a, weight: 0.5 }, { adapter: b, weight: -2 }], { method: "svd" });
  const bias = ({ modules }: Adapter) => toFloat32(modules.get("x")!.loraBias!);
  const wanted = bias(a).map((value, i) => 0.5 * 3 * value - 2 * 2.5 * bias(b)[i]!);
  const [ours, theirs] = [bias(combined), new Float32Array(4)];
  const error = (got: Float32Array) => Math.hypot(...got.map((value, i) => value - wanted[i]!)) / Math.hypot(...wanted);
  assert.ok(error(ours) < 1e-7);
  assert.equal(error(theirs), 1);
  assert.ok(combined.report.some(({ what }) => what === "PEFT 0.21.2 would lose the biases of B"));
  const plain = await combineAdapters([{ adapter: a }, {
    adapter: await oneModule(3, { "lora_A.weight": [2, 5], "lora_B.weight": [4, 2] }, { r: 2 }),
  }]);
  assert.deepEqual(bias(plain), bias(a).map((value) => 3 * value), "an adapter without biases adds none");
  assert.equal(plain.config.loraBias, true);
});

test("DoRA: PEFT starts a fresh magnitude, which is plain LoRA; ours refuses by name", async () => {
  const next = random(4);
  const w = matrix(4, 5, next);
  const shapes = { "lora_A.weight": [2, 5], "lora_B.weight": [4, 2], lora_magnitude_vector: [4] };
  const dora = await oneModule(5, shapes, { r: 2, use_dora: true });
  const m = toFloat32(dora.modules.get("x")!.magnitude!);
  const whole = add(w, flatDelta(dora));
  const rowNorm = (i: number) => Math.hypot(...whole.values.slice(5 * i, 5 * i + 5));
  const wanted = matrix(4, 5, (i, j) => m[i]! / rowNorm(i) * whole.values[5 * i + j]!);
  // A fresh magnitude is ‖W + Δ‖, so PEFT's result is W + Δ.
  assert.ok(distance(whole, wanted) > 0.5, `PEFT is off by ${distance(whole, wanted)}`);
  await assert.rejects(combineAdapters([{ adapter: dora }]), { name: "MismatchError", field: "use_dora" });
});

test("convolutions: PEFT's svd raises for one and three dimensions, ours reaches the optimum of (out, in · k)", async () => {
  for (const kernel of [[3], [3, 2], [2, 2, 2]]) {
    const shapes = (r: number) => ({
      "lora_A.weight": [r, 3, ...kernel],
      "lora_B.weight": [5, r, ...kernel.map(() => 1)],
    });
    const [a, b] = [await oneModule(6, shapes(2), { r: 2 }), await oneModule(7, shapes(3), { r: 3 })];
    const wanted = add(flatDelta(a), scaled(flatDelta(b), -0.7));
    const terms = [{ adapter: a }, { adapter: b, weight: -0.7 }];
    const svd = await combineAdapters(terms, { method: "svd", rank: 2 });
    assert.ok(Math.abs(distance(flatDelta(svd), wanted) - bound(wanted, 2)) < 1e-6);
    assert.deepEqual(svd.modules.get("x")!.loraA.shape, [2, 3, ...kernel]);
    assert.deepEqual([svd.modules.get("x")!.kind, svd.modules.get("x")!.loraB.shape.length], [
      "conv",
      2 + kernel.length,
    ]);
    const cat = await combineAdapters(terms);
    assert.ok(distance(flatDelta(cat), wanted) < 1e-7);
  }
});

test("embeddings: combined as (B A)ᵀ, exactly and to a rank", async () => {
  const shapes = (r: number) => ({ lora_embedding_A: [r, 7], lora_embedding_B: [4, r] });
  const [a, b] = [await oneModule(8, shapes(2), { r: 2 }), await oneModule(9, shapes(3), { r: 3 })];
  const wanted = add(flatDelta(a), flatDelta(b));
  const cat = await combineAdapters([{ adapter: a }, { adapter: b }]);
  assert.deepEqual([cat.modules.get("x")!.kind, distance(flatDelta(cat), wanted) < 1e-7], ["embedding", true]);
});

test("rank_pattern: PEFT's linear gives every module the rank of the config and fails, ours keeps each module's", async () => {
  const [a, b] = [
    await makeAdapter(10, { [Q]: { rank: 2 }, [V]: { rank: 3 } }),
    await makeAdapter(11, { [Q]: { rank: 2 }, [V]: { rank: 3 } }),
  ];
  const linear = await combineAdapters([{ adapter: a }, { adapter: b }], { method: "linear" });
  const theirs = a.config.r;
  const ours = Array.from(linear.modules.values(), ({ rank }) => rank);
  assert.deepEqual([theirs, ours], [2, [2, 3]]);
  const other = await makeAdapter(12, { [Q]: { rank: 4 } });
  const mixed = combineAdapters([{ adapter: a }, { adapter: other }], { method: "linear" });
  await assert.rejects(mixed, { name: "MismatchError", tensor: Q, field: "rank" });
});

test("linear: PEFT's sum of factors has cross terms of the size of the update; ours by default has none", async () => {
  const adapters = await Promise.all(
    Array.from({ length: 8 }, (_, i) => makeAdapter(20 + i, { [Q]: { rank: 4, inFeatures: 40, outFeatures: 30 } })),
  );
  for (let i = 0; i < 8; i += 2) {
    const terms = [{ adapter: adapters[i]!, weight: 0.6 }, { adapter: adapters[i + 1]!, weight: 0.4 }];
    const wanted = wantedSum([[adapters[i]!, 0.6], [adapters[i + 1]!, 0.4]], Q);
    const theirs = await combineAdapters(terms, { method: "linear" });
    const ours = await combineAdapters(terms);
    const error = distance(deltaOf(theirs.modules.get(Q)!), wanted);
    assert.ok(error > 0.5 && error < 1.5, `PEFT's is off by ${error}`);
    assert.ok(distance(deltaOf(ours.modules.get(Q)!), wanted) < 6e-8);
  }
});

test("PiSSA: PEFT's result keeps the init and takes the principal part off the base again; ours refuses such inputs", async () => {
  const next = random(30);
  const [rows, columns] = [9, 12];
  const w = matrix(rows, columns, next);
  const pissa = await makeAdapter(31, { [Q]: { rank: 2 } }, { init_lora_weights: "pissa" });
  const { sigma } = singularVectors({ rows, columns, values: w.values });
  const moved = Math.hypot(sigma[0]!, sigma[1]!) / norm(w);
  assert.ok(moved > 0.3, `PEFT moves the base by ${moved}`);
  const refused = combineAdapters([{ adapter: pissa }]);
  await assert.rejects(refused, { name: "MismatchError", field: "init_lora_weights" });
  const eva = await makeAdapter(32, { [Q]: { rank: 2 } }, { init_lora_weights: "eva" });
  assert.equal((await combineAdapters([{ adapter: eva }])).config.init, true);
});
