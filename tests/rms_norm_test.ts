import { forEachBackend } from "./backends.ts";
import { assertClose, assertSameBits, runGuarded } from "./compare.ts";
import * as reference from "./reference.ts";
import { absolute } from "./reference.ts";
import { random, randomMatrix, tensorOf, vectorOf } from "./values.ts";

/** [rows, columns, dim of gain, eps, magnitude of x]. */
const CASES = [
  [0, 5, 5, 1e-5, 1],
  [1, 1, 1, 1e-5, 1],
  [1, 3, 3, 1e-6, 1],
  [2, 4, 4, 1e-5, 1],
  [5, 7, 7, 1e-5, 1],
  [6, 8, 8, 1e-6, 1],
  [7, 9, 9, 1e-5, 1],
  [3, 17, 17, 1e-5, 1e4],
  [3, 31, 31, 1e-5, 1e-4],
  [13, 64, 64, 1e-5, 1],
  [2, 576, 576, 1e-5, 3],
  [1, 1025, 1025, 1e-6, 1],
  // The heads of a query, each normalised by itself.
  [4, 12, 4, 1e-6, 1],
  [5, 27, 9, 1e-6, 1],
  [3, 6, 1, 1e-6, 1],
] as const;

forEachBackend("rmsNorm() is x / sqrt(mean(x²) + eps) ∘ gain", async (backend) => {
  const next = random(1);
  for (const [rows, columns, dim, eps, magnitude] of CASES) {
    const x = randomMatrix(next, rows, columns, { scale: magnitude });
    const gain = randomMatrix(next, 1, dim, { scale: 2 });
    const inputs = [tensorOf(backend, x), vectorOf(backend, gain)] as const;
    const got = await runGuarded(backend, { shape: [rows, columns], inputs }, () => backend.rmsNorm(...inputs, eps));
    const want = reference.rmsNorm(x, gain, eps);
    const label = `x [${rows}, ${columns}] of size ${magnitude}, gain [${dim}]`;
    assertClose(got, want, { k: dim, scale: absolute(want), label });
  }
});

forEachBackend("rmsNorm() keeps a shape of three dimensions, and makes zero of zero", async (backend) => {
  const next = random(2);
  const [x, gain] = [randomMatrix(next, 6, 5), randomMatrix(next, 1, 5)];
  const inputs = [tensorOf(backend, x, [2, 3, 5]), vectorOf(backend, gain)] as const;
  const got = await runGuarded(backend, { shape: [2, 3, 5], inputs }, () => backend.rmsNorm(...inputs, 1e-5));
  const want = reference.rmsNorm(x, gain, 1e-5);
  assertClose(got, want, { k: 5, scale: absolute(want), label: "x [2, 3, 5]" });
  const zero = backend.rmsNorm(backend.tensor([2, 5]), backend.tensor([5], new Float32Array(5).fill(1)), 1e-5);
  assertSameBits(await backend.read(zero), new Float32Array(10), "rows of zeros");
});
