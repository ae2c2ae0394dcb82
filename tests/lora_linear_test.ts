import assert from "node:assert/strict";
import type { Backend, WeightDtype } from "../src/backend.ts";
import { DisposedError, MismatchError, NumericError, ShapeError } from "../src/errors.ts";
import { LoraEmbedding } from "../src/lora/lora_embedding.ts";
import { LoraLinear } from "../src/lora/lora_linear.ts";
import type { AdapterSelection } from "../src/lora/selection.ts";
import { forEachBackend } from "./backends.ts";
import { absoluteRows, assertClose, assertSameBits } from "./compare.ts";
import * as reference from "./reference.ts";
import { absolute, type Branch, type Matrix, type RowBranches } from "./reference.ts";
import { random, randomBranch, randomMatrix, storedF32, tensorOf, vectorOf, weightOf } from "./values.ts";

const [IN, OUT, ROWS] = [11, 9, 7];

interface Setup {
  readonly layer: LoraLinear;
  readonly w: Matrix;
  readonly bias: Matrix;
  readonly x: Matrix;
  readonly branches: Readonly<Record<string, Branch>>;
}

const factorsOf = ({ a, b, scaling }: Branch) => ({ loraA: storedF32(a), loraB: storedF32(b), scaling });

function setUp(backend: Backend, dtype: WeightDtype = "f32"): Setup {
  const next = random(1);
  const sizes = { inFeatures: IN, outFeatures: OUT };
  const branches = {
    emotion: randomBranch(next, { ...sizes, rank: 1, scaling: 2 }),
    qa: randomBranch(next, { ...sizes, rank: 9, scaling: 0.5 }),
    full: randomBranch(next, { ...sizes, rank: IN, scaling: -1 }),
  };
  const w = randomMatrix(next, OUT, IN, { dtype });
  const bias = randomMatrix(next, 1, OUT);
  const adapters = Object.fromEntries(Object.entries(branches).map(([name, branch]) => [name, factorsOf(branch)]));
  const layer = new LoraLinear(backend, {
    weight: weightOf(backend, w, dtype),
    bias: vectorOf(backend, bias),
    adapters,
  });
  return { layer, w, bias, x: randomMatrix(next, ROWS, IN), branches };
}

/** [selection, rows [start, end) with the weight of each adapter]. */
const SELECTIONS: readonly (readonly [
  AdapterSelection | undefined,
  readonly (readonly [number, number, Readonly<Record<string, number>>])[],
])[] = [
  [undefined, []],
  [null, []],
  ["emotion", [[0, 7, { emotion: 1 }]]],
  ["full", [[0, 7, { full: 1 }]]],
  [{ emotion: 0.7, qa: 0.3 }, [[0, 7, { emotion: 0.7, qa: 0.3 }]]],
  [{ emotion: -1, qa: 0 }, [[0, 7, { emotion: -1 }]]],
  [{}, []],
  [["qa", null, "emotion", "emotion", { full: 2, qa: 1 }, null, "qa"], [
    [0, 1, { qa: 1 }],
    [2, 4, { emotion: 1 }],
    [4, 5, { full: 2, qa: 1 }],
    [6, 7, { qa: 1 }],
  ]],
];

function rangesOf(branches: Setup["branches"], rows: (typeof SELECTIONS)[number][1]): RowBranches[] {
  return rows.map(([start, end, weights]) => ({
    start,
    end,
    branches: Object.entries(weights).map(([name, weight]) => {
      const branch = branches[name]!;
      return { ...branch, scaling: branch.scaling * weight };
    }),
  }));
}

function scaleOf({ x, w, bias }: Setup, ranges: readonly RowBranches[]): Matrix {
  return reference.linear(absolute(x), absolute(w), { bias: absolute(bias), adapters: absoluteRows(ranges) });
}

forEachBackend("forward() applies a name, a mix, the base, and one choice per row", async (backend) => {
  const setup = setUp(backend);
  const x = tensorOf(backend, setup.x);
  for (const [adapter, rows] of SELECTIONS) {
    const adapters = rangesOf(setup.branches, rows);
    const y = setup.layer.forward(x, adapter === undefined ? {} : { adapter });
    assertClose(await backend.read(y), reference.linear(setup.x, setup.w, { bias: setup.bias, adapters }), {
      k: IN + 21,
      scale: scaleOf(setup, adapters),
      label: JSON.stringify(adapter) ?? "no selection",
    });
    y.dispose();
  }
});

forEachBackend("apply() skips names that the layer lacks", async (backend) => {
  const { layer, x } = setUp(backend);
  const input = tensorOf(backend, x);
  const mixes = [{ start: 0, end: 3, mix: [["elsewhere", 1], ["qa", 0.5]] }, {
    start: 3,
    end: 7,
    mix: [["elsewhere", 1]],
  }];
  const got = await backend.read(layer.apply(input, mixes as unknown as Parameters<LoraLinear["apply"]>[1]));
  const half = { qa: 0.5 };
  const want = await backend.read(layer.forward(input, { adapter: [half, half, half, null, null, null, null] }));
  assertSameBits(got, want, "rows");
});

forEachBackend("forward() and merge() refuse an unknown name and list the known ones", async (backend) => {
  const { layer, w, x } = setUp(backend);
  const input = tensorOf(backend, x);
  const known = /^Cannot apply adapter "emotoin": .*"emotion", "qa", "full"$/;
  const isMismatch = (error: Error) => error instanceof MismatchError && known.test(error.message);
  const held = backend.bytes;
  assert.throws(() => layer.forward(input, { adapter: "emotoin" }), isMismatch);
  assert.throws(() => layer.forward(input, { adapter: { qa: 1, emotoin: 1 } }), isMismatch);
  await assert.rejects(async () => await layer.merge("emotoin"), isMismatch);
  assert.throws(() => layer.forward(input, { adapter: ["qa"] }), ShapeError);
  assert.throws(() => layer.forward(input, { adapter: { qa: Infinity } }), NumericError);
  assert.deepEqual([layer.merged, backend.bytes], [false, held]);
  assertSameBits(await backend.readWeight(layer.weight), w, "W");
});

forEachBackend("addAdapter() replaces one of that name, and removeAdapter() frees it", async (backend) => {
  const { layer, branches, x } = setUp(backend);
  const input = tensorOf(backend, x);
  const want = await backend.read(layer.forward(input, { adapter: "qa" }));
  layer.addAdapter("emotion", factorsOf(branches["qa"]!));
  assertSameBits(await backend.read(layer.forward(input, { adapter: "emotion" })), want, "the replaced adapter");
  const held = backend.bytes;
  layer.addAdapter("emotion", factorsOf(branches["qa"]!));
  assert.equal(backend.bytes, held);
  layer.addAdapter("other", factorsOf(branches["full"]!));
  assert.deepEqual([layer.removeAdapter("other"), layer.removeAdapter("other"), backend.bytes], [true, false, held]);
  assert.throws(() => layer.forward(input, { adapter: "other" }), MismatchError);
});

forEachBackend("addAdapter() refuses factors of another shape and keeps the adapter it had", async (backend) => {
  const { layer, branches, x } = setUp(backend);
  const { a, b } = branches["full"]!;
  const input = tensorOf(backend, x);
  const want = await backend.read(layer.forward(input, { adapter: "qa" }));
  const held = backend.bytes;
  const [narrow, wide] = [reference.matrix(IN, IN - 1, () => 1), reference.matrix(OUT, 8, () => 1)];
  assert.throws(() => layer.addAdapter("qa", factorsOf({ a: narrow, b, scaling: 1 })), ShapeError);
  assert.throws(() => layer.addAdapter("qa", factorsOf({ a, b: wide, scaling: 1 })), ShapeError);
  assert.throws(() => layer.addAdapter("qa", factorsOf({ a, b: reference.transpose(b), scaling: 1 })), ShapeError);
  assert.throws(() => layer.addAdapter("qa", factorsOf({ a, b, scaling: NaN })), NumericError);
  const torn = { ...storedF32(b), bytes: new Uint8Array(3) };
  assert.throws(() => layer.addAdapter("qa", { ...factorsOf({ a, b, scaling: 1 }), loraB: torn }), ShapeError);
  assert.equal(backend.bytes, held);
  assertSameBits(await backend.read(layer.forward(input, { adapter: "qa" })), want, "the adapter it had");
});

forEachBackend("backward() adds the gradients of the adapters of each row", async (backend) => {
  for (const [adapter, rows] of SELECTIONS) {
    const { layer, w, x, branches } = setUp(backend);
    const dy = randomMatrix(random(2), ROWS, OUT);
    const ranges = rangesOf(branches, rows);
    const want = reference.linearBackward(dy, x, w, ranges);
    const gradients = new Map(["emotion", "qa", "full"].map((name) => [name, layer.gradients(name)]));
    const dx = backend.tensor([ROWS, IN]);
    const options = { dx, gradients, ...(adapter !== undefined && { adapter }) };
    layer.backward(tensorOf(backend, dy), tensorOf(backend, x), options);
    const label = JSON.stringify(adapter) ?? "no selection";
    await assertNear(backend, dx, want.dx, `${label}: dx`);
    for (const [name, { da, db }] of gradients) {
      const { a, b } = branches[name]!;
      const sum = { da: reference.scaled(a, 0), db: reference.scaled(b, 0) };
      rows.forEach(([, , weights], range) => {
        const index = Object.keys(weights).indexOf(name);
        if (index < 0) return;
        sum.da = reference.add(sum.da, want.adapters[range]![index]!.da);
        sum.db = reference.add(sum.db, want.adapters[range]![index]!.db);
      });
      await assertNear(backend, da, sum.da, `${label}: da of ${name}`);
      await assertNear(backend, db, sum.db, `${label}: db of ${name}`);
    }
    layer.dispose();
  }
});

async function assertNear(backend: Backend, tensor: Parameters<Backend["read"]>[0], want: Matrix, label: string) {
  const scale = reference.matrix(...want.shape, () => 8);
  assertClose(await backend.read(tensor), want, { k: IN + OUT + ROWS, scale, label });
}

forEachBackend("merge() answers as the adapter does, and unmerge() restores every bit", async (backend) => {
  for (const dtype of ["f32", "bf16"] as const) {
    const { layer, w, x } = setUp(backend, dtype);
    const input = tensorOf(backend, x);
    for (const adapter of ["emotion", "full", { emotion: 0.7, qa: 0.3 }] as const) {
      const apart = await backend.read(layer.forward(input, { adapter }));
      await layer.merge(adapter);
      assert.equal(layer.merged, true);
      const together = await backend.read(layer.forward(input));
      const allowed = dtype === "f32" ? 1e-5 : 0.1;
      together.forEach((value, i) => assert.ok(Math.abs(value - apart[i]!) <= allowed, `${value}, ${apart[i]}`));
      assert.throws(() => layer.forward(input, { adapter }), { name: "RangeError", message: /merged/ });
      const dx = backend.tensor([ROWS, IN]);
      assert.throws(() => layer.backward(backend.tensor([ROWS, OUT]), input, { dx }), RangeError);
      await assert.rejects(async () => await layer.merge("qa"), /^RangeError: Cannot merge twice/);
      layer.unmerge();
      assert.throws(() => layer.unmerge(), RangeError);
      assert.equal(layer.merged, false);
      assertSameBits(await backend.readWeight(layer.weight), w, `${dtype} ${JSON.stringify(adapter)}`);
    }
  }
});

forEachBackend("forward() never answers for the base with a merged weight", async (backend) => {
  const { layer, x } = setUp(backend);
  const input = tensorOf(backend, x);
  await layer.merge("qa");
  for (const adapter of [null, { qa: 0 }, new Array(ROWS).fill(null)]) {
    assert.throws(() => layer.forward(input, { adapter }), { name: "RangeError", message: /unmerge them first/ });
  }
  layer.unmerge();
  for (const nothing of [null, { qa: 0 }, {}]) {
    await assert.rejects(layer.merge(nothing), { name: "RangeError", message: /^Cannot merge nothing/ });
  }
  assert.equal(layer.merged, false);
});

forEachBackend("dispose() frees the adapters and leaves weight and bias to the caller", async (backend) => {
  const { layer, w } = setUp(backend);
  layer.dispose();
  layer.dispose();
  assertSameBits(await backend.readWeight(layer.weight), w, "W");
  layer.weight.dispose();
  layer.bias!.dispose();
  assert.equal(backend.bytes, 0);
  assert.throws(() => layer.forward(backend.tensor([1, IN])), DisposedError);
});

forEachBackend("a second merge while the first is under way is refused, and leaves no copy", async (backend) => {
  const next = random(5);
  const weight = weightOf(backend, randomMatrix(next, OUT, OUT));
  const branch = randomBranch(next, { inFeatures: OUT, outFeatures: OUT, rank: 2, scaling: 1 });
  const adapters = { a: { loraA: storedF32(branch.a), loraB: storedF32(branch.b), scaling: 1 } };
  for (const Layer of [LoraLinear, LoraEmbedding]) {
    const layer = new Layer(backend, { weight, shared: true, adapters });
    const held = backend.bytes;
    const first = layer.merge("a");
    await assert.rejects(layer.merge("a"), /Cannot merge twice/);
    await first;
    layer.unmerge();
    assert.equal(backend.bytes, held);
    await layer.merge("a");
    layer.dispose();
  }
});
