import { forEachBackend } from "./backends.ts";
import { assertSameBits, runGuarded } from "./compare.ts";
import * as reference from "./reference.ts";
import { ELEMENTWISE_SHAPES, random, randomMatrix, tensorOf } from "./values.ts";

forEachBackend("add() is the correctly rounded sum of every element", async (backend) => {
  const next = random(1);
  for (const shape of ELEMENTWISE_SHAPES) {
    const [x, y] = [randomMatrix(next, ...shape, { scale: 5 }), randomMatrix(next, ...shape)];
    const inputs = [tensorOf(backend, x), tensorOf(backend, y)] as const;
    const got = await runGuarded(backend, { shape, inputs }, () => backend.add(...inputs));
    assertSameBits(got, reference.add(x, y), `shape [${shape}]`);
  }
});

forEachBackend("add() of a tensor to itself doubles it, in any shape", async (backend) => {
  const x = randomMatrix(random(2), 6, 5);
  const input = tensorOf(backend, x, [2, 3, 5]);
  const got = await runGuarded(backend, { shape: [2, 3, 5], inputs: [input] }, () => backend.add(input, input));
  assertSameBits(got, reference.scaled(x, 2), "x + x");
});
