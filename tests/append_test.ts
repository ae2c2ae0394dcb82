import assert from "node:assert/strict";
import { forEachBackend } from "./backends.ts";
import { assertSameBits } from "./compare.ts";
import * as reference from "./reference.ts";
import { random, randomMatrix, tensorOf } from "./values.ts";

/** [batch, capacity, dim, past, length]. */
const CASES = [
  [1, 1, 1, 0, 1],
  [1, 5, 3, 0, 0],
  [1, 5, 3, 5, 0],
  [1, 5, 3, 0, 5],
  [1, 5, 7, 4, 1],
  [2, 7, 8, 3, 1],
  [2, 7, 9, 2, 3],
  [3, 4, 5, 1, 3],
  [3, 25, 64, 0, 24],
  [0, 4, 5, 1, 0],
] as const;

forEachBackend("append() writes only the positions past … past + length of every sequence", async (backend) => {
  const next = random(1);
  for (const [batch, capacity, dim, past, length] of CASES) {
    const before = randomMatrix(next, batch * capacity, dim);
    const x = randomMatrix(next, batch * length, dim);
    const left = backend.tensor([8], new Float32Array(8).fill(NaN));
    const cache = tensorOf(backend, before, [batch, capacity, dim]);
    const right = backend.tensor([8], new Float32Array(8).fill(NaN));
    const input = tensorOf(backend, x);
    backend.append(cache, input, past);
    const label = `cache [${batch}, ${capacity}, ${dim}], ${length} after ${past}`;
    assertSameBits(await backend.read(cache), reference.append(before, x, batch, past), label);
    assertSameBits(await backend.read(input), x, `${label}: x`);
    for (const neighbour of [left, right]) {
      assert.ok((await backend.read(neighbour)).every(Number.isNaN), `${label}: wrote beside the cache`);
    }
  }
});
