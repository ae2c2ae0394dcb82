import { forEachBackend } from "./backends.ts";
import { assertClose, assertSameBits, runGuarded } from "./compare.ts";
import * as reference from "./reference.ts";
import { absolute, type Matrix, matrix } from "./reference.ts";
import { random, randomMatrix, tensorOf } from "./values.ts";

/** [rows, heads, half]. */
const CASES = [[0, 1, 2], [1, 1, 1], [1, 3, 2], [5, 1, 3], [2, 2, 4], [3, 9, 5], [7, 2, 7], [6, 3, 8], [25, 4, 9], [
  13,
  9,
  32,
]] as const;

function angles(rows: number, half: number): [cos: Matrix, sin: Matrix] {
  const angle = (t: number, i: number) => (t + 3) * 10000 ** (-i / half);
  return [
    matrix(rows, half, (t, i) => Math.fround(Math.cos(angle(t, i)))),
    matrix(rows, half, (t, i) => Math.fround(Math.sin(angle(t, i)))),
  ];
}

/** |u cos| + |v sin| for both halves. */
function scaleOf(x: Matrix, cos: Matrix, sin: Matrix): Matrix {
  const [c, s] = [absolute(cos), absolute(sin)];
  const half = cos.shape[1];
  const positive = absolute(x);
  return matrix(...x.shape, (i, j) => {
    const partner = j % (2 * half) < half ? j + half : j - half;
    return reference.at(positive, i, j) * reference.at(c, i, j % half) +
      reference.at(positive, i, partner) * reference.at(s, i, j % half);
  });
}

forEachBackend("rope() turns the halves of every head by its row's angles", async (backend) => {
  const next = random(1);
  for (const [rows, heads, half] of CASES) {
    const x = randomMatrix(next, rows, heads * 2 * half);
    const [cos, sin] = angles(rows, half);
    const inputs = [tensorOf(backend, x), tensorOf(backend, cos), tensorOf(backend, sin)] as const;
    const got = await runGuarded(backend, { shape: x.shape, inputs }, () => backend.rope(...inputs));
    const label = `${rows} rows, ${heads} heads of ${2 * half}`;
    assertClose(got, reference.rope(x, cos, sin), { k: 2, scale: scaleOf(x, cos, sin), label });
  }
});

forEachBackend("rope() by no angle copies, and by a right angle swaps the halves", async (backend) => {
  const next = random(2);
  const x = randomMatrix(next, 3, 20);
  const [zeros, ones] = [0, 1].map((value) => tensorOf(backend, matrix(3, 5, () => value)));
  const unturned = backend.rope(tensorOf(backend, x), ones!, zeros!);
  assertSameBits(await backend.read(unturned), x, "no angle");
  const turned = await backend.read(backend.rope(tensorOf(backend, x), zeros!, ones!));
  const swapped = matrix(3, 20, (i, j) => j % 10 < 5 ? -reference.at(x, i, j + 5) : reference.at(x, i, j - 5));
  assertSameBits(turned, swapped, "a right angle");
});
