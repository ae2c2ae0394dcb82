import assert from "node:assert/strict";
import type { Backend, SampleOptions } from "../src/backend.ts";
import { ShapeError } from "../src/errors.ts";
import { forEachBackend } from "./backends.ts";
import { runGuarded } from "./compare.ts";
import * as reference from "./reference.ts";
import { matrix } from "./reference.ts";
import { random, randomMatrix, tensorOf } from "./values.ts";

type Filters = Omit<SampleOptions, "random">;

const SHAPES = [[1, 1], [3, 2], [5, 257], [3, 1031]] as const;
const FILTERS: readonly Filters[] = [
  { temperature: 1 },
  { temperature: 0.3 },
  { temperature: 50 },
  { temperature: 1, topK: 1 },
  { temperature: 2, topK: 5 },
  { temperature: 1, topP: 0.001 },
  { temperature: 1, topP: 0.6 },
  { temperature: 3, topP: 0.99 },
  { temperature: 1, minP: 0.2 },
  { temperature: 2, topK: 40, topP: 0.9, minP: 0.05 },
];
/** How far rounding may move the borders between ids, and the edge of the nucleus. */
const SLACK = 1e-5;

/** The ids that rounding allows. */
function allowed(logits: reference.Matrix, filters: Filters, uniform: readonly number[]): number[][] {
  const variants = [-SLACK, 0, SLACK].flatMap((du) =>
    (filters.topP === undefined ? [0] : [-SLACK, 0, SLACK]).map((dp) =>
      reference.sample(logits, {
        ...filters,
        ...(filters.topP !== undefined && { topP: filters.topP + dp }),
        uniform: uniform.map((u) => Math.min(Math.max(u + du, 0), 1)),
      })
    )
  );
  return uniform.map((_, row) => variants.map((ids) => ids[row]!));
}

const wordsOf = (uniform: readonly number[]) => Uint32Array.from(uniform, (u) => Math.floor(u * 2 ** 32));

forEachBackend("sample() draws what a sort and a running sum draw", async (backend) => {
  const next = random(1);
  for (const [rows, classes] of SHAPES) {
    for (const filters of FILTERS) {
      const wide = randomMatrix(next, rows, classes, { scale: 6 });
      // Rounded in some rows, so that there are equals.
      const logits = matrix(rows, classes, (i, j) => {
        const logit = reference.at(wide, i, j);
        return i % 2 === 0 ? logit : Math.round(logit);
      });
      const uniform = Array.from({ length: rows }, () => (next() + 1) / 2);
      const input = tensorOf(backend, logits);
      const operation = () => backend.sample(input, { ...filters, random: wordsOf(uniform) });
      const got = await runGuarded(backend, { shape: [rows], inputs: [input] }, operation);
      for (const [row, ids] of allowed(logits, filters, uniform).entries()) {
        const label = `[${rows}, ${classes}], ${JSON.stringify(filters)}, row ${row}`;
        assert.ok(ids.includes(got[row]!), `${label}: ${got[row]}, not ${ids[ids.length >> 1]}`);
      }
    }
  }
});

async function draw(backend: Backend, logits: readonly number[], options: Filters, words: number[]): Promise<number[]> {
  const rows = words.flatMap(() => logits);
  const input = backend.tensor([words.length, logits.length], Float32Array.from(rows));
  return [...await backend.read(backend.sample(input, { ...options, random: Uint32Array.from(words) }))];
}

const LAST = 2 ** 32 - 1;

forEachBackend(
  "sample() keeps the first among equal candidates, and draws in the order of the indices",
  async (backend) => {
    const level = [5, 7, 7, 7, 7, 1];
    const words = [0, LAST, LAST / 2, 2 ** 31];
    assert.deepEqual(await draw(backend, level, { temperature: 1, topK: 2 }, words), [1, 2, 1, 2]);
    assert.deepEqual(await draw(backend, level, { temperature: 1, topP: 0.6 }, [0, LAST, 2 ** 31]), [1, 3, 2]);
    assert.deepEqual(await draw(backend, level, { temperature: 1, minP: 1 }, [0, LAST]), [1, 4]);
    const both = { temperature: 1, topK: 3, topP: 0.5 };
    assert.deepEqual(await draw(backend, [0, 0, 0, 0, 0], both, [0, LAST]), [0, 1]);
  },
);

forEachBackend(
  "sample() at its limits: tiny and huge temperatures, masked logits, words of all ones",
  async (backend) => {
    const masked = [-Infinity, 2, -Infinity, 2, -Infinity];
    for (const temperature of [1e-300, 1, 1e300]) {
      assert.deepEqual(await draw(backend, masked, { temperature }, [0, LAST]), [1, 3], `temperature ${temperature}`);
    }
    assert.deepEqual(await draw(backend, [3, 3.5, -3], { temperature: 1e-300 }, [0, LAST]), [1, 1]);
    assert.deepEqual(await draw(backend, [-3.4e38, 3.4e38], { temperature: 1 }, [0, LAST]), [1, 1]);
    assert.deepEqual(await draw(backend, [0, -0, 0], { temperature: 1, topK: 2 }, [0, LAST]), [0, 1]);
  },
);

forEachBackend("sample() is −1 in rows with NaN or with infinity above all, and in no other", async (backend) => {
  const rows = [[1, NaN, 2], [1, 2, Infinity], [-Infinity, -Infinity, -Infinity], [9, -Infinity, -Infinity]];
  const input = backend.tensor([4, 3], Float32Array.from(rows.flat()));
  for (const filters of [{ temperature: 1 }, { temperature: 1, topK: 2, topP: 0.5, minP: 0.1 }]) {
    const ids = await backend.read(backend.sample(input, { ...filters, random: new Uint32Array(4) }));
    assert.deepEqual([...ids], [-1, -1, -1, 0]);
  }
});

forEachBackend("sample() draws as often as softmax says, in a vocabulary of 49,152", async (backend) => {
  const likely = [7, 20_000, 49_151];
  const logits = Array.from({ length: 49_152 }, (_, id) => likely.includes(id) ? 10 - likely.indexOf(id) : -30);
  const words = Array.from({ length: 16 }, (_, i) => Math.floor((i + 0.5) / 16 * 2 ** 32));
  const ids = await draw(backend, logits, { temperature: 2, topP: 0.999 }, words);
  const weights = likely.map((_, i) => Math.exp(-i / 2));
  const total = weights.reduce((a, b) => a + b);
  likely.forEach((id, i) => {
    const got = ids.filter((each) => each === id).length;
    assert.ok(Math.abs(got - 16 * weights[i]! / total) <= 1, `${id} came ${got} times`);
  });
});

forEachBackend("sample() refuses filters out of range by name, and other than one word per row", (backend) => {
  const logits = backend.tensor([2, 3]);
  const good = { temperature: 1, random: new Uint32Array(2) };
  const bad: [Partial<SampleOptions>, RegExp][] = [
    [{ temperature: 0 }, /temperature 0/],
    [{ temperature: Infinity }, /temperature Infinity/],
    [{ topK: 0 }, /topK 0/],
    [{ topK: 1.5 }, /topK 1.5/],
    [{ topP: 0 }, /topP 0/],
    [{ topP: 1.5 }, /topP 1.5/],
    [{ minP: -0.1 }, /minP -0.1/],
    [{ minP: NaN }, /minP NaN/],
    [{ random: new Uint32Array(3) }, /random 3/],
  ];
  const empty = backend.tensor([2, 0]);
  const bytes = backend.bytes;
  for (const [options, message] of bad) {
    const name = "ShapeError";
    assert.throws(() => backend.sample(logits, { ...good, ...options }), { name, message }, String(message));
  }
  assert.throws(() => backend.sample(empty, good), ShapeError);
  assert.throws(() => backend.sample(logits, { ...good, random: [1, 2] as never }), TypeError);
  assert.equal(backend.bytes, bytes);
});
