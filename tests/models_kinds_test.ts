/** Every kind of adapter over every architecture answers as PEFT does, unmerged and merged. */
import assert from "node:assert/strict";
import type { Backend } from "../src/backend.ts";
import { type Encoder, type LanguageModel, loadEncoder } from "../src/models/mod.ts";
import { forEachBackend } from "./backends.ts";
import { assertSameBits } from "./compare.ts";
import { assertNear, fixture, loadBase, readTruth, rowsOf } from "./models_support.ts";

/** The bounds of the issue, for float32 code. */
const TOLERANCES = { wasm: 2e-5, webgpu: 5e-5 } as const;

const CASES = [
  ["gpt2-plain", "gpt2"],
  ["gpt2-lora-bias", "gpt2"],
  ["bert-plain", "bert"],
  ["bert-bias-lora-only", "bert"],
  ["bertcls-plain", "bertcls"],
  ["llama-dora", "llama"],
  ["llama-dora-rslora", "llama"],
  ["llama-embedding", "llama"],
  ["llama-modules-to-save", "llama"],
  ["llama-new-tokens", "llama"],
  ["moe", "mixtral"],
] as const;

type Model = Encoder | LanguageModel;

function load(backend: Backend, base: string): Promise<Model> {
  if (!base.startsWith("bert")) return loadBase(backend, base);
  return loadEncoder(fixture(`base/${base}`), { backend, dtype: "f32" });
}

for (const [name, base] of CASES) {
  forEachBackend(`forward() and merge() answer as PEFT does in ${name}`, async (backend) => {
    const tolerance = TOLERANCES[backend.name];
    const truth = await readTruth(name);
    const ids = rowsOf(await truth("input_ids"));
    const [plain, adapted] = [await truth("base.output"), await truth("adapted.output")];
    const model = await load(backend, base);
    const before = await model.forward(ids);
    assert.deepEqual(before.shape, plain.shape);
    assertNear(before.values, plain.values, tolerance, "base");
    const held = backend.bytes;
    await model.loadAdapter("a", fixture(`${name}/adapter`));
    assertNear((await model.forward(ids, { adapter: "a" })).values, adapted.values, tolerance, "adapted");
    assertSameBits((await model.forward(ids, { adapter: null })).values, before.values, "base beside the adapter");
    const mixed = await model.forward(ids, { adapter: ["a", null, "a"] });
    const size = before.values.length / 3;
    const want = [...adapted.values.subarray(0, size), ...plain.values.subarray(size, 2 * size)];
    assertNear(mixed.values, [...want, ...adapted.values.subarray(2 * size)], tolerance, "mixed batch");
    await model.merge("a");
    assertNear((await model.forward(ids)).values, adapted.values, tolerance, "merged");
    model.unmerge();
    assertSameBits((await model.forward(ids)).values, before.values, "unmerged");
    model.unloadAdapter("a");
    assert.ok(backend.bytes - held < 2000, `${backend.bytes - held} bytes stay behind the adapter`);
    model.dispose();
  });
}

forEachBackend("forward() mixes DoRA rows into a batch with others, and merges a DoRA", async (backend) => {
  const tolerance = TOLERANCES[backend.name];
  const truth = await readTruth("multi");
  const ids = rowsOf(await truth("input_ids"));
  const model = await load(backend, "llama");
  for (const name of ["emotion", "summary", "dora"]) await model.loadAdapter(name, fixture(`multi/${name}`));
  const rows = async (name: string) => {
    const { values } = await truth(`${name}.output`);
    return (row: number) => [...values.subarray(row * values.length / 5, (row + 1) * values.length / 5)];
  };
  const [emotion, summary, dora, base] = [
    await rows("emotion"),
    await rows("summary"),
    await rows("dora"),
    await rows("base"),
  ];
  const adapter = ["dora", "emotion", null, "dora", "summary"];
  const want = [...dora(0), ...emotion(1), ...base(2), ...dora(3), ...summary(4)];
  assertNear((await model.forward(ids, { adapter })).values, want, tolerance, "mixed batch");
  const alone = (await model.forward(ids, { adapter: "dora" })).values;
  assertNear(alone, [0, 1, 2, 3, 4].flatMap(dora), tolerance, "alone");
  const mix = { emotion: 0.5, dora: 0.7, summary: -0.3 };
  const apart = (await model.forward(ids, { adapter: mix })).values;
  await model.merge(mix);
  assertNear((await model.forward(ids)).values, apart, tolerance, "merged mix");
  model.dispose();
});
