import { forEachBackend } from "./backends.ts";
import { assertSameBits, runGuarded } from "./compare.ts";
import * as reference from "./reference.ts";
import { random, randomMatrix, weightOf } from "./values.ts";

/** [vocabulary, dim]. */
const TABLES = [[1, 1], [2, 3], [7, 8], [8, 5], [9, 4], [17, 64], [259, 13], [3, 1025]] as const;

for (const dtype of ["f32", "bf16"] as const) {
  forEachBackend(`embedding() copies the rows of a table in ${dtype}`, async (backend) => {
    const next = random(1);
    for (const [vocabulary, dim] of TABLES) {
      const values = randomMatrix(next, vocabulary, dim, { dtype });
      const table = weightOf(backend, values, dtype);
      const last = vocabulary - 1;
      for (
        const ids of [
          [],
          [0],
          [last],
          [last, 0, last, last >> 1, 0],
          Array.from({ length: 25 }, (_, i) => i % vocabulary),
        ]
      ) {
        const chosen = Uint32Array.from(ids);
        const got = await runGuarded(
          backend,
          { shape: [ids.length, dim], inputs: [] },
          () => backend.embedding(chosen, table),
        );
        assertSameBits(got, reference.embedding(chosen, values), `table [${vocabulary}, ${dim}], ids [${ids}]`);
      }
    }
  });
}
