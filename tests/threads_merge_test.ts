import assert from "node:assert/strict";
import { test } from "node:test";
import { encodeBf16 } from "../src/formats/bfloat16.ts";
import { openBackend } from "../src/open.ts";
import { assertSameBits } from "./compare.ts";
import { openThreads } from "./threads_support.ts";
import { branchOf, random, randomBranch, randomMatrix, storedF32, weightOf } from "./values.ts";

test("merge() into quantized weights and mergeRows() of 3 threads have the bits of one, and as exact a loss", async () => {
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
    for (const dtype of ["f32", "bf16"] as const) {
      const { shape, bytes } = storedF32(matrix);
      const stored = {
        shape,
        dtype,
        bytes: dtype === "f32" ? bytes : encodeBf16(new Float32Array(bytes.slice().buffer)),
      };
      for (const to of ["f32", "bf16"] as const) {
        const bytes = await backend.mergeRows!(stored, branches, { dtype: to });
        values.push(Float32Array.from(bytes));
      }
      stored.bytes.fill(255, stored.bytes.length - 4); // NaN, in the last part
      await assert.rejects(backend.mergeRows!(stored, branches, { dtype: "bf16" }), { name: "NumericError" });
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
