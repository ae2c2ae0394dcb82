/** Batches of sequences of several lengths: each gives what it gives alone. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { FormatError, LimitError, ShapeError } from "../src/errors.ts";
import { type Encoder, loadEncoder } from "../src/models/mod.ts";
import { forEachBackend } from "./backends.ts";
import { assertNear, fixture } from "./models_support.ts";

const ROWS = [[5, 17, 99, 4, 42, 7, 8], [11, 3], [88], [9, 10, 11, 12, 13, 14, 15], [71, 3, 5]];
const ADAPTERS = ["a", null, "b", "b", { a: 0.5, b: 1 }];
const WIDTH = Math.max(...ROWS.map((row) => row.length));
/** Another number of rows is another order of sums in float32. */
const TOLERANCE = 5e-6;

async function openEncoder(backend: Parameters<typeof loadEncoder>[1]): Promise<Encoder> {
  const model = await loadEncoder(fixture("base/bert"), { dtype: "f32", ...backend });
  await model.loadAdapter("a", fixture("bert-plain/adapter"));
  await model.loadAdapter("b", fixture("bert-bias-lora-only/adapter"));
  return model;
}

forEachBackend(
  "rows of several lengths, padded or not, give what they give alone, each by its adapter",
  async (backend) => {
    const model = await openEncoder({ backend });
    const { hiddenSize } = model.config;
    const ragged = await model.forward(ROWS, { adapter: ADAPTERS });
    assert.deepEqual(ragged.shape, [ROWS.length, WIDTH, hiddenSize]);
    // What stands in the padding has no effect.
    const padded = ROWS.map((row, i) => [...row, ...Array(WIDTH - row.length).fill(i)]);
    const attentionMask = ROWS.map((row) => Array.from({ length: WIDTH }, (_, i) => i < row.length ? 1 : 0));
    const masked = await model.forward(padded, { adapter: ADAPTERS, attentionMask });
    assert.deepEqual(masked, ragged);
    const vectors = await model.embed(padded, { adapter: ADAPTERS, attentionMask });
    for (const [row, ids] of ROWS.entries()) {
      const alone = await model.forward([ids], { adapter: ADAPTERS[row]! });
      const own = ragged.values.subarray(row * WIDTH * hiddenSize, (row + 1) * WIDTH * hiddenSize);
      assertNear(own.subarray(0, ids.length * hiddenSize), alone.values, TOLERANCE, `row ${row}`);
      assert.ok(own.subarray(ids.length * hiddenSize).every((value) => value === 0), `padding of row ${row}`);
      const mean = new Float64Array(hiddenSize);
      alone.values.forEach((value, i) => mean[i % hiddenSize]! += value / ids.length);
      const vector = vectors.values.subarray(row * hiddenSize, (row + 1) * hiddenSize);
      assertNear(vector, mean, TOLERANCE, `mean of row ${row}`);
    }
    model.dispose();
  },
);

test("a classifier says of each row what it says of it alone, in the order of the batch", async () => {
  const model = await loadEncoder(fixture("base/bertcls"), { dtype: "f32" });
  await model.loadAdapter("a", fixture("bertcls-plain/adapter"));
  const adapter = ["a", null, "a", "a", null];
  const all = await model.forward(ROWS, { adapter });
  assert.deepEqual(all.shape, [ROWS.length, 5]);
  for (const [row, ids] of ROWS.entries()) {
    const { values } = await model.forward([ids], { adapter: adapter[row]! });
    assertNear(all.values.subarray(row * 5, (row + 1) * 5), values, TOLERANCE, `row ${row}`);
  }
  assert.deepEqual((await model.embed(ROWS)).shape, [ROWS.length, model.config.hiddenSize]);
  model.dispose();
});

test("embed() takes the mean or the first token, of length 1 where asked; padding on the left keeps positions", async () => {
  const model = await openEncoder({});
  const { hiddenSize } = model.config;
  const [first, alone] = [await model.embed([ROWS[0]!], { pooling: "first" }), await model.forward([ROWS[0]!])];
  assert.deepEqual(first.values, alone.values.slice(0, hiddenSize));
  const unit = await model.embed(ROWS, { normalize: true });
  const mean = await model.embed(ROWS);
  for (let row = 0; row < ROWS.length; row++) {
    const [u, m] = [unit, mean].map(({ values }) => values.subarray(row * hiddenSize, (row + 1) * hiddenSize));
    assert.ok(Math.abs(Math.hypot(...u!) - 1) < 1e-6);
    assertNear(u!.map((value) => value * Math.hypot(...m!)), m!, 1e-6, "direction");
  }
  // As in transformers a token's position is its place in the row, so what stands before it moves it.
  const left = await model.forward([[1, 1, 5, 17]], { attentionMask: [[0, 0, 1, 1]] });
  const right = await model.forward([[5, 17, 1, 1]], { attentionMask: [[1, 1, 0, 0]] });
  const [inLeft, inRight] = [left.values.slice(2 * hiddenSize), right.values.slice(0, 2 * hiddenSize)];
  assert.notDeepEqual(inLeft, inRight);
  const hidden = await model.forward([[1, 1, 5, 17]], { attentionMask: [[0, 0, 1, 1]] });
  assert.deepEqual(hidden, left);
  model.dispose();
});

test("a mask that does not fit its rows is refused", async () => {
  const model = await openEncoder({});
  const masks: [number[][], new (...args: never[]) => Error][] = [
    [[[1, 1]], ShapeError],
    [[[1, 1], [1]], ShapeError],
    [[[1, 1], [0, 0]], ShapeError],
    [[[1, 1], [1, 2]], FormatError],
    [[[1, 1], [1, NaN]], FormatError],
  ];
  for (const [attentionMask, kind] of masks) {
    await assert.rejects(model.forward([[5, 6], [7, 8]], { attentionMask }), (error: Error & { field?: string }) => {
      return error instanceof kind && error.field === "attentionMask";
    });
  }
  await assert.rejects(model.embed([[1], new Array(65).fill(1)]), LimitError);
  await assert.rejects(model.embed([[1]], { pooling: "max" as "mean" }), TypeError);
  model.dispose();
});

test("text in place of ids is refused by what makes them", async () => {
  const model = await openEncoder({});
  const refusal = { name: "TypeError", message: /text: expected its ids, as tokenizer\.encode\(\)/ };
  await assert.rejects(model.embed(["hello"] as never), refusal);
  model.dispose();
});
