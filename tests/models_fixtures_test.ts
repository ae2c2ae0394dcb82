/** Models with adapters answer as PEFT does. */
import { test } from "node:test";
import assert from "node:assert/strict";
import { forEachBackend } from "./backends.ts";
import { assertSameBits } from "./compare.ts";
import { assertNear, fixture, loadBase, logitsOf, readTruth, rowsOf } from "./models_support.ts";

/** The bound of the issue, for float32 code. */
const TOLERANCE = 2e-5;

const CASES = [
  ["llama-plain", "llama"],
  ["llama-rslora", "llama"],
  ["llama-patterns", "llama"],
  ["llama-all-linear", "llama"],
  ["llama-layers-to-transform", "llama"],
  ["llama-exclude", "llama"],
  ["llama-bf16", "llama"],
  ["llama-f16", "llama"],
  ["qwen3-plain", "qwen3"],
] as const;

for (const [name, base] of CASES) {
  forEachBackend(`forward() and merge() answer as PEFT does in ${name}`, async (backend) => {
    const truth = await readTruth(name);
    const ids = rowsOf(await truth("input_ids"));
    const [plain, adapted] = [await truth("base.output"), await truth("adapted.output")];
    const model = await loadBase(backend, base);
    const before = await model.forward(ids);
    assert.deepEqual(before.shape, plain.shape);
    assertNear(before.values, plain.values, TOLERANCE, "base");
    await model.loadAdapter("a", fixture(`${name}/adapter`));
    assertNear(await logitsOf(model, ids, { adapter: "a" }), adapted.values, TOLERANCE, "adapted");
    assertSameBits(await logitsOf(model, ids, { adapter: null }), before.values, "base beside the adapter");
    await model.merge("a");
    assertNear(await logitsOf(model, ids), adapted.values, TOLERANCE, "merged");
    model.unmerge();
    assertSameBits(await logitsOf(model, ids), before.values, "unmerged");
    model.dispose();
  });
}

forEachBackend("forward() answers every row of a batch with its own adapter, or with a sum", async (backend) => {
  const truth = await readTruth("multi");
  const ids = rowsOf(await truth("input_ids"));
  const model = await loadBase(backend, "llama");
  for (const name of ["emotion", "summary", "qa"]) await model.loadAdapter(name, fixture(`multi/${name}`));
  for (const name of ["emotion", "summary", "qa"]) {
    const want = await truth(`${name}.output`);
    assertNear(await logitsOf(model, ids, { adapter: name }), want.values, TOLERANCE, name);
  }
  const mixed = await truth("mixed.output");
  const adapter = ["emotion", null, "qa", "summary", "emotion"];
  const answer = await logitsOf(model, ids, { adapter });
  assertNear(answer, mixed.values, TOLERANCE, "mixed batch");
  const all = { emotion: 1, summary: 1, qa: 1 };
  const sum = await truth("sum.output");
  assertNear(await logitsOf(model, ids, { adapter: all }), sum.values, TOLERANCE, "sum");
  await model.merge(all);
  assertNear(await logitsOf(model, ids), sum.values, TOLERANCE, "merged sum");
  model.unmerge();
  for (const [i, row] of ids.entries()) {
    const alone = await logitsOf(model, [row], { adapter: adapter[i]! });
    assertNear(alone, answer.subarray(i * alone.length, (i + 1) * alone.length), 1e-6, `row ${i} alone`);
  }
  model.dispose();
});

forEachBackend("generate() with its cache chooses what forward() over the whole text chooses", async (backend) => {
  for (const [name, base] of [["llama-rslora", "llama"], ["qwen3-plain", "qwen3"]] as const) {
    const model = await loadBase(backend, base);
    await model.loadAdapter("a", fixture(`${name}/adapter`));
    const prompt = [5, 17, 99, 4, 42];
    const ids = [...prompt];
    const generation = model.generate(prompt, { adapter: "a", maxNewTokens: 12 });
    for await (const piece of generation) assert.equal(piece, "");
    for (const token of generation.tokens) {
      const { shape, values } = await model.forward([ids], { adapter: "a" });
      const last = values.subarray(values.length - shape[2]);
      assert.ok(last[token]! >= Math.max(...last) - 1e-4, `token ${token} after ${ids}`);
      ids.push(token);
    }
    assert.equal(generation.tokens.length, 12);
    model.dispose();
  }
});

test("forward() in bfloat16 stays near float32", async () => {
  const { loadModel } = await import("../src/models/mod.ts");
  const truth = await readTruth("llama-plain");
  const model = await loadModel(fixture("base/llama"));
  await model.loadAdapter("a", fixture("llama-plain/adapter"));
  const ids = rowsOf(await truth("input_ids"));
  const want = await truth("adapted.output");
  assertNear(await logitsOf(model, ids, { adapter: "a" }), want.values, 0.05, "bf16");
  model.dispose();
});
