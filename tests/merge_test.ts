import assert from "node:assert/strict";
import type { Backend, Weight, WeightDtype } from "../src/backend.ts";
import { NumericError } from "../src/errors.ts";
import { forEachBackend } from "./backends.ts";
import { absoluteBranch, assertClose, assertSameBits } from "./compare.ts";
import * as reference from "./reference.ts";
import { absolute, type Branch, type Matrix } from "./reference.ts";
import { branchOf, random, randomBranch, randomMatrix, roundToBf16, tensorOf, weightOf } from "./values.ts";

const DTYPES: readonly WeightDtype[] = ["f32", "bf16"];

/** [out, in, ranks of the branches]. */
const SIZES: readonly (readonly [number, number, readonly number[]])[] = [
  [1, 1, [1]],
  [7, 5, [1]],
  [8, 6, [8]],
  [9, 7, [9]],
  [17, 13, [13]],
  [16, 8, []],
  [4, 9, [3]],
  [12, 10, [2, 1]],
  [5, 24, [2, 16, 5]],
  [3, 259, [4]],
  [258, 5, [1, 1]],
  [10, 1025, [17]],
];

interface Case {
  readonly w: Matrix;
  readonly dtype: WeightDtype;
  readonly branches: readonly Branch[];
  readonly label: string;
}

function randomCases(): Case[] {
  const next = random(1);
  return DTYPES.flatMap((dtype) =>
    SIZES.map(([outFeatures, inFeatures, ranks]) => ({
      w: randomMatrix(next, outFeatures, inFeatures, { scale: 1 / Math.sqrt(inFeatures), dtype }),
      dtype,
      branches: ranks.map((rank, i) =>
        randomBranch(next, { inFeatures, outFeatures, rank, scaling: [2, -0.5, 0.75][i]! })
      ),
      label: `W [${outFeatures}, ${inFeatures}] ${dtype}, ranks [${ranks}]`,
    }))
  );
}

async function merged(backend: Backend, { w, dtype, branches }: Case): Promise<Weight> {
  const weight = weightOf(backend, w, dtype);
  await backend.merge(weight, branches.map((branch) => branchOf(backend, branch)));
  assert.equal(weight.merged, true);
  return weight;
}

/** The place of a bf16 value among all of them, in order. */
function bf16Ordinal(value: number): number {
  const bits = new Uint32Array(Float32Array.of(value).buffer)[0]! >>> 16;
  return bits & 0x8000 ? -(bits & 0x7fff) : bits;
}

function assertOneUlp(got: Float32Array, want: Matrix, label: string): void {
  want.values.forEach((value, i) => {
    const distance = Math.abs(bf16Ordinal(got[i]!) - bf16Ordinal(roundToBf16(value)));
    assert.ok(distance <= 1, `${label}: got ${got[i]}, ${distance} bf16 ulp from ${value} at ${i}`);
    assert.equal(got[i], roundToBf16(got[i]!), `${label}: no bf16 value at ${i}`);
  });
}

forEachBackend("merge() makes W + Σ s B A, rounded once", async (backend) => {
  for (const c of randomCases()) {
    const got = await backend.readWeight(await merged(backend, c));
    const want = reference.merge(c.w, c.branches);
    if (c.dtype === "bf16") assertOneUlp(got, want, c.label);
    else {
      const k = c.branches.reduce((sum, { a }) => sum + a.shape[0], 1);
      assertClose(got, want, {
        k,
        scale: reference.merge(absolute(c.w), c.branches.map(absoluteBranch)),
        label: c.label,
      });
    }
  }
});

forEachBackend("unmerge() puts back every bit and every byte", async (backend) => {
  for (const c of randomCases()) {
    const weight = weightOf(backend, c.w, c.dtype);
    const branches = c.branches.map((branch) => branchOf(backend, branch));
    const [held, size] = [backend.bytes, weight.bytes];
    for (let round = 0; round < 2; round++) {
      await backend.merge(weight, branches);
      assert.equal(weight.bytes, 2 * size, `${c.label}: bytes of the merged weight`);
      assert.ok(backend.bytes - held >= size, `${c.label}: bytes of the backend`);
      backend.unmerge(weight);
      assertSameBits(await backend.readWeight(weight), c.w, c.label);
      assert.deepEqual([weight.merged, weight.bytes, backend.bytes], [false, size, held], c.label);
    }
  }
});

forEachBackend("linear() with a merged weight equals linear() with its branches", async (backend) => {
  const next = random(2);
  for (const { w, branches, dtype, label } of randomCases()) {
    const x = randomMatrix(next, 7, w.shape[1]);
    const weight = weightOf(backend, w, dtype);
    const uploaded = branches.map((branch) => branchOf(backend, branch));
    const input = tensorOf(backend, x);
    const adapters = [{ start: 0, end: 7, branches: uploaded }];
    const apart = await backend.read(backend.linear(input, weight, { adapters }));
    await backend.merge(weight, uploaded);
    const together = await backend.read(backend.linear(input, weight));
    const size = reference.linear(absolute(x), absolute(reference.merge(w, branches)));
    // Half an ulp of bf16 per merged element; f32 differs by its sums only.
    const relative = dtype === "bf16" ? 2 ** -8 : 1e-5;
    together.forEach((value, i) => {
      const allowed = relative * (size.values[i]! + 1);
      assert.ok(Math.abs(value - apart[i]!) <= allowed, `${label}: merged ${value}, unmerged ${apart[i]} at ${i}`);
    });
  }
});

/** Spoiled branches whose products are not finite, or are not in f32. */
function badBranches(good: Branch): (readonly [string, Branch])[] {
  const { a, b } = good;
  const eachRowOfB = Array.from({ length: b.shape[0] }, (_, row) => {
    return [`NaN in row ${row} of B`, { ...good, b: withElement(b, row * b.shape[1], NaN) }] as const;
  });
  return [
    ...eachRowOfB,
    ["NaN in the first element of A", { ...good, a: withElement(a, 0, NaN) }],
    ["NaN in the last element of A", { ...good, a: withElement(a, a.values.length - 1, NaN) }],
    ["infinity in A", { ...good, a: withElement(a, 3, Infinity) }],
    ["minus infinity in B", { ...good, b: withElement(b, 3, -Infinity) }],
    ["an overflowing product", { ...good, a: withElement(a, 3, 3e38), scaling: 1e6 }],
    ["an infinite scaling", { ...good, scaling: Infinity }],
    ["a NaN scaling", { ...good, scaling: NaN }],
  ];
}

function withElement(m: Matrix, index: number, value: number): Matrix {
  const values = m.values.slice();
  values[index] = value;
  return { ...m, values };
}

forEachBackend("merge() refuses a result that is not finite and leaves the weight as it was", async (backend) => {
  const next = random(3);
  const sizes = { inFeatures: 11, outFeatures: 19, rank: 5 };
  const good = randomBranch(next, sizes);
  const bad = badBranches(randomBranch(next, sizes));
  for (const dtype of DTYPES) {
    const w = randomMatrix(next, 19, 11, { dtype });
    const weight = weightOf(backend, w, dtype);
    for (const [label, branch] of bad) {
      const branches = [good, branch].map((each) => branchOf(backend, each));
      const held = backend.bytes;
      await assert.rejects(async () => await backend.merge(weight, branches), NumericError, label);
      assert.deepEqual([weight.merged, backend.bytes], [false, held], label);
      assertSameBits(await backend.readWeight(weight), w, `${dtype}, ${label}`);
    }
  }
});

forEachBackend("merge() of a sum that rounds to infinity in bf16 is refused", async (backend) => {
  const largest = 2 ** 127 * (2 - 2 ** -7);
  const w = reference.matrix(3, 3, () => largest);
  const weight = weightOf(backend, w, "bf16");
  const one = reference.matrix(3, 1, () => 1);
  const branch = { a: reference.transpose(one), b: one, scaling: 2 ** 119 };
  await assert.rejects(async () => await backend.merge(weight, [branchOf(backend, branch)]), NumericError);
  assertSameBits(await backend.readWeight(weight), w, "W");
});

forEachBackend("merge() and unmerge() refuse to run twice, and linearBackward() a merged weight", async (backend) => {
  const next = random(4);
  const w = randomMatrix(next, 9, 7);
  const weight = weightOf(backend, w);
  const branches = [branchOf(backend, randomBranch(next, { inFeatures: 7, outFeatures: 9, rank: 2 }))];
  assert.throws(() => backend.unmerge(weight), { name: "RangeError", message: /^Cannot unmerge/ });
  await backend.merge(weight, branches);
  const once = await backend.readWeight(weight);
  const again = async () => await backend.merge(weight, branches);
  await assert.rejects(again, { name: "RangeError", message: /^Cannot merge twice: / });
  assertSameBits(await backend.readWeight(weight), once, "the merged weight");
  const [x, dy, dx] = [backend.tensor([2, 7]), backend.tensor([2, 9]), backend.tensor([2, 7])];
  const backward = () => backend.linearBackward(dy, x, weight, { dx });
  assert.throws(backward, { name: "RangeError", message: /^Cannot run linearBackward .*merged/ });
  backend.unmerge(weight);
  assert.throws(() => backend.unmerge(weight), { name: "RangeError", message: /^Cannot unmerge/ });
  assertSameBits(await backend.readWeight(weight), w, "the unmerged weight");
});

forEachBackend("dispose() of a merged weight frees what merge kept", async (backend) => {
  const next = random(5);
  const branch = branchOf(backend, randomBranch(next, { inFeatures: 7, outFeatures: 9, rank: 2 }));
  const held = backend.bytes;
  const weight = weightOf(backend, randomMatrix(next, 9, 7));
  await backend.merge(weight, [branch]);
  weight.dispose();
  weight.dispose();
  assert.equal(backend.bytes, held);
});
