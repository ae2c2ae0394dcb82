/** A model's weights come once more from where they came from, with its adapters and what is merged. */
import { test } from "node:test";
import assert from "node:assert/strict";
import { DeviceLostError, DisposedError } from "../src/errors.ts";
import { type LanguageModel, loadModel } from "../src/models/mod.ts";
import { openBackend } from "../src/open.ts";
import { WebGpuBackend } from "../src/webgpu/backend.ts";
import { fixture, generate, IDS, loadBase, logitsOf } from "./models_support.ts";
import { findDevice, gpuSkip } from "./webgpu_support.ts";

const openWasm = () => openBackend({ prefer: "wasm" });
const ADAPTERS = { a: "llama-plain/adapter", b: "llama-rslora/adapter" };

async function addAdapters(model: LanguageModel): Promise<void> {
  for (const [name, path] of Object.entries(ADAPTERS)) await model.loadAdapter(name, fixture(path));
}

const SELECTIONS = [null, "a", { a: 0.5, b: 1 }] as const;

async function answers(model: LanguageModel): Promise<Float32Array[]> {
  const all = [];
  for (const adapter of SELECTIONS) all.push(await logitsOf(model, IDS, { adapter }));
  return all;
}

test("reload() moves a model with its adapters to another backend, and leaves nothing on the first", async () => {
  const [first, second] = [await openWasm(), await openWasm()];
  const model = await loadBase(first, "llama");
  await addAdapters(model);
  const want = await answers(model);
  await model.reload({ backend: second });
  assert.equal(model.backend, second);
  assert.deepEqual([...model.adapters.keys()], ["a", "b"]);
  assert.deepEqual(await answers(model), want);
  assert.equal(first.bytes, 0);
  model.dispose();
  assert.equal(second.bytes, 0);
});

test("reload() merges again what was merged", async () => {
  const [first, second] = [await openWasm(), await openWasm()];
  const model = await loadBase(first, "llama");
  await addAdapters(model);
  const base = await logitsOf(model, IDS);
  await model.merge({ a: 0.5, b: 1 });
  const merged = await logitsOf(model, IDS);
  await model.reload({ backend: second });
  assert.deepEqual(model.merged, { a: 0.5, b: 1 });
  assert.deepEqual(await logitsOf(model, IDS), merged);
  model.unmerge();
  assert.deepEqual(await logitsOf(model, IDS), base);
});

test("reload() of a model that opened its backend opens another, and the model ends that one too", async () => {
  const model = await loadModel(fixture("base/llama"), { dtype: "f32" });
  const first = model.backend;
  const want = await logitsOf(model, IDS);
  await model.reload();
  assert.notEqual(model.backend, first);
  assert.throws(() => first.tensor([1]), DisposedError);
  assert.deepEqual(await logitsOf(model, IDS), want);
  const last = model.backend;
  model.dispose();
  assert.throws(() => last.tensor([1]), DisposedError);
});

test("reload() that fails, is refused or is aborted leaves the model as it was", async () => {
  const [first, second] = [await openWasm(), await openWasm()];
  const model = await loadBase(first, "llama");
  await addAdapters(model);
  const want = await answers(model);
  await assert.rejects(model.reload(), { name: "TypeError", message: /given its backend/ });
  const reason = new Error("no more");
  const controller = new AbortController();
  const onProgress = () => controller.abort(reason);
  await assert.rejects(model.reload({ backend: second, signal: controller.signal, onProgress }), reason);
  assert.deepEqual([model.backend, second.bytes], [first, 0]);
  second.dispose();
  await assert.rejects(model.reload({ backend: second }), DisposedError);
  assert.deepEqual(await answers(model), want);
});

test("nothing else is done with a model while it is reloaded, and what was begun before ends", async () => {
  const [first, second] = [await openWasm(), await openWasm()];
  const model = await loadBase(first, "llama");
  const generation = model.generate(IDS[0]!, { maxNewTokens: 5 });
  const iterator = generation[Symbol.asyncIterator]();
  const begun = iterator.next();
  const reloading = model.reload({ backend: second });
  await assert.rejects(begun, { name: "RangeError", message: /reloaded/ });
  await assert.rejects(logitsOf(model, IDS), { name: "RangeError", message: /reloaded/ });
  await assert.rejects(model.reload({ backend: second }), { name: "RangeError", message: /reloaded/ });
  await reloading;
  assert.equal((await generate(model, IDS[0]!, { maxNewTokens: 5 })).tokens.length, 5);
  assert.equal(first.bytes, 0);
});

test("a model that is disposed while it is reloaded leaves nothing", async () => {
  const [first, second] = [await openWasm(), await openWasm()];
  const model = await loadBase(first, "llama");
  const reloading = model.reload({ backend: second });
  model.dispose();
  await assert.rejects(reloading, DisposedError);
  assert.deepEqual([first.bytes, second.bytes], [0, 0]);
});

test(
  "every call of a model whose GPU is lost is a DeviceLostError, until it is reloaded",
  await gpuSkip(),
  async () => {
    const device = (await findDevice())!;
    const gpu = new WebGpuBackend({ device, owned: true }, "");
    const model = await loadBase(gpu, "llama");
    await addAdapters(model);
    const want = await answers(model);
    device.destroy();
    await device.lost;
    await assert.rejects(answers(model), DeviceLostError);
    await assert.rejects(generate(model, IDS[0]!, { maxNewTokens: 2 }), DeviceLostError);
    await assert.rejects(model.loadAdapter("c", fixture(ADAPTERS.a)), DeviceLostError);
    await assert.rejects(model.merge("a"), DeviceLostError);
    assert.deepEqual([[...model.adapters.keys()], model.merged], [["a", "b"], null]);
    const wasm = await openWasm();
    await model.reload({ backend: wasm });
    for (const [i, logits] of (await answers(model)).entries()) {
      const most = Math.max(...want[i]!.map(Math.abs));
      logits.forEach((logit, at) => assert.ok(Math.abs(logit - want[i]![at]!) <= 5e-5 * most, `${i}: ${at}`));
    }
    gpu.dispose();
    model.dispose();
    assert.equal(wasm.bytes, 0);
  },
);
