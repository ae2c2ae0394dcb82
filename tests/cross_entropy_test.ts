import assert from "node:assert/strict";
import { forEachBackend } from "./backends.ts";
import { assertClose, runGuarded } from "./compare.ts";
import * as reference from "./reference.ts";
import { matrix } from "./reference.ts";
import { random, randomMatrix, tensorOf } from "./values.ts";

/** [rows, classes, magnitude of the logits, offset of all logits]. */
const CASES = [
  [0, 5, 1],
  [1, 1, 10],
  [2, 2, 10],
  [3, 3, 0],
  [5, 7, 10],
  [6, 8, 10],
  [7, 9, 20],
  [3, 17, 100],
  [13, 64, 10],
  [4, 31, 30000],
  [2, 259, 1e30],
  [2, 4099, 15],
  // The padding of a vector must not pass for the largest logit.
  [3, 5, 10, -1e4],
  [3, 6, 10, -1e4],
  [3, 7, 10, 1e4],
] as const;

forEachBackend("crossEntropy() is log Σ e^logits − logits[target] per row", async (backend) => {
  const next = random(1);
  for (const [rows, classes, magnitude, offset = 0] of CASES) {
    const centred = randomMatrix(next, rows, classes, { scale: magnitude });
    const logits = matrix(rows, classes, (i, j) => Math.fround(reference.at(centred, i, j) + offset));
    const targets = Uint32Array.from({ length: rows }, (_, i) => [0, classes - 1, classes >> 1][i % 3]!);
    const input = tensorOf(backend, logits);
    const operation = () => backend.crossEntropy(input, targets);
    const got = await runGuarded(backend, { shape: [rows], inputs: [input] }, operation);
    const want = reference.crossEntropy(logits, targets);
    const scale = matrix(1, rows, () => 1 + 2 * (magnitude + Math.abs(offset)));
    assertClose(got, want, { k: classes, scale, label: `logits [${rows}, ${classes}] of size ${magnitude}` });
  }
});

forEachBackend("crossEntropy() of a row with NaN in it is not finite, wherever it stands", async (backend) => {
  for (const classes of [1, 2, 5, 8, 31]) {
    for (let at = 0; at < classes; at++) {
      const logits = Float32Array.from({ length: 2 * classes }, (_, i) => i === at ? NaN : Math.sin(i));
      const loss = await backend.read(backend.crossEntropy(backend.tensor([2, classes], logits), Uint32Array.of(0, 0)));
      assert.deepEqual([...loss].map(Number.isFinite), [false, true], `NaN at ${at} of ${classes}`);
    }
  }
});
