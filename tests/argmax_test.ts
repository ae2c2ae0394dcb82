import assert from "node:assert/strict";
import { ShapeError } from "../src/errors.ts";
import { forEachBackend } from "./backends.ts";
import { runGuarded } from "./compare.ts";
import * as reference from "./reference.ts";
import { matrix } from "./reference.ts";
import { random, randomMatrix, tensorOf } from "./values.ts";

/** [rows, classes]. */
const SHAPES = [[0, 3], [1, 1], [1, 2], [3, 5], [5, 7], [2, 64], [4, 255], [3, 257], [2, 4099], [1, 49152]] as const;

forEachBackend("argmax() is the index of the greatest logit per row", async (backend) => {
  const next = random(1);
  for (const [rows, classes] of SHAPES) {
    // Rounded, so that there are equals; all negative in every second row, so that padding shows.
    const wide = randomMatrix(next, rows, classes, { scale: 20 });
    const logits = matrix(rows, classes, (i, j) => Math.round(reference.at(wide, i, j)) - (i % 2) * 1000);
    const input = tensorOf(backend, logits);
    const got = await runGuarded(backend, { shape: [rows], inputs: [input] }, () => backend.argmax(input));
    assert.deepEqual([...got], reference.argmax(logits), `[${rows}, ${classes}]`);
  }
});

/** Logits and the id wanted. */
const EDGES: readonly (readonly [readonly number[], number])[] = [
  [[-0, 0, -0], 0],
  [[-1, 0, -0, 0], 1],
  [[-0, -5], 0],
  [[-Infinity, -3.4e38, -Infinity], 1],
  [[1e-40, 2e-40, -1e-40], 1],
  [[3.4028234663852886e38, -1], 0],
  [[1, NaN, 2], -1],
  [[NaN, 1], -1],
  [[1, 2, 3, 4, NaN], -1],
  [[1, Infinity, 2], -1],
  [[-Infinity, -Infinity], -1],
];

forEachBackend("argmax() takes the first among equals, and is −1 for NaN and infinity", async (backend) => {
  for (const [logits, want] of EDGES) {
    // Far into a row too, where other lanes and invocations look.
    for (const before of [0, 300]) {
      const row = [...new Array<number>(before).fill(-Infinity), ...logits];
      const [got] = await backend.read(backend.argmax(backend.tensor([1, row.length], Float32Array.from(row))));
      assert.equal(got, want < 0 ? -1 : before + want, `[${logits}] after ${before}`);
    }
  }
});

forEachBackend("argmax() refuses what is no matrix, and rows of nothing", (backend) => {
  for (const shape of [[3], [1, 2, 3], [2, 0]]) {
    assert.throws(() => backend.argmax(backend.tensor(shape)), ShapeError, `[${shape}]`);
  }
});
