/** Whole models on the GPU: PEFT's answers, and one submission for each result. */
import { test } from "node:test";
import assert from "node:assert/strict";
import { assertNear, fixture, loadBase, logitsOf, readTruth, rowsOf } from "./models_support.ts";
import { gpuSkip, withGpu } from "./webgpu_support.ts";

const onGpu = await gpuSkip();
/** The bound of issue 5. */
const TOLERANCE = 5e-5;

test("forward() on the GPU answers as PEFT does, in one submission", onGpu, async () => {
  await withGpu(async (backend) => {
    const truth = await readTruth("llama-plain");
    const ids = rowsOf(await truth("input_ids"));
    const model = await loadBase(backend, "llama");
    await model.loadAdapter("a", fixture("llama-plain/adapter"));
    assertNear(await logitsOf(model, ids), (await truth("base.output")).values, TOLERANCE, "base");
    const before = backend.counts.submits;
    const adapted = await logitsOf(model, ids, { adapter: "a" });
    assertNear(adapted, (await truth("adapted.output")).values, TOLERANCE, "adapted");
    assert.equal(backend.counts.submits - before, 1);
    model.dispose();
    assert.equal(backend.bytes, 0);
  });
});

test("forward() on the GPU answers every row with its own adapter", onGpu, async () => {
  await withGpu(async (backend) => {
    const truth = await readTruth("multi");
    const ids = rowsOf(await truth("input_ids"));
    const model = await loadBase(backend, "llama");
    for (const name of ["emotion", "summary", "qa"]) await model.loadAdapter(name, fixture(`multi/${name}`));
    const adapter = ["emotion", null, "qa", "summary", "emotion"];
    const mixed = await logitsOf(model, ids, { adapter });
    assertNear(mixed, (await truth("mixed.output")).values, TOLERANCE, "mixed");
    const sum = await logitsOf(model, ids, { adapter: { emotion: 1, summary: 1, qa: 1 } });
    assertNear(sum, (await truth("sum.output")).values, TOLERANCE, "sum");
    model.dispose();
  });
});

test("generate() on the GPU chooses what wasm chooses, with one submission per token", onGpu, async () => {
  const { openBackend } = await import("../src/open.ts");
  await withGpu(async (gpu) => {
    const wasm = await openBackend({ prefer: "wasm" });
    const tokens = [];
    for (const backend of [gpu, wasm]) {
      const model = await loadBase(backend, "llama");
      await model.loadAdapter("a", fixture("llama-rslora/adapter"));
      const before = gpu.counts.submits;
      const generation = model.generate([5, 17, 99, 4, 42], { adapter: "a", maxNewTokens: 12 });
      for await (const piece of generation) assert.equal(piece, "");
      if (backend === gpu) assert.equal(gpu.counts.submits - before, generation.tokens.length);
      tokens.push(generation.tokens);
      model.dispose();
    }
    assert.deepEqual(tokens[0], tokens[1]);
    wasm.dispose();
  });
});

test("a model in int4 answers on the GPU as its dequantized values do", onGpu, async () => {
  const { openBackend } = await import("../src/open.ts");
  const { loadModel } = await import("../src/models/mod.ts");
  await withGpu(async (gpu) => {
    const wasm = await openBackend({ prefer: "wasm" });
    const logits = [];
    for (const backend of [wasm, gpu]) {
      const model = await loadModel(fixture("base/llama"), { backend, dtype: "int4", exact: true });
      await model.loadAdapter("a", fixture("llama-rslora/adapter"));
      logits.push(await logitsOf(model, [[5, 17, 99, 4, 42]], { adapter: "a" }));
      model.dispose();
    }
    assertNear(logits[1]!, logits[0]!, TOLERANCE, "logits");
    wasm.dispose();
  });
});
