/** A model with adapters that come and go. */
import { test } from "node:test";
import assert from "node:assert/strict";
import { DisposedError, MismatchError, NumericError } from "../src/errors.ts";
import { loadAdapter } from "../src/adapter/load.ts";
import { encodeSafetensors } from "../src/formats/safetensors_writer.ts";
import { openBackend } from "../src/open.ts";
import { assertSameBits } from "./compare.ts";
import { fixture, generate, IDS, loadBase, logitsOf, withLlama } from "./models_support.ts";

/** An adapter over q_proj of the first layer, changed by `edit`. */
function smallAdapter(
  edit: { inner?: number; module?: string; value?: number; table?: Float32Array<ArrayBuffer> } = {},
): ReadonlyMap<string, Uint8Array> {
  const { inner = 48, module = "model.layers.0.self_attn.q_proj", value = 0.5, table } = edit;
  const tensor = (rows: number, columns: number) => ({
    dtype: "F32" as const,
    shape: [rows, columns],
    bytes: new Uint8Array(new Float32Array(rows * columns).fill(value).buffer),
  });
  const tensors = new Map([
    [`base_model.model.${module}.lora_A.weight`, tensor(2, inner)],
    [`base_model.model.${module}.lora_B.weight`, tensor(48, 2)],
  ]);
  if (table) {
    const bytes = new Uint8Array(table.buffer);
    tensors.set("base_model.model.model.embed_tokens.weight", { dtype: "F32", shape: [131, 48], bytes });
  }
  const saved = table ? { modules_to_save: ["embed_tokens"] } : {};
  const config = { peft_type: "LORA", r: 2, lora_alpha: 4, target_modules: [module], ...saved };
  return new Map([
    ["adapter_config.json", new TextEncoder().encode(JSON.stringify(config))],
    ["adapter_model.safetensors", encodeSafetensors(tensors)],
  ]);
}

test("dispose() gives back all memory of a model and of its adapters", async () => {
  const backend = await openBackend();
  const before = backend.bytes;
  const model = await loadBase(backend, "llama");
  const base = backend.bytes;
  await model.loadAdapter("a", fixture("llama-plain/adapter"));
  assert.ok(backend.bytes - base < base / 4, "an adapter is small beside its base");
  await generate(model, [5, 17], { maxNewTokens: 5 });
  await model.loss(IDS, { adapter: "a" });
  assert.equal(model.unloadAdapter("a"), true);
  assert.equal(model.unloadAdapter("a"), false);
  await model.loadAdapter("b", fixture("llama-all-linear/adapter"));
  await model.merge("b");
  model.dispose();
  model.dispose();
  assert.equal(backend.bytes, before);
  await assert.rejects(model.forward(IDS), DisposedError);
  await assert.rejects(model.loadAdapter("c", fixture("llama-plain/adapter")), DisposedError);
  assert.throws(() => model.generate([1]), DisposedError);
  backend.dispose();
});

test("an unknown adapter is refused, and the known ones are listed", async () => {
  await withLlama(async (model) => {
    await model.loadAdapter("b", fixture("llama-rslora/adapter"));
    const listed = (error: unknown): boolean => {
      assert(error instanceof MismatchError);
      assert.match(error.message, /"nope".*"a", "b"/);
      return true;
    };
    await assert.rejects(model.forward(IDS, { adapter: "nope" }), listed);
    await assert.rejects(model.forward(IDS, { adapter: { a: 1, nope: 1 } }), listed);
    await assert.rejects(model.merge("nope"), listed);
    assert.throws(() => model.generate([1], { adapter: "nope" }), listed);
  });
});

test("loadAdapter() takes the same name once, and one adapter under two names", async () => {
  await withLlama(async (model) => {
    await assert.rejects(model.loadAdapter("a", smallAdapter()), /"a" twice/);
    const adapter = await loadAdapter(fixture("llama-plain/adapter"));
    assert.equal(await model.loadAdapter("b", adapter), adapter);
    assert.deepEqual([...model.adapters.keys()], ["a", "b"]);
    assertSameBits(
      await logitsOf(model, IDS, { adapter: "b" }),
      await logitsOf(model, IDS, { adapter: "a" }),
      "a and b",
    );
  });
});

test("loadAdapter() refuses what does not fit this base, and changes nothing", async () => {
  await withLlama(async (model, backend) => {
    const held = backend.bytes;
    const refused = [
      smallAdapter({ inner: 47 }),
      smallAdapter({ module: "model.layers.7.self_attn.q_proj" }),
      fixture("qwen3-plain/adapter"),
      fixture("bertcls-plain/adapter"),
    ];
    for (const source of refused) {
      await assert.rejects(model.loadAdapter("b", source), (error) => {
        assert(error instanceof MismatchError);
        assert.ok(error.unexpected!.length > 0);
        return true;
      });
    }
    await assert.rejects(model.loadAdapter("b", smallAdapter({ value: NaN })), NumericError);
    assert.equal(backend.bytes, held);
    assert.deepEqual([...model.adapters.keys()], ["a"]);
  });
});

test("loadAdapter() refuses an adapter for a tied head of another shape", async () => {
  const backend = await openBackend();
  const model = await loadBase(backend, "qwen3");
  await assert.rejects(model.loadAdapter("head", smallAdapter({ module: "lm_head" })), /"lm_head"/);
  backend.dispose();
});

test("merge() leaves every layer as it was when one cannot be merged", async () => {
  await withLlama(async (model, backend) => {
    const before = await logitsOf(model, IDS);
    const held = backend.bytes;
    await model.loadAdapter("big", smallAdapter({ value: 3e38, module: "model.layers.1.self_attn.o_proj" }));
    const loaded = backend.bytes;
    await assert.rejects(model.merge({ a: 1, big: 1 }), NumericError);
    assert.equal(model.merged, null);
    assert.equal(backend.bytes, loaded);
    assertSameBits(await logitsOf(model, IDS), before, "after the failed merge");
    assert.equal(model.unloadAdapter("big"), true);
    assert.equal(backend.bytes, held);
  });
});

test("a merged model answers with what is merged, and refuses what would mix with it", async () => {
  await withLlama(async (model) => {
    await model.loadAdapter("b", fixture("llama-rslora/adapter"));
    const base = await logitsOf(model, IDS);
    const merging = model.merge({ a: 0.5 });
    await assert.rejects(model.forward(IDS), /being merged/);
    await merging;
    assert.deepEqual(model.merged, { a: 0.5 });
    assert.notDeepEqual(await logitsOf(model, IDS), base);
    await assert.rejects(model.forward(IDS, { adapter: "b" }), /unmerge them first/);
    for (const adapter of ["a", null, { a: 0 }]) {
      assert.throws(() => model.generate([1], { adapter }), /unmerge them first/);
    }
    await assert.rejects(model.merge("b"), /twice/);
    assert.throws(() => model.unloadAdapter("a"), /it is merged/);
    assert.equal(model.unloadAdapter("b"), true);
    model.unmerge();
    assert.throws(() => model.unmerge(), /no adapter is merged/);
    await assert.rejects(model.merge(null), /Cannot merge nothing/);
    assertSameBits(await logitsOf(model, IDS), base, "unmerged");
  });
});

test("loss() gives the losses of forward()'s logits, row by row", async () => {
  await withLlama(async (model) => {
    const rows = [[5, 17, 99, 4], [8, 9], [3]];
    const losses = await model.loss(rows, { adapter: ["a", null, "a"] });
    assert.deepEqual(losses.map((row) => row.length), [3, 1, 0]);
    const { values } = await model.forward([rows[0]!], { adapter: "a" });
    for (let t = 0; t < 3; t++) {
      const logits = values.subarray(t * 131, (t + 1) * 131);
      const total = logits.reduce((sum, logit) => sum + Math.exp(logit), 0);
      assert.ok(Math.abs(losses[0]![t]! - (Math.log(total) - logits[rows[0]![t + 1]!]!)) < 1e-4);
    }
  });
});

test("an adapter's own table answers though it was loaded while the same one was merged", async () => {
  await withLlama(async (model) => {
    const table = Float32Array.from({ length: 131 * 48 }, (_, i) => Math.sin(i));
    const files = smallAdapter({ table, value: 0.1 });
    await model.loadAdapter("first", files);
    const answer = await logitsOf(model, IDS, { adapter: "first" });
    await model.merge("first");
    await model.loadAdapter("second", files);
    model.unmerge();
    assertSameBits(await logitsOf(model, IDS, { adapter: "second" }), answer, "loaded while merged");
  });
});

test("loss() rejects when adapters are unloaded or merged between two of its rows", async () => {
  const rows = [[5, 17, 99], [8, 9, 42]];
  for (const change of ["unload", "merge"] as const) {
    await withLlama(async (model) => {
      let checks = 0;
      const watched = (onCheck: () => void): AbortSignal => {
        const { signal } = new AbortController();
        return Object.assign(signal, { throwIfAborted: onCheck });
      };
      await model.loss(rows.slice(0, 1), { adapter: "a", signal: watched(() => checks++) });
      let merging: Promise<unknown> | null = null;
      const atLast = () => {
        if (--checks !== 0) return;
        // After the last check of the first row: its answer is computed, the second is not begun.
        queueMicrotask(() => {
          if (change === "merge") merging = model.merge("a");
          else model.unloadAdapter("a");
        });
      };
      await assert.rejects(model.loss(rows, { adapter: "a", signal: watched(atLast) }), /Cannot go on: adapter/);
      await merging;
    });
  }
});

test("a model that is disposed while an adapter finds its place keeps nothing of it", async () => {
  const backend = await openBackend();
  for (const name of ["llama-plain", "llama-modules-to-save", "llama-embedding"]) {
    const adapter = await loadAdapter(fixture(`${name}/adapter`));
    // One turn: some parts are placed, and the model does not know that they are its own.
    for (const turns of [0, 1, 3, 10]) {
      const model = await loadBase(backend, "llama");
      const loading = model.loadAdapter("a", adapter).then(() => "loaded", (error) => error);
      for (let turn = 0; turn < turns; turn++) await null;
      model.dispose();
      const outcome = await loading;
      assert.ok(outcome === "loaded" || outcome instanceof DisposedError, `${name} after ${turns}: ${outcome}`);
      assert.ok(turns > 0 || outcome !== "loaded", `${name}: loaded into a model that is gone`);
      assert.equal(backend.bytes, 0, `${name} after ${turns}`);
    }
  }
  backend.dispose();
});
