import { forEachBackend } from "./backends.ts";
import { assertSameBits, runGuarded } from "./compare.ts";
import * as reference from "./reference.ts";
import { random, randomMatrix, tensorOf } from "./values.ts";

/** [n, dim, rows]. */
const CASES: readonly (readonly [number, number, readonly number[]])[] = [
  [1, 1, [0]],
  [0, 3, []],
  [5, 3, []],
  [5, 0, [4, 0]],
  [5, 7, [4, 4, 0, 2]],
  [2, 8, [1]],
  [7, 9, [6, 5, 4, 3, 2, 1, 0, 6]],
  [3, 1025, [2, 0]],
];

forEachBackend("takeRows() copies the rows asked for, in their order", async (backend) => {
  const next = random(1);
  for (const [n, dim, rows] of CASES) {
    const values = randomMatrix(next, n, dim);
    const x = tensorOf(backend, values);
    const chosen = Uint32Array.from(rows);
    const got = await runGuarded(
      backend,
      { shape: [rows.length, dim], inputs: [x] },
      () => backend.takeRows(x, chosen),
    );
    assertSameBits(got, reference.takeRows(values, chosen), `x [${n}, ${dim}], rows [${rows}]`);
  }
});
