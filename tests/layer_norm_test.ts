import assert from "node:assert/strict";
import { ShapeError } from "../src/errors.ts";
import { forEachBackend } from "./backends.ts";
import { assertClose, runGuarded } from "./compare.ts";
import { matrix } from "./reference.ts";
import { layerNorm } from "./reference_rows.ts";
import { random, randomMatrix, tensorOf, vectorOf } from "./values.ts";

/** [rows, columns, eps, magnitude of x, its mean]. */
const CASES = [
  [0, 5, 1e-5, 1, 0],
  [1, 1, 1e-5, 1, 0],
  [3, 2, 1e-12, 1, 0],
  [2, 3, 1e-6, 1, 0],
  [2, 4, 1e-5, 1, 0],
  [5, 7, 1e-5, 1, 2],
  [7, 9, 1e-12, 1e-3, 0],
  [3, 36, 1e-12, 1e4, 0],
  [2, 65, 1e-5, 3, 0],
  [2, 768, 1e-5, 1, -1],
] as const;

forEachBackend("layerNorm() is (x − mean) / sqrt(variance + eps) ∘ gain + bias", async (backend) => {
  const next = random(1);
  for (const [rows, dim, eps, scale, mean] of CASES) {
    const x = randomMatrix(next, rows, dim, { scale });
    x.values.forEach((value, i) => x.values[i] = Math.fround(value + mean));
    const [gain, bias] = [randomMatrix(next, 1, dim, { scale: 2 }), randomMatrix(next, 1, dim)];
    const inputs = [tensorOf(backend, x), vectorOf(backend, gain), vectorOf(backend, bias)] as const;
    const got = await runGuarded(backend, { shape: [rows, dim], inputs }, () => backend.layerNorm(...inputs, eps));
    // |x − mean| / deviation is at most the root of dim, and |mean| / deviation some units here.
    const size = matrix(rows, dim, () => 2 * Math.sqrt(dim) * (1 + 4 * Math.abs(mean / scale)));
    assertClose(got, layerNorm(x, gain, bias, eps), { k: dim, scale: size, label: `x [${rows}, ${dim}]` });
  }
});

forEachBackend("layerNorm() refuses shapes that do not match", (backend) => {
  const [x, four, five] = [backend.tensor([3, 4]), backend.tensor([4]), backend.tensor([5])];
  assert.throws(() => backend.layerNorm(x, five, five, 1e-5), ShapeError);
  assert.throws(() => backend.layerNorm(x, four, five, 1e-5), ShapeError);
  assert.throws(() => backend.layerNorm(x, four, four, -1), ShapeError);
});
