/** Fused experts: A is expert-major, B rank-major, and rows are ordered by expert. */
import assert from "node:assert/strict";
import type { Backend } from "../src/backend.ts";
import { MismatchError, NumericError, ShapeError } from "../src/errors.ts";
import { LoraExperts } from "../src/lora/lora_experts.ts";
import { route } from "../src/models/mixture.ts";
import { test } from "node:test";
import { forEachBackend } from "./backends.ts";
import { assertSameBits } from "./compare.ts";
import { assertNear } from "./models_support.ts";
import { at, type Branch, linear, linearBackward, type Matrix, matrix, rowRange } from "./reference.ts";
import { random, randomMatrix, storedF32, tensorOf, weightOf } from "./values.ts";

const [EXPERTS, RANK, IN, OUT, SCALING] = [3, 2, 5, 4, 0.5];
const COUNTS = [2, 0, 3];

function setUp(backend: Backend) {
  const next = random(1);
  const weights = Array.from({ length: EXPERTS }, () => randomMatrix(next, OUT, IN));
  const [a, b] = [randomMatrix(next, RANK * EXPERTS, IN), randomMatrix(next, OUT, RANK * EXPERTS)];
  const adapters = { a: { loraA: storedF32(a), loraB: storedF32(b), scaling: SCALING } };
  const layer = new LoraExperts(backend, { weights: weights.map((w) => weightOf(backend, w)), adapters });
  const branch = (e: number): Branch => ({
    a: matrix(RANK, IN, (j, i) => at(a, e * RANK + j, i)),
    b: matrix(OUT, RANK, (o, j) => at(b, o, j * EXPERTS + e)),
    scaling: SCALING,
  });
  return { layer, weights, branch, x: randomMatrix(next, 5, IN), dy: randomMatrix(next, 5, OUT) };
}

/** Rows of each expert that has some: first, last, expert. */
const RANGES = [[0, 2, 0], [2, 5, 2]] as const;

forEachBackend(
  "forward() and merge() give the rows of each expert its weight and its part of the adapter",
  async (backend) => {
    const { layer, weights, branch, x } = setUp(backend);
    const input = tensorOf(backend, x);
    const answer = (adapted: (row: number) => boolean) =>
      RANGES.flatMap(([start, end, e]) =>
        Array.from({ length: end - start }, (_, i) => {
          const adapters = adapted(start + i) ? [{ start: 0, end: 1, branches: [branch(e)] }] : [];
          return [...linear(rowRange(x, start + i, start + i + 1), weights[e]!, { adapters }).values];
        }).flat()
      );
    const before = await backend.read(layer.forward(input, COUNTS));
    assertNear(before, answer(() => false), 1e-6, "base");
    const all = answer(() => true);
    assertNear(await backend.read(layer.forward(input, COUNTS, { adapter: "a" })), all, 1e-6, "adapter");
    const adapter = ["a", null, null, "a", "a"];
    const mixed = await backend.read(layer.forward(input, COUNTS, { adapter }));
    assertNear(mixed, answer((row) => adapter[row] === "a"), 1e-6, "per row");
    await layer.merge("a");
    assertNear(await backend.read(layer.forward(input, COUNTS)), all, 1e-6, "merged");
    assert.throws(() => layer.forward(input, COUNTS, { adapter: null }), RangeError);
    layer.unmerge();
    assertSameBits(await backend.read(layer.forward(input, COUNTS)), before, "unmerged");
    assert.deepEqual(layer.forward(backend.tensor([0, IN]), [0, 0, 0], { adapter: "a" }).shape, [0, OUT]);
  },
);

forEachBackend("backward() adds the gradients of each expert's part", async (backend) => {
  const { layer, weights, branch, x, dy } = setUp(backend);
  const dx = backend.tensor([5, IN]);
  const gradients = new Map([["a", layer.gradients("a")]]);
  layer.backward(tensorOf(backend, dy), tensorOf(backend, x), COUNTS, { adapter: "a", dx, gradients });
  const wantDx: number[] = [];
  for (const [start, end, e] of RANGES) {
    const ranges = [{ start: 0, end: end - start, branches: [branch(e)] }];
    const want = linearBackward(rowRange(dy, start, end), rowRange(x, start, end), weights[e]!, ranges);
    wantDx.push(...want.dx.values);
    const { da, db } = gradients.get("a")![e]!;
    assertNear(await backend.read(da), want.adapters[0]![0]!.da.values, 1e-6, `dA of ${e}`);
    assertNear(await backend.read(db), want.adapters[0]![0]!.db.values, 1e-6, `dB of ${e}`);
  }
  assertNear(await backend.read(dx), wantDx, 1e-6, "dx");
  assert.ok((await backend.read(gradients.get("a")![1]!.da)).every((value) => value === 0));
});

forEachBackend("LoraExperts refuses factors and counts that do not fit", (backend) => {
  const { layer, x } = setUp(backend);
  const held = backend.bytes;
  const factors = (a: Matrix, b: Matrix) => ({ loraA: storedF32(a), loraB: storedF32(b), scaling: 1 });
  const [a, b] = [matrix(6, IN, () => 1), matrix(OUT, 6, () => 1)];
  assert.throws(() => layer.addAdapter("b", factors(matrix(5, IN, () => 1), matrix(OUT, 5, () => 1))), ShapeError);
  assert.throws(() => layer.addAdapter("b", factors(b, a)), ShapeError);
  assert.equal(backend.bytes, held);
  const vector = { dtype: "F32" as const, shape: [OUT], bytes: new Uint8Array(4 * OUT) };
  for (const field of ["magnitude", "loraBias", "diagonal"]) {
    assert.throws(() => layer.addAdapter("b", { ...factors(a, b), [field]: vector }), MismatchError);
  }
  assert.throws(() => layer.addAdapter("a", { ...factors(a, b), scaling: Infinity }), NumericError);
  assert.equal(backend.bytes, held);
  assert.deepEqual(layer.adapters, ["a"], "a refused replacement keeps what it was to replace");
  layer.addAdapter("a", factors(a, b));
  assert.equal(backend.bytes, held);
  const input = tensorOf(backend, x);
  assert.throws(() => layer.forward(input, [5, 0]), ShapeError);
  assert.throws(() => layer.forward(input, [2, 2, 2]), ShapeError);
});

test("route() takes the largest logits, the first of equals, and weighs them by their softmax", () => {
  const logits = Float32Array.of(1, 3, 2, 0, 5, 5, 5, 5);
  const { rows, counts, places, weights } = route(logits, { count: 4, used: 2 });
  assert.deepEqual([...rows], [1, 0, 1, 0]);
  assert.deepEqual(counts, [1, 2, 1, 0]);
  assert.deepEqual([...places], [1, 3, 0, 2]);
  const first = 1 / (1 + Math.exp(-1));
  assertNear(weights, [first, 1 - first, 0.5, 0.5], 1e-6, "weights");
});
