import assert from "node:assert/strict";
import { test } from "node:test";
import { clampFactors } from "../src/adapter/clamp.ts";
import { combineAdapters } from "../src/adapter/combine.ts";
import { loadAdapter } from "../src/adapter/load.ts";
import { extractAdapter } from "../src/checkpoint/extract.ts";
import { mergeCheckpoint } from "../src/checkpoint/merge.ts";
import { toFloat32 } from "../src/formats/dtype.ts";
import { memoryFolder, memorySink } from "../src/formats/memory.ts";
import { fixtureFolder } from "./adapter_fixtures.ts";

const matrix = (...values: number[]) => ({ rows: 1, columns: values.length, values: Float64Array.from(values) });

test("clampFactors() clips at the quantile of the values and their negatives, by the line between two", () => {
  // Sorted with their negatives: −8 −4 −2 −1 1 2 4 8. numpy.quantile([…], 0.9) is 5.2.
  const { a, b } = clampFactors({ a: matrix(-8, 1), b: matrix(4, 2) }, 0.9);
  assert.ok(Math.abs(a.values[0]! + 5.2) < 1e-12, String(a.values[0]));
  assert.deepEqual([a.values[1], [...b.values]], [1, [4, 2]]);
  assert.deepEqual([...clampFactors({ a: matrix(-8, 1) }, 1).a.values], [-8, 1]);
  const least = clampFactors({ a: matrix(3, -3) }, 0.51).a.values;
  assert.ok(Math.abs(least[0]! - 0.18) < 1e-12 && least[1] === -least[0]!, String(least));
});

test("combineAdapters() and extractAdapter() clip where asked, and report what that costs", async () => {
  const adapter = await loadAdapter(fixtureFolder("llama-plain/adapter"));
  const largest = (one: typeof adapter) =>
    Math.max(
      ...[...one.modules.values()].flatMap(({ loraA, loraB }) => [loraA, loraB].flatMap((t) => [...toFloat32(t)])),
    );
  const combine = (svdClamp?: number) =>
    combineAdapters([{ adapter }], { method: "svd", ...(svdClamp !== undefined && { svdClamp }) });
  const [whole, clipped, same] = [await combine(), await combine(0.95), await combine(1)];
  assert.deepEqual(same.modules, whole.modules);
  assert.ok(largest(clipped) < largest(whole));
  const worst = (one: typeof adapter) => Math.max(...one.report.map(({ error = 0 }) => error));
  assert.ok(worst(whole) < 1e-6 && worst(clipped) > 0.01 && worst(clipped) < 0.9, String(worst(clipped)));
  const base = fixtureFolder("base/llama");
  const sink = memorySink();
  await mergeCheckpoint(base, [{ adapter }], sink);
  const extracted = await extractAdapter(base, memoryFolder(sink.files), { rank: 8, svdClamp: 0.95 });
  assert.ok(worst(extracted) > 0.01 && worst(extracted) < 0.9, String(worst(extracted)));
  for (const svdClamp of [0.5, 1.01, NaN]) {
    await assert.rejects(combine(svdClamp), RangeError);
    await assert.rejects(extractAdapter(base, base, { rank: 1, svdClamp }), RangeError);
  }
  await assert.rejects(combineAdapters([{ adapter }], { svdClamp: 0.9 }), RangeError);
});
