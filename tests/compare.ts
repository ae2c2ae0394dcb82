/**
 * How results are judged.
 *
 * An f32 sum of k products differs from the exact one by at most about k · 2⁻²⁴ · Σ|terms| (Higham, Accuracy and
 * Stability of Numerical Algorithms, §3.1), whatever the order of the sum and with or without fused multiply-add. So
 *
 *     |got − want| <= 4 · (k + 8) · 2⁻²⁴ · scale
 *
 * where k is the length of the longest chain of sums, scale is Σ|terms| of that element, 8 stands for the few roundings
 * that are no sums (scaling, exp, sqrt) and 4 is the head room of RELIABILITY.md, R8. `scale` per operation:
 *
 *     linear, backward, deltaWeight, merge, add   the reference run on absolute values
 *     rmsNorm                                     |want|: its sum has only positive terms
 *     rope                                        |u cos| + |v sin|
 *     siluMul                                     |want| · (1 + |gate|): e⁻ˣ has the relative error |x| · 2⁻²⁴
 *     attention                                   Σ p|v| · (1 + 2 · bound of |scores|): the same for e^score
 *     crossEntropy                                1 + 2 · max |logits|: the loss is a difference of numbers of that size
 *
 * Copies (embedding, takeRows, append, reshape, read, unmerge) are judged by bits.
 *
 * @module
 */
import assert from "node:assert/strict";
import type { Backend, Tensor } from "../src/backend.ts";
import { absolute, type Branch, type Matrix, type RowBranches } from "./reference.ts";

/** Below this, a kernel may flush to zero. */
const SMALLEST_NORMAL = 2 ** -126;
/** RELIABILITY.md asks for 1e-5; sums in f32 are far below. */
const LARGEST_MEDIAN = 1e-6;

/** A branch as its scale needs it: all terms positive. */
export function absoluteBranch({ a, b, scaling }: Branch): Branch {
  return { a: absolute(a), b: absolute(b), scaling: Math.abs(scaling) };
}

/** Row ranges as their scale needs them. */
export function absoluteRows(ranges: readonly RowBranches[]): RowBranches[] {
  return ranges.map(({ start, end, branches }) => ({ start, end, branches: branches.map(absoluteBranch) }));
}

/** Fails unless every element of `got` is as near to `want` as k roundings of terms of size `scale` allow. */
export function assertClose(
  got: Float32Array,
  want: Matrix,
  { k, scale, label }: { k: number; scale: Matrix; label: string },
): void {
  assert.equal(got.length, want.values.length, `${label}: number of elements`);
  const errors = new Float64Array(got.length);
  want.values.forEach((value, i) => {
    const allowed = 4 * (k + 8) * 2 ** -24 * scale.values[i]! + SMALLEST_NORMAL;
    const error = Math.abs(got[i]! - value);
    // Written so that NaN fails.
    if (!(error <= allowed)) {
      const where = `row ${Math.floor(i / want.shape[1])}, column ${i % want.shape[1]}`;
      assert.fail(`${label}: got ${got[i]}, want ${value} ± ${allowed} at ${where}`);
    }
    errors[i] = error / (scale.values[i]! + SMALLEST_NORMAL);
  });
  const median = errors.sort()[errors.length >> 1] ?? 0;
  assert.ok(median <= LARGEST_MEDIAN, `${label}: the median relative error is ${median}`);
}

/** Fails unless both hold the same bits; -0 is not 0, and NaN is itself. */
export function assertSameBits(got: Float32Array, want: Float32Array | Matrix, label: string): void {
  const expected = want instanceof Float32Array ? want : Float32Array.from(want.values);
  assert.equal(got.length, expected.length, `${label}: number of elements`);
  const first = got.findIndex((value, i) => !Object.is(value, expected[i]));
  assert.equal(first, -1, `${label}: got ${got[first]}, want ${expected[first]} at ${first}`);
}

/**
 * Runs an operation in hostile surroundings: the freed memory that its output may get is NaN, and so are its neighbours.
 * Fails unless the neighbours and the inputs are what they were; the caller checks that no NaN came out.
 */
export async function runGuarded(
  backend: Backend,
  { shape, inputs }: { shape: readonly number[]; inputs: readonly Tensor[] },
  operation: () => Tensor,
): Promise<Float32Array> {
  const size = shape.reduce((product, length) => product * length, 1);
  const nan = () => backend.tensor([Math.max(1, size)], new Float32Array(Math.max(1, size)).fill(NaN));
  const before = inputs.map((input) => backend.read(input));
  const [left, hole, right] = [nan(), nan(), nan()];
  hole.dispose();
  const output = operation();
  assert.deepEqual([...output.shape], [...shape], "shape of the output");
  const after = [output, left, right, ...inputs].map((tensor) => backend.read(tensor));
  // All results in one wait: on a GPU each costs milliseconds.
  const [values, ...others] = await Promise.all(after);
  const inputsBefore = await Promise.all(before);
  for (const neighbour of others.slice(0, 2)) {
    assert.ok(neighbour.every(Number.isNaN), "an operation wrote beside its output");
  }
  for (const [i, input] of inputsBefore.entries()) assertSameBits(others[2 + i]!, input, `input ${i}`);
  for (const tensor of [output, left, right]) tensor.dispose();
  return values!;
}
