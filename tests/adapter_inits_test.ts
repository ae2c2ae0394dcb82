import assert from "node:assert/strict";
import { test } from "node:test";
import type { Adapter, LoraModule } from "../src/adapter/adapter.ts";
import { createAdapter, type CreateAdapterOptions } from "../src/adapter/create.ts";
import { readFactors } from "../src/adapter/factors.ts";
import { leadingVectors, trailingVectors } from "../src/adapter/leading_vectors.ts";
import {
  frobeniusNorm,
  type Matrix,
  multiply,
  multiplyTransposed,
  scale,
  sum,
  transpose,
  zeros,
} from "../src/adapter/linear_algebra.ts";
import { loadAdapter } from "../src/adapter/load.ts";
import { RandomStream } from "../src/adapter/random.ts";
import { saveAdapter } from "../src/adapter/save.ts";
import { productNorm, type SingularVectors, singularVectors } from "../src/adapter/svd.ts";
import { symmetricEigen } from "../src/adapter/symmetric_eigen.ts";
import { fromFloat32, type StoredTensor, toFloat32 } from "../src/formats/dtype.ts";
import { memorySink } from "../src/formats/memory.ts";
import { noise } from "./merge_support.ts";

const [OUT, IN] = [40, 30];
const weight = noise([OUT, IN], 3);
const modules = [{ name: "layers.0.q", inFeatures: IN, outFeatures: OUT }];

const matrix = ({ shape, bytes, dtype }: StoredTensor): Matrix => ({
  rows: shape[0]!,
  columns: shape[1]!,
  values: Float64Array.from(toFloat32({ shape, bytes, dtype })),
});

/** s B A in float64. */
function delta(module: LoraModule): Matrix {
  const { a, b } = readFactors(module);
  return scale(multiply(transpose(b), a), module.scaling);
}

const best = ({ left, right }: SingularVectors, rank: number): Matrix => {
  const rows = (x: Matrix) => ({ rows: rank, columns: x.columns, values: x.values.subarray(0, rank * x.columns) });
  return multiply(transpose(rows(left)), rows(right));
};

const distance = (x: Matrix, y: Matrix): number => frobeniusNorm(sum(x, scale(y, -1))) / frobeniusNorm(y);

async function created(
  options: Partial<CreateAdapterOptions>,
): Promise<{ adapter: Adapter; module: LoraModule; base: Matrix }> {
  let base = matrix(weight);
  const adapter = await createAdapter({
    modules,
    targetModules: ["q"],
    r: 4,
    loraAlpha: 6,
    weightOf: () => weight,
    onBase: (_, changed) => base = matrix(changed),
    ...options,
  });
  return { adapter, module: [...adapter.modules.values()][0]!, base };
}

test("leadingVectors() and trailingVectors() give what full decompositions give, of flat spectra too", () => {
  const random = new RandomStream(1, "flat");
  for (const [rows, columns] of [[20, 30], [120, 90], [100, 130]] as const) {
    const x = zeros(rows, columns);
    for (let i = 0; i < x.values.length; i++) x.values[i] = random.normal();
    const full = singularVectors(x);
    for (const rank of [1, 5]) {
      const found = leadingVectors(x, rank);
      assert.deepEqual([found.left.rows, found.right.rows, found.sigma.length], [rank, rank, rank]);
      found.sigma.forEach((value, k) => assert.ok(Math.abs(value / full.sigma[k]! - 1) < 1e-12, `${rows}: ${value}`));
      assert.ok(distance(best(found, rank), best(full, rank)) < 1e-10, `${rows} ${columns} ${rank}`);
      const trailing = trailingVectors(x, rank, "q");
      trailing.sigma.forEach((value, k) =>
        assert.ok(Math.abs(value - full.sigma.at(k - rank)!) < 1e-10 * full.sigma[0]!)
      );
      const last = multiply(transpose(trailing.left), trailing.right);
      assert.ok(Math.abs(frobeniusNorm(last) - Math.hypot(...trailing.sigma)) < 1e-10 * full.sigma[0]!);
    }
  }
});

test("leadingVectors() of a large matrix gives what the whole decomposition gives, from a small part of it", () => {
  const random = new RandomStream(2, "large");
  const x = zeros(270, 300);
  for (let i = 0; i < x.values.length; i++) x.values[i] = random.normal() / (1 + (i % 300) / 30);
  const { values } = symmetricEigen(multiplyTransposed(x, x));
  const found = leadingVectors(x, 6);
  found.sigma.forEach((value, k) => assert.ok(Math.abs(value / Math.sqrt(values[k]!) - 1) < 1e-12));
  const product = best(found, 6);
  const rest = frobeniusNorm(sum(x, scale(product, -1))) ** 2;
  const least = values.slice(6).reduce((total, value) => total + value, 0);
  assert.ok(Math.abs(rest / least - 1) < 1e-10, String(rest / least - 1));
});

test("pissa takes the best approximation of rank r from the base, whatever s", async () => {
  for (const useRslora of [false, true]) {
    const { adapter, module, base } = await created({ init: "pissa", useRslora });
    const want = best(singularVectors(matrix(weight)), 4);
    assert.ok(distance(delta(module), want) < 1e-6);
    assert.ok(distance(sum(base, delta(module)), matrix(weight)) < 1e-6);
    assert.deepEqual([adapter.baseChange, adapter.config.raw.get("init_lora_weights")], ["pissa", "pissa"]);
  }
});

test("pissa_niter_N comes near to the best approximation, the nearer the larger N", async () => {
  const want = singularVectors(matrix(weight));
  const least = frobeniusNorm(sum(matrix(weight), scale(best(want, 4), -1)));
  const errors = await Promise.all(([1, 40] as const).map(async (n) => {
    const { adapter, base } = await created({ init: `pissa_niter_${n}` });
    assert.equal(adapter.baseChange, "pissa_niter");
    return frobeniusNorm(base) / least;
  }));
  assert.ok(errors[0]! > 1 && errors[0]! < 1.5 && errors[1]! < errors[0]! && errors[1]! < 1.01, String(errors));
});

test("olora takes Q and R of the first r columns", async () => {
  const { module, base } = await created({ init: "olora" });
  const { a, b } = readFactors(module);
  const gram = multiplyTransposed(b, b);
  gram.values.forEach((value, i) => assert.ok(Math.abs(value - (i % 5 === 0 ? 1 : 0)) < 1e-6));
  const product = multiply(transpose(b), a);
  const first = (x: Matrix) => x.values.filter((_, i) => i % IN < 4);
  first(product).forEach((value, i) => assert.ok(Math.abs(value - first(matrix(weight))[i]!) < 1e-6));
  assert.ok(distance(base, sum(matrix(weight), scale(product, -1.5))) < 1e-6);
});

test("orthogonal begins with B A = 0 and neither of them zero; an odd rank is refused", async () => {
  const { module, adapter } = await created({ init: "orthogonal" });
  const { a, b } = readFactors(module);
  assert.ok(frobeniusNorm(delta(module)) < 1e-6 * frobeniusNorm(a) * frobeniusNorm(b));
  // Entries of A are sums of 2 products of a normal and an entry of Q, over 10: variance 2 / 4 / 100.
  const variance = (x: Matrix) => frobeniusNorm(x) ** 2 / x.values.length;
  for (const x of [a, b]) assert.ok(variance(x) > 0.002 && variance(x) < 0.012, String(variance(x)));
  assert.equal(adapter.baseChange, null);
  await assert.rejects(created({ init: "orthogonal", r: 3 }), { name: "MismatchError", field: "r" });
});

test("mica begins with the directions in which the weight does least, and A = 0", async () => {
  const { module, adapter } = await created({ init: "mica" });
  const { a, b } = readFactors(module);
  assert.equal(frobeniusNorm(a), 0);
  const { sigma } = singularVectors(matrix(weight));
  const got = frobeniusNorm(multiply(b, matrix(weight)));
  assert.ok(Math.abs(got - Math.hypot(...sigma.slice(-4))) < 1e-5);
  assert.ok(Math.abs(frobeniusNorm(b) - 2) < 1e-6);
  assert.equal(adapter.baseChange, null);
});

test("loftq begins over a quantised base that it brings nearer to the weight", async () => {
  for (const [loftqBits, loftqIterations, bound] of [[4, 1, 0.08], [4, 5, 0.08], [8, 1, 0.006]] as const) {
    const { adapter, module, base } = await created({ init: "loftq", loftqBits, loftqIterations, loraAlpha: 4 });
    const before = distance(base, matrix(weight));
    const after = distance(sum(base, delta(module)), matrix(weight));
    assert.ok(after < before && before < bound * 2 && after < bound, `${loftqBits}: ${before} ${after}`);
    assert.deepEqual(
      adapter.config.raw.get("loftq_config"),
      new Map(Object.entries({ loftq_bits: loftqBits, loftq_iter: loftqIterations })),
    );
    if (loftqBits === 8) continue;
    const largest = Math.max(...base.values.subarray(0, 64).map(Math.abs));
    assert.ok(new Set(Array.from(base.values.subarray(0, 64), (value) => (value / largest).toFixed(5))).size <= 16);
  }
});

test("eva gives ranks to the layers whose inputs vary in fewer directions, and keeps s", async () => {
  const two = [...modules, { name: "layers.1.q", inFeatures: 20, outFeatures: 8 }];
  const inputs = (name: string): StoredTensor => {
    if (name === "layers.1.q") return noise([50, 20], 8);
    // Three directions, and an offset that does not count.
    const [x, y] = [noise([60, 3], 1), noise([3, IN], 2)];
    const values = Float32Array.from(multiply(matrix(x), matrix(y)).values, (value) => value + 5);
    return fromFloat32(values, [60, IN]);
  };
  const { adapter } = await created({ modules: two, init: "eva", inputsOf: inputs });
  const [first, second] = [...adapter.modules.values()] as [LoraModule, LoraModule];
  assert.equal(first.rank + second.rank, 8);
  assert.equal(first.rank, 3);
  assert.deepEqual([first.scaling, second.scaling], [1.5, 1.5]);
  const a = readFactors(second).a;
  multiplyTransposed(a, a).values.forEach((value, i) => {
    assert.ok(Math.abs(value - (i % (second.rank + 1) === 0 ? 1 : 0)) < 1e-6);
  });
  assert.equal(productNorm(readFactors(first)), 0);
  const sink = memorySink();
  await saveAdapter(adapter, sink);
  assert.deepEqual((await loadAdapter(sink.files)).modules, adapter.modules);
  await assert.rejects(created({ init: "eva" }), { name: "MismatchError", field: "inputsOf" });
});

test("DoRA begins with the norms of the weight, lora_bias with zeros, and both load again", async () => {
  const { adapter, module } = await created({ useDora: true });
  const rows = matrix(weight);
  toFloat32(module.magnitude!).forEach((norm, i) => {
    assert.ok(Math.abs(norm - Math.hypot(...rows.values.subarray(i * IN, (i + 1) * IN))) < 1e-6);
  });
  for (const one of [adapter, (await created({ loraBias: true })).adapter]) {
    const sink = memorySink();
    await saveAdapter(one, sink);
    assert.deepEqual((await loadAdapter(sink.files)).modules, one.modules);
  }
  await assert.rejects(createAdapter({ modules, targetModules: ["q"], useDora: true }), { field: "useDora" });
});

test("initialisations that begin from the weight ask for it, in its shape, and take no larger rank", async () => {
  for (const init of ["pissa", "olora", "mica", "loftq", "pissa_niter_2"] as const) {
    const bare = { modules, targetModules: ["q"], init };
    await assert.rejects(createAdapter(bare), { name: "MismatchError", field: "init" }, init);
    await assert.rejects(created({ init, r: 31 }), { name: "MismatchError" }, init);
    await assert.rejects(created({ init, weightOf: () => noise([3, 3], 1) }), { name: "MismatchError" }, init);
  }
  await assert.rejects(created({ init: "pissa", loraAlpha: -1 }), { name: "NumericError" });
  for (const wrong of [{ loftqIterations: 0 }, { loftqBits: 2 as 4 }, { evaRho: NaN }]) {
    await assert.rejects(created({ init: "loftq", ...wrong }), RangeError);
  }
  const turned = await created({ init: "pissa", weightOf: () => ({ ...weight, shape: [IN, OUT] }) });
  assert.deepEqual(turned.module.loraA.shape, [4, IN]);
});
