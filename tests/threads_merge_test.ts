import assert from "node:assert/strict";
import { test } from "node:test";
import { encodeBf16 } from "../src/formats/bfloat16.ts";
import { openBackend } from "../src/open.ts";
import { assertSameBits } from "./compare.ts";
import { openThreads } from "./threads_support.ts";
import { branchOf, random, randomBranch, randomMatrix, storedF32, weightOf } from "./values.ts";

test("merge() into quantized weights of 3 threads has the bits of one, and as exact a loss", async () => {
  const [one, many] = [await openBackend({ prefer: "wasm" }), await openThreads({ threads: 3 })];
  const [inFeatures, outFeatures] = [96, 101];
  const results = await Promise.all([one, many].map(async (backend) => {
    const next = random(6);
    const [values, losses]: [Float32Array[], number[]] = [[], []];
    const branches = [3, 30].map((rank) => branchOf(backend, randomBranch(next, { inFeatures, outFeatures, rank })));
    const matrix = randomMatrix(next, outFeatures, inFeatures);
    for (const dtype of ["int8", "int4", "nf4", "f8", "f16"] as const) {
      const weight = weightOf(backend, matrix, dtype);
      losses.push((await backend.merge(weight, branches)).error);
      values.push(await backend.readWeight(weight));
    }
    return { values, losses };
  }));
  const [want, got] = [results[0]!, results[1]!];
  got.values.forEach((values, i) => assertSameBits(values, want.values[i]!, `result ${i}`));
  assert.ok(want.losses[0]! > 0 && want.losses[1]! > want.losses[0]!);
  got.losses.forEach((loss, i) => assert.ok(Math.abs(loss / want.losses[i]! - 1) < 1e-12, `${loss}`));
  one.dispose();
  many.dispose();
});

test("mergeRows() of 3 threads has the bits of one, also where parts end within a vector", async () => {
  const [one, many] = [await openBackend({ prefer: "wasm" }), await openThreads({ threads: 3 })];
  for (const [inFeatures, outFeatures] of [[96, 101], [27, 131], [3, 101]] as const) {
    const [want, got] = await Promise.all([one, many].map(async (backend) => {
      const next = random(7);
      const branches = [3, 30].map((rank) => branchOf(backend, randomBranch(next, { inFeatures, outFeatures, rank })));
      const { shape, bytes } = storedF32(randomMatrix(next, outFeatures, inFeatures));
      const halves = encodeBf16(new Float32Array(bytes.slice().buffer));
      const values: Uint8Array[] = [];
      for (const stored of [{ shape, dtype: "f32", bytes }, { shape, dtype: "bf16", bytes: halves }] as const) {
        for (const dtype of ["f32", "bf16", "f16"] as const) {
          values.push(await backend.mergeRows!(stored, branches, { dtype }));
        }
        const broken = stored.bytes.slice().fill(255, stored.bytes.length - 4); // NaN, in the last part
        await assert.rejects(backend.mergeRows!({ ...stored, bytes: broken }, branches, { dtype: "bf16" }), {
          name: "NumericError",
        });
      }
      return values;
    }));
    assert.deepEqual(got, want, `[${outFeatures}, ${inFeatures}]`);
  }
  one.dispose();
  many.dispose();
});
