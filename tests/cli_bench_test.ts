import assert from "node:assert/strict";
import { test } from "node:test";
import { measureCases } from "../src/cli/bench.ts";
import { BENCH_CASES, linearCase, loraCase, mergeCase } from "../src/cli/bench_cases.ts";
import { openBackend } from "../src/open.ts";

const TIMES = { warmUp: 0, single: 0, compared: 0 };

test("measureCases() gives every case a rate and its part of the peak, and frees what it made", async () => {
  const backend = await openBackend({ prefer: "wasm" });
  const cases = [linearCase(5, 48), linearCase(1, 48, "bf16"), loraCase(3, 48), mergeCase(48)];
  const { peak, results } = await measureCases(backend, cases, TIMES, new AbortController().signal);
  assert.ok(peak.fmaGflops > 0 && peak.readGBs > 0);
  assert.deepEqual(results.map(({ name }) => name), [
    "GEMM f32",
    "GEMV bf16",
    "GEMM f32 + LoRA r=16",
    "merge r=16 f32",
  ]);
  assert.deepEqual(results.map(({ shape }) => shape), ["5 x 48 x 48", "1 x 48 x 48", "3 x 48 x 48", "48 x 48"]);
  for (const [index, { gflops, gbs, ofPeak, overBase }] of results.entries()) {
    const isFma = index === 0 || index === 2;
    assert.ok(Number.isFinite(isFma ? gflops : gbs));
    assert.equal(isFma ? gbs : gflops, undefined);
    assert.ok(ofPeak > 0);
    assert.equal(overBase === undefined, index !== 2);
  }
  assert.equal(backend.bytes, 0);
  backend.dispose();
});

test("measureCases() stops with the signal's reason", async () => {
  const backend = await openBackend({ prefer: "wasm" });
  const reason = new Error("enough");
  const measuring = measureCases(backend, [linearCase(1, 8)], TIMES, AbortSignal.abort(reason));
  await assert.rejects(measuring, (error) => error === reason);
  assert.equal(backend.bytes, 0);
  backend.dispose();
});

test("lora bench covers square products, batches, single rows, adapters and merging", () => {
  const shapes = BENCH_CASES.map(({ name, shape }) => `${name} ${shape}`);
  for (const size of [256, 512, 1024]) assert.ok(shapes.includes(`GEMM f32 ${size} x ${size} x ${size}`));
  for (const dtype of ["f32", "bf16", "int8", "int4"]) assert.ok(shapes.includes(`GEMV ${dtype} 1 x 4096 x 4096`));
  assert.equal(shapes.filter((shape) => shape.includes("LoRA r=16")).length, 2);
  assert.equal(new Set(shapes).size, 13);
});
