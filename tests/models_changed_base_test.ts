import assert from "node:assert/strict";
import { test } from "node:test";
import { Adapter } from "../src/adapter/adapter.ts";
import { createAdapter } from "../src/adapter/create.ts";
import type { InitName } from "../src/adapter/inits.ts";
import { loadAdapter } from "../src/adapter/load.ts";
import { saveAdapter } from "../src/adapter/save.ts";
import { toPlainLora } from "../src/adapter/to_plain.ts";
import { mergeCheckpoint } from "../src/checkpoint/merge.ts";
import { openCheckpoint } from "../src/formats/checkpoint.ts";
import type { StoredTensor } from "../src/formats/dtype.ts";
import { memoryFolder, memorySink } from "../src/formats/memory.ts";
import { type LanguageModel, loadModel } from "../src/models/mod.ts";
import { openBackend } from "../src/open.ts";
import { at, noise, plus } from "./merge_support.ts";
import { assertNear, fixture, IDS, logitsOf } from "./models_support.ts";

type Files = ReadonlyMap<string, Uint8Array>;

async function saved(adapter: Adapter): Promise<Files> {
  const sink = memorySink();
  await saveAdapter(adapter, sink);
  return sink.files;
}

/** An adapter over the base of a fixture before training, and after some. */
async function trainedOver(base: string, init: InitName): Promise<{ initial: Adapter; trained: Adapter }> {
  const [checkpoint, { modules, config }] = await Promise.all([
    openCheckpoint(fixture(`base/${base}`)),
    loadAdapter(fixture(`${base}-plain/adapter`)),
  ]);
  const initial = await createAdapter({
    modules: modules.values(),
    targetModules: config.targetModules!,
    r: 3,
    loraAlpha: 4,
    init,
    fanInFanOut: config.fanInFanOut,
    weightOf: (name) => checkpoint.read(`${name}.weight`),
  });
  const shift = (tensor: StoredTensor, seed: number): StoredTensor => {
    const values = Float32Array.from(plus(at(tensor), at(noise(tensor.shape, seed)), 0.1));
    return { ...tensor, bytes: new Uint8Array(values.buffer) };
  };
  const moved = [...initial.modules].map(([name, module], i) => {
    return [name, { ...module, loraA: shift(module.loraA, 50 + i), loraB: shift(module.loraB, 80 + i) }] as const;
  });
  return { initial, trained: new Adapter({ ...initial, modules: new Map(moved) }) };
}

/** The logits of the base from which the initial adapter is taken, with the trained one over it. */
async function truth(base: string, initial: Adapter, trained: Adapter): Promise<Float32Array> {
  const sink = memorySink();
  const adapter = await loadAdapter(await saved(initial), { residualBase: true });
  await mergeCheckpoint(fixture(`base/${base}`), [{ adapter, weight: -1 }], sink);
  const model = await openModel(memoryFolder(sink.files));
  try {
    await model.loadAdapter("a", await saved(trained), { residualBase: true });
    return await logitsOf(model, IDS, { adapter: "a" });
  } finally {
    model.dispose();
  }
}

async function openModel(from: Parameters<typeof loadModel>[0]): Promise<LanguageModel> {
  return await loadModel(from, { backend: await openBackend({ prefer: "wasm" }), dtype: "f32" });
}

test("a model runs adapters of pissa and olora over the published base, which tells what was taken from it", async () => {
  for (const [base, init] of [["llama", "pissa"], ["llama", "olora"], ["gpt2", "pissa"]] as const) {
    const { initial, trained } = await trainedOver(base, init);
    const want = await truth(base, initial, trained);
    const model = await openModel(fixture(`base/${base}`));
    const loaded = await model.loadAdapter("a", await saved(trained));
    assert.deepEqual([loaded.baseChange, [...loaded.modules.values()][0]!.rank], [null, 6]);
    assertNear(await logitsOf(model, IDS, { adapter: "a" }), want, 2e-5, `${base} ${init}`);
    model.dispose();
  }
});

test("a model runs any such adapter with its initial one, and refuses it alone, saying what to do", async () => {
  const { initial, trained } = await trainedOver("llama", "pissa_niter_2");
  const want = await truth("llama", initial, trained);
  const model = await openModel(fixture("base/llama"));
  await assert.rejects(model.loadAdapter("a", await saved(trained)), (error: Error & { field?: string }) => {
    assert.equal(error.field, "init_lora_weights");
    assert.match(error.message, /lora convert ADAPTER --to peft --out OUT --initial INITIAL.*residualBase/);
    return true;
  });
  await model.loadAdapter("files", await saved(trained), { initial: await saved(initial) });
  await model.loadAdapter("adapters", trained, { initial });
  for (const name of ["files", "adapters"]) {
    assertNear(await logitsOf(model, IDS, { adapter: name }), want, 2e-5, name);
  }
  model.dispose();
});

test("loadAdapter() subtracts an initial adapter whatever the config says, and not twice", async () => {
  const { initial, trained } = await trainedOver("llama", "pissa");
  const plain = await toPlainLora(trained, { initial });
  // As PEFT's guide has it: both are saved with init_lora_weights true.
  const asTrue = (adapter: Adapter) => {
    const raw = new Map(adapter.config.raw).set("init_lora_weights", true);
    return saved(new Adapter({ ...adapter, config: { ...adapter.config, raw, init: true, baseChange: null } }));
  };
  const loaded = await loadAdapter(await asTrue(trained), { initial: await asTrue(initial) });
  assert.deepEqual(loaded.modules, plain.modules);
  const again = await loadAdapter(await saved(plain), { initial: await asTrue(initial) });
  assert.deepEqual(again.modules, plain.modules);
  assert.match(again.report.at(-1)!.what, /not subtracted/);
  const both = loadAdapter(await saved(trained), { initial, residualBase: true });
  await assert.rejects(both, { name: "TypeError" });
});
