/** Choosing tokens. */
import { test } from "node:test";
import assert from "node:assert/strict";
import { NumericError } from "../src/errors.ts";
import { Sampler, type SamplingOptions } from "../src/models/sampler.ts";
import { openBackend } from "../src/open.ts";
import { random } from "./values.ts";

const LOGITS = Float32Array.of(1, 3, 2, -1, 3.5, 0);

async function draw(options: SamplingOptions, count: number, logits: Float32Array = LOGITS): Promise<number[]> {
  const backend = await openBackend({ prefer: "wasm" });
  const sampler = new Sampler(options);
  const row = backend.tensor([1, logits.length], logits);
  const ids: number[] = [];
  const { bytes } = backend;
  try {
    for (let i = 0; i < count; i++) ids.push(await sampler.next(backend, row));
    assert.equal(backend.bytes, bytes);
    return ids;
  } finally {
    backend.dispose();
  }
}

/** How often each id comes, of all draws. */
function shares(ids: readonly number[], count: number): number[] {
  return Array.from({ length: count }, (_, id) => ids.filter((each) => each === id).length / ids.length);
}

function softmax(logits: Float32Array, temperature: number, keep: (id: number) => boolean = () => true): number[] {
  const weights = Array.from(logits, (logit, id) => keep(id) ? Math.exp(logit / temperature) : 0);
  const total = weights.reduce((a, b) => a + b, 0);
  return weights.map((weight) => weight / total);
}

function assertShares(got: readonly number[], want: readonly number[]): void {
  got.forEach((share, id) => assert.ok(Math.abs(share - want[id]!) < 0.015, `id ${id}: ${share}, not ${want[id]}`));
  got.forEach((share, id) => assert.ok(want[id]! > 0 || share === 0, `id ${id} is no candidate`));
}

test("Sampler takes the greatest logit at temperature 0, the first among equals", async () => {
  assert.deepEqual(await draw({}, 1), [4]);
  assert.deepEqual(await draw({ topK: 2, topP: 0.1, seed: 5 }, 1, Float32Array.of(0, 7, 7)), [1]);
});

test("Sampler draws as often as softmax says", async () => {
  assertShares(shares(await draw({ temperature: 1.5, seed: 1 }, 20000), 6), softmax(LOGITS, 1.5));
});

test("Sampler with topK draws from the most likely tokens only", async () => {
  const wanted = softmax(LOGITS, 2, (id) => [4, 1, 2].includes(id));
  assertShares(shares(await draw({ temperature: 2, topK: 3, seed: 2 }, 20000), 6), wanted);
});

test("Sampler with topP draws from the fewest tokens that reach it", async () => {
  // softmax at 1: 0.538, 0.326, 0.120, …: two reach 0.8, three are needed for 0.9.
  for (const [topP, kept] of [[0.5, [4]], [0.8, [4, 1]], [0.9, [4, 1, 2]]] as const) {
    const wanted = softmax(LOGITS, 1, (id) => (kept as readonly number[]).includes(id));
    assertShares(shares(await draw({ temperature: 1, topP, seed: 3 }, 20000), 6), wanted);
  }
});

test("Sampler with topK and topP keeps what a full sort keeps", async () => {
  const next = random(7);
  for (let round = 0; round < 10; round++) {
    const logits = Float32Array.from({ length: 257 }, () => next() * 6);
    const order = [...logits.keys()].sort((a, b) => logits[b]! - logits[a]!);
    const topK = round === 9 ? logits.length : 1 + round * 28;
    const candidates = new Set(order.slice(0, topK));
    const probabilities = softmax(logits, 1, (id) => candidates.has(id));
    const kept = new Set<number>();
    for (let i = 0, mass = 0; i < topK && mass < 0.7; i++) {
      kept.add(order[i]!);
      mass += probabilities[order[i]!]!;
    }
    const drawn = new Set(await draw({ temperature: 1, topK, topP: 0.7, seed: round }, 1000, logits));
    for (const id of drawn) assert.ok(kept.has(id), `round ${round}: ${id} is no candidate`);
    assert.ok(drawn.size >= kept.size * 0.7, `round ${round}: ${drawn.size} of ${kept.size} candidates came`);
  }
});

test("Sampler keeps the first among equally likely tokens", async () => {
  const drawn = await draw({ temperature: 1, topK: 4, topP: 0.95, seed: 6 }, 500, Float32Array.of(1, 2, 2, 2, 5));
  assert.deepEqual([...new Set(drawn)].sort(), [1, 2, 4]);
});

test("Sampler repeats itself for the same seed only", async () => {
  const options = { temperature: 3, seed: 11 };
  assert.deepEqual(await draw(options, 50), await draw(options, 50));
  assert.notDeepEqual(await draw(options, 50), await draw({ ...options, seed: 12 }, 50));
});

test("Sampler refuses options out of range by name, and logits that are not finite", async () => {
  const cases: [SamplingOptions, RegExp][] = [
    [{ temperature: -1 }, /temperature -1/],
    [{ temperature: NaN }, /temperature NaN/],
    [{ topK: 0 }, /topK 0/],
    [{ topK: 1.5 }, /topK 1.5/],
    [{ topP: 0 }, /topP 0/],
    [{ topP: 1.1 }, /topP 1.1/],
    [{ minP: 2 }, /minP 2/],
    [{ seed: 0.5 }, /seed 0.5/],
  ];
  for (const [options, message] of cases) {
    assert.throws(() => new Sampler(options), { name: "RangeError", message });
  }
  for (const bad of [NaN, Infinity]) {
    for (const temperature of [0, 1]) {
      await assert.rejects(draw({ temperature }, 1, Float32Array.of(bad, 1)), NumericError);
    }
  }
  for (const temperature of [0, 1]) {
    await assert.rejects(draw({ temperature }, 1, Float32Array.of(1, NaN, 2)), NumericError);
  }
});
