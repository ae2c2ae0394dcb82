/** Linear layers whose adapters have a magnitude (DoRA) or a bias on B. */
import assert from "node:assert/strict";
import type { Backend, MatrixValues, Tensor, WeightDtype } from "../src/backend.ts";
import { MismatchError, ShapeError } from "../src/errors.ts";
import { LoraLinear } from "../src/lora/lora_linear.ts";
import type { AdapterSelection } from "../src/lora/selection.ts";
import { fromFloat32 } from "../src/formats/dtype.ts";
import { forEachBackend } from "./backends.ts";
import { assertSameBits } from "./compare.ts";
import { assertNear } from "./models_support.ts";
import { at, linear, type Matrix, matrix, rowRange } from "./reference.ts";
import { differences, dot, effectiveWeight, layerForward, type Part, type PartTerm } from "./reference_layers.ts";
import { inverseNorms } from "./reference_rows.ts";
import { random, randomBranch, randomMatrix, storedF32, tensorOf, vectorOf, weightOf } from "./values.ts";

const [IN, OUT, ROWS] = [5, 7, 4];

function storedVector({ values }: Matrix) {
  return fromFloat32(Float32Array.from(values), [values.length]);
}

const factorsOf = ({ branch, loraBias, magnitude }: Part) => ({
  loraA: storedF32(branch.a),
  loraB: storedF32(branch.b),
  scaling: branch.scaling,
  ...(loraBias && { loraBias: storedVector(loraBias) }),
  ...(magnitude && { magnitude: storedVector(magnitude) }),
});

function setUp(backend: Backend, dtype: WeightDtype = "f32") {
  const next = random(1);
  const branch = (rank: number, scaling: number) => {
    return randomBranch(next, { inFeatures: IN, outFeatures: OUT, rank, scaling });
  };
  const magnitude = () => matrix(1, OUT, () => Math.fround(1.5 + next()));
  const parts: Readonly<Record<string, Part>> = {
    plain: { branch: branch(2, 1.5) },
    biased: { branch: branch(1, 2), loraBias: randomMatrix(next, 1, OUT) },
    dora: { branch: branch(3, 0.5), magnitude: magnitude() },
    other: { branch: branch(2, -1), magnitude: magnitude() },
  };
  const [w, bias] = [randomMatrix(next, OUT, IN, { dtype }), randomMatrix(next, 1, OUT)];
  const layer = new LoraLinear(backend, {
    weight: weightOf(backend, w, dtype),
    bias: vectorOf(backend, bias),
    adapters: Object.fromEntries(Object.entries(parts).map(([name, part]) => [name, factorsOf(part)])),
  });
  return { layer, parts, w, bias, x: randomMatrix(next, ROWS, IN), dy: randomMatrix(next, ROWS, OUT) };
}

const SELECTIONS: readonly AdapterSelection[] = [
  "dora",
  "biased",
  { dora: 0.4 },
  { dora: -1, other: 0.5 },
  { other: 1, dora: 1 },
  { plain: 1, dora: 1 },
  { dora: 1, plain: 0.7 },
  { biased: 0.5, plain: 1 },
  { biased: 1, dora: 1 },
  { dora: 1, biased: -0.5, other: 2, plain: 1 },
  ["dora", null, "plain", "other"],
  [null, "biased", { dora: 0.4 }, "dora"],
  [{ dora: 1, plain: 1 }, { dora: 1, plain: 1 }, "biased", null],
];

/** The mix of each row. */
function termsOf(selection: AdapterSelection, parts: Readonly<Record<string, Part>>, row: number): PartTerm[] {
  const choice = Array.isArray(selection) ? selection[row] : selection;
  if (choice === null) return [];
  return Object.entries(typeof choice === "string" ? { [choice]: 1 } : choice as Record<string, number>)
    .map(([name, weight]) => [parts[name]!, weight]);
}

forEachBackend("forward() applies DoRA and biases on B, in order, alone, mixed and per row", async (backend) => {
  const { layer, parts, w, bias, x } = setUp(backend);
  const input = tensorOf(backend, x);
  const held = backend.bytes;
  for (const adapter of SELECTIONS) {
    const y = layer.forward(input, { adapter });
    const got = await backend.read(y);
    y.dispose();
    const want = matrix(ROWS, OUT, (i, j) => {
      return at(layerForward(rowRange(x, i, i + 1), w, bias, termsOf(adapter, parts, i)), 0, j);
    });
    assertNear(got, want.values, 2e-6, JSON.stringify(adapter));
  }
  const gains = 2 * OUT * 4;
  assert.ok(backend.bytes - held <= 8 * 2 * gains + 4096, "gains are all that is kept");
  const again = layer.forward(input, { adapter: "dora" });
  const before = backend.bytes;
  layer.forward(input, { adapter: "dora" }).dispose();
  assert.equal(backend.bytes, before);
  again.dispose();
  layer.dispose();
  assert.ok(backend.bytes < held);
});

forEachBackend("a gain made inside a scope outlives it", async (backend) => {
  const { layer, x } = setUp(backend);
  const input = tensorOf(backend, x);
  const first = backend.scope(() => layer.forward(input, { adapter: "dora" }));
  const second = layer.forward(input, { adapter: "dora" });
  assertSameBits(await backend.read(second), await backend.read(first), "again");
});

forEachBackend("backward() has DoRA's gradients with the norms as constants", async (backend) => {
  for (const adapter of SELECTIONS) {
    const { layer, parts, w, bias, x, dy } = setUp(backend);
    const gradients = new Map(Object.keys(parts).map((name) => [name, layer.gradients(name)]));
    const [dx, dw, dbias] = [backend.tensor([ROWS, IN]), backend.tensor([OUT, IN]), backend.tensor([OUT])];
    layer.backward(tensorOf(backend, dy), tensorOf(backend, x), { adapter, gradients, dx, dw, dbias });
    const norms = Array.from({ length: ROWS }, (_, row) =>
      termsOf(adapter, parts, row).map(([{ branch }, weight]) => {
        return inverseNorms(w, { ...branch, scaling: branch.scaling * weight }, false);
      }));
    const loss = () => {
      let sum = 0;
      for (let i = 0; i < ROWS; i++) {
        const y = layerForward(rowRange(x, i, i + 1), w, bias, termsOf(adapter, parts, i), norms[i]!);
        sum += dot(rowRange(dy, i, i + 1), y);
      }
      return sum;
    };
    const checks: (readonly [Tensor, Matrix, string])[] = [[dx, x, "dx"], [dbias, bias, "dbias"]];
    if (!Array.isArray(adapter)) checks.push([dw, w, "dw"]);
    for (const [name, { da, db, dLoraBias, dMagnitude }] of gradients) {
      const { branch, loraBias, magnitude } = parts[name]!;
      checks.push([da, branch.a, `dA of ${name}`], [db, branch.b, `dB of ${name}`]);
      if (loraBias) checks.push([dLoraBias!, loraBias, `d b_B of ${name}`]);
      if (magnitude) checks.push([dMagnitude!, magnitude, `dm of ${name}`]);
    }
    const got = await Promise.all(checks.map(([tensor]) => backend.read(tensor)));
    checks.forEach(([, of, what], i) => {
      const want = differences(of, loss).values;
      const isNear = got[i]!.every((value, k) => Math.abs(value - want[k]!) < 3e-5);
      assert.ok(isNear, `${JSON.stringify(adapter)} ${what}: ${got[i]}, want ${want}`);
    });
    layer.dispose();
  }
});

forEachBackend("merge() rounds DoRA once, changes the bias, and unmerge() restores every bit", async (backend) => {
  for (const dtype of ["f32", "bf16"] as const) {
    for (const adapter of SELECTIONS) {
      if (Array.isArray(adapter)) continue;
      const { layer, parts, w, bias, x } = setUp(backend, dtype);
      const input = tensorOf(backend, x);
      const before = await backend.read(layer.forward(input));
      await layer.merge(adapter as string);
      assert.equal(layer.merged, true);
      const terms = termsOf(adapter, parts, 0);
      const label = `${dtype} ${JSON.stringify(adapter)}`;
      const want = effectiveWeight(w, terms).values;
      assertNear(await backend.readWeight(layer.weight), want, dtype === "f32" ? 1e-6 : 2 ** -8, label);
      const y = await backend.read(layer.forward(input));
      assertNear(y, layerForward(x, w, bias, terms).values, dtype === "f32" ? 2e-6 : 2e-2, `${label}: y`);
      assert.throws(() => layer.forward(input, { adapter: "plain" }), RangeError);
      await assert.rejects(layer.merge("plain"), /^RangeError: Cannot merge twice/);
      layer.unmerge();
      assertSameBits(await backend.readWeight(layer.weight), w, `${label}: restored`);
      assertSameBits(await backend.read(layer.forward(input)), before, `${label}: y restored`);
      layer.dispose();
    }
  }
});

forEachBackend("a merge into a shared weight leaves the weight as it is", async (backend) => {
  const { layer, parts, w, bias, x } = setUp(backend);
  const tied = new LoraLinear(backend, {
    weight: layer.weight,
    shared: true,
    adapters: { a: factorsOf(parts["dora"]!) },
  });
  const held = backend.bytes;
  await tied.merge("a");
  assertSameBits(await backend.readWeight(layer.weight), w, "W");
  const y = tied.forward(tensorOf(backend, x));
  const zero = matrix(1, OUT, () => 0);
  assertNear(await backend.read(y), layerForward(x, w, zero, [[parts["dora"]!, 1]]).values, 2e-6, "merged");
  await backend.read(layer.forward(tensorOf(backend, x), { adapter: "plain" }));
  tied.unmerge();
  assert.equal(tied.merged, false);
  y.dispose();
  assert.ok(backend.bytes - held < 3000 && bias.values.length === OUT);
});

/** Blocks [2, 64] of ggml whose largest codes are not used: a second quantization finds other scales. */
function sparseBlocks(dtype: "q8_0" | "q4_0" | "q4_1"): MatrixValues {
  const [size, head] = { q8_0: [34, 2], q4_0: [18, 2], q4_1: [20, 4] }[dtype] as [number, number];
  const bytes = new Uint8Array(4 * size);
  for (let i = 0; i < bytes.length; i++) {
    const [at, low] = [i % size, i * 7 % 11];
    // d = 2⁻⁶, and q4_1's minimum 0.5, in f16.
    if (at < head) bytes[i] = [0x00, 0x24, 0x00, 0x38][at]!;
    else bytes[i] = dtype === "q8_0" ? i * 37 % 80 : low + 2 + ((i * 5 % 11 + 2) << 4);
  }
  return { shape: [2, 64], dtype, bytes };
}

forEachBackend("a merge into a shared quantized weight adds the adapter, and loses nothing", async (backend) => {
  const next = random(3);
  const branch = randomBranch(next, { inFeatures: 64, outFeatures: 2, rank: 2, scaling: 1e-3 });
  const x = randomMatrix(next, 3, 64);
  for (const dtype of ["q8_0", "q4_0", "q4_1"] as const) {
    const weight = backend.weight(sparseBlocks(dtype), { dtype: dtype === "q8_0" ? "int8" : "int4" });
    const values = await backend.readWeight(weight);
    const factors = { loraA: storedF32(branch.a), loraB: storedF32(branch.b), scaling: branch.scaling };
    const layer = new LoraLinear(backend, { weight, shared: true, adapters: { a: factors } });
    assert.deepEqual(await layer.merge("a"), { error: 0 }, dtype);
    const want = linear(x, matrix(2, 64, (o, i) => values[o * 64 + i]!), {
      adapters: [{ start: 0, end: 3, branches: [branch] }],
    });
    assertNear(await backend.read(layer.forward(tensorOf(backend, x))), want.values, 2e-6, dtype);
    layer.unmerge();
    assertSameBits(await backend.readWeight(weight), values, `${dtype}: the base`);
    layer.dispose();
    weight.dispose();
  }
});

forEachBackend("an adapter's own weight and bias answer for its rows alone, and merge", async (backend) => {
  const { layer, parts, w, bias, x } = setUp(backend);
  const next = random(9);
  const [own, ownBias] = [randomMatrix(next, OUT, IN), randomMatrix(next, 1, OUT)];
  const stored = { ...storedF32(own), dtype: "F32" as const };
  layer.replaceFor("full", { weight: stored, bias: storedVector(ownBias) });
  layer.replaceFor("plain", { bias: storedVector(ownBias) });
  const input = tensorOf(backend, x);
  const adapter = ["full", null, "plain", "dora"];
  const rows = [[own, ownBias, []], [w, bias, []], [w, ownBias, ["plain"]], [w, bias, ["dora"]]] as const;
  const want = rows.flatMap(([weight, add, names], i) => {
    const terms = names.map((name): PartTerm => [parts[name]!, 1]);
    return [...layerForward(rowRange(x, i, i + 1), weight, add, terms).values];
  });
  assertNear(await backend.read(layer.forward(input, { adapter })), want, 2e-6, "per row");
  const dw = backend.tensor([OUT, IN]);
  layer.backward(tensorOf(backend, matrix(ROWS, OUT, () => 1)), input, { adapter: "full", dw });
  const sums = matrix(OUT, IN, (_, j) => [0, 1, 2, 3].reduce((sum, i) => sum + at(x, i, j), 0));
  assertNear(await backend.read(dw), sums.values, 1e-6, "dW");
  await layer.merge("full");
  assertNear(await backend.read(layer.forward(input)), layerForward(x, own, ownBias, []).values, 2e-6, "merged");
  layer.unmerge();
  assertSameBits(await backend.readWeight(layer.weight), w, "restored");
  assert.throws(() => layer.replaceFor("full", { bias: storedVector(x) }), ShapeError);
  assert.throws(() => layer.replaceFor("full", { weight: { ...storedF32(x), dtype: "F32" } }), ShapeError);
});

forEachBackend("addAdapter() refuses a magnitude or a bias of another length and keeps what it had", (backend) => {
  const { layer, parts } = setUp(backend);
  const held = backend.bytes;
  const short = storedVector(matrix(1, OUT - 1, () => 1));
  assert.throws(() => layer.addAdapter("dora", { ...factorsOf(parts["dora"]!), magnitude: short }), ShapeError);
  assert.throws(() => layer.addAdapter("dora", { ...factorsOf(parts["dora"]!), loraBias: short }), ShapeError);
  assert.throws(() => layer.addAdapter("dora", { ...factorsOf(parts["dora"]!), diagonal: short }), ShapeError);
  assert.equal(backend.bytes, held);
});

forEachBackend("DoRA over a quantized base has the norms of what that base holds", async (backend) => {
  if (backend.name === "webgpu") return;
  const { parts, w, x } = setUp(backend);
  const adapters = { a: factorsOf(parts["dora"]!) };
  for (const dtype of ["f16", "f8", "int8", "int4", "nf4"] as const) {
    const weight = backend.weight(storedF32(w), { dtype, exact: true });
    const values = await backend.readWeight(weight);
    const held = matrix(OUT, IN, (i, j) => values[i * IN + j]!);
    const layer = new LoraLinear(backend, { weight, adapters });
    const zero = matrix(1, OUT, () => 0);
    const want = layerForward(x, held, zero, [[parts["dora"]!, 1]]).values;
    assertNear(await backend.read(layer.forward(tensorOf(backend, x), { adapter: "a" })), want, 2e-6, dtype);
    layer.dispose();
  }
});

forEachBackend("a mix whose order matters, with names that JavaScript reorders, is refused", async (backend) => {
  const { layer, parts, x } = setUp(backend);
  const input = tensorOf(backend, x);
  layer.addAdapter("1", factorsOf(parts["plain"]!));
  layer.addAdapter("2", factorsOf(parts["dora"]!));
  for (const adapter of [{ 2: 1, 1: 1 }, { dora: 1, 1: 1 }]) {
    assert.throws(() => layer.forward(input, { adapter }), MismatchError);
    await assert.rejects(layer.merge(adapter), MismatchError);
  }
  // Order changes nothing here.
  for (const adapter of [{ 2: 1 }, { 2: 0, dora: 1 }, { plain: 1, 1: 1 }]) layer.forward(input, { adapter });
  assert.equal(layer.merged, false);
});
