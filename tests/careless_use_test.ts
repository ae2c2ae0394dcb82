/** What callers do without thinking must not answer wrongly, lose files or lift a cap. */
import assert from "node:assert/strict";
import { mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { loadAdapter } from "../src/adapter/load.ts";
import { combineAdapters, resizeAdapter } from "../src/adapter/combine.ts";
import { compareAdapters } from "../src/adapter/compare.ts";
import { readBaseFacts } from "../src/adapter/dialects/base_facts.ts";
import { readAdapter, writeAdapter } from "../src/adapter/dialects/convert.ts";
import { recogniseDialect } from "../src/adapter/dialects/recognise.ts";
import { saveAdapter } from "../src/adapter/save.ts";
import { toPlainLora } from "../src/adapter/to_plain.ts";
import { extractAdapter } from "../src/checkpoint/extract.ts";
import { mergeCheckpoint } from "../src/checkpoint/merge.ts";
import { mergeGguf } from "../src/checkpoint/merge_gguf.ts";
import { DisposedError, LimitError, MismatchError } from "../src/errors.ts";
import { memoryFolder, memorySink, memorySource } from "../src/formats/memory.ts";
import type { Sink } from "../src/formats/source.ts";
import { folder } from "../src/fs/mod.ts";
import { ggufFolder, loadModel } from "../src/models/mod.ts";
import { loadTokenizer } from "../src/text/mod.ts";
import { filled, fixtureFolder, MODEL, smallAdapter, smallBase } from "./adapter_fixtures.ts";
import { generate, IDS, withLlama } from "./models_support.ts";

test("forward() takes rows that are typed arrays as it takes arrays", async () => {
  await withLlama(async (model) => {
    const { shape, values } = await model.forward([[5, 17, 99], [4, 42, 7]]);
    const typed = [Uint32Array.of(5, 17, 99), Uint32Array.of(4, 42, 7)] as never;
    assert.deepEqual(await model.forward(typed), { shape, values });
  });
});

test("a choice of adapters that is no plain object is refused, never taken for the base", async () => {
  await withLlama(async (model) => {
    class Mix {}
    for (const adapter of [new Map([["a", 1]]), new Set(["a"]), new Mix(), Object.create({ a: 1 })]) {
      await assert.rejects(model.forward(IDS, { adapter: adapter as never }), TypeError);
    }
    const bare = Object.assign(Object.create(null), { a: 1 });
    const { values } = await model.forward(IDS, { adapter: bare });
    assert.deepEqual(values, (await model.forward(IDS, { adapter: "a" })).values);
  });
});

test("any string names an adapter, and none is found in an object's prototype", async () => {
  await withLlama(async (model) => {
    const want = (await model.forward(IDS, { adapter: "a" })).values;
    for (const name of ["__proto__", "constructor", "toString", "", "a\nb", "\u0000"]) {
      await assert.rejects(model.forward(IDS, { adapter: name }), MismatchError);
      await model.loadAdapter(name, fixtureFolder("llama-plain/adapter"));
      const mix = Object.fromEntries([[name, 1]]);
      assert.deepEqual((await model.forward(IDS, { adapter: mix })).values, want, name);
      await model.merge(mix);
      model.unmerge();
      assert.ok(model.unloadAdapter(name));
    }
  });
});

test("what a caller does to its prompt or its mix later changes nothing", async () => {
  await withLlama(async (model) => {
    const prompt = [5, 17, 99];
    const want = (await generate(model, prompt, { maxNewTokens: 3 })).tokens;
    const generation = model.generate(prompt, { maxNewTokens: 3 });
    prompt.fill(1e9);
    for await (const _ of generation);
    assert.deepEqual(generation.tokens, want);
    const mix: Record<string, number> = { a: 1 };
    await model.merge(mix);
    delete mix.a;
    assert.throws(() => model.unloadAdapter("a"), /merged/);
    assert.deepEqual(model.merged, { a: 1 });
  });
});

test("merge() of a model that is disposed meanwhile does not say that it merged", async () => {
  const model = await loadModel(fixtureFolder("base/llama"));
  await model.loadAdapter("a", fixtureFolder("llama-plain/adapter"));
  const merging = model.merge("a");
  model.dispose();
  await assert.rejects(merging, DisposedError);
});

test("a limit that is undefined is the default, and one that is no number is refused", async () => {
  const path = "base_model.model.layers.0.q_proj";
  const files = smallAdapter({
    config: { r: 300 },
    tensors: { [`${path}.lora_A.weight`]: filled([300, 4]), [`${path}.lora_B.weight`]: filled([6, 300]) },
  });
  const limits = { rank: undefined, modules: undefined, configBytes: undefined, fileBytes: undefined } as never;
  await assert.rejects(loadAdapter(files, { limits }), LimitError);
  for (const rank of [NaN, -1, "9", null]) {
    await assert.rejects(loadAdapter(files, { limits: { rank: rank as never } }), TypeError);
  }
  assert.equal((await loadAdapter(files, { limits: { rank: Infinity } })).modules.size, 1);
});

test("a base whose paths are all dots is searched at once", async () => {
  const adapter = await loadAdapter(smallAdapter());
  const base = memoryFolder(smallBase({ [`${"a.".repeat(50_000)}weight`]: filled([2, 2]) }));
  const start = performance.now();
  await mergeCheckpoint(base, [{ adapter }], memorySink());
  assert.ok(performance.now() - start < 1000);
});

test("mergeCheckpoint() never writes over its base, whatever names it", async () => {
  const place = mkdtempSync(join(tmpdir(), "lora-same-"));
  try {
    const path = join(place, MODEL);
    const bytes = smallBase().get(MODEL)!;
    writeFileSync(path, bytes);
    symlinkSync(place, join(place, "link"));
    const adapter = await loadAdapter(smallAdapter());
    const same = folder(place);
    const outs: Sink[] = [same, folder(`${place}/./`), folder(join(place, "link"))];
    for (const out of outs) {
      await assert.rejects(mergeCheckpoint(same, [{ adapter }], out), { name: "MismatchError", code: "same-folder" });
    }
    await mergeCheckpoint(same, [{ adapter }], folder(join(place, "out")));
    assert.deepEqual(new Uint8Array(readFileSync(path)), bytes);
  } finally {
    rmSync(place, { recursive: true });
  }
});

test("loadAdapter() tells what reads another tool's adapter, and what a path has to be", async () => {
  const files = smallAdapter();
  files.delete("adapter_config.json");
  await assert.rejects(loadAdapter(files), /expected a file "adapter_config\.json"; readAdapter\(\)/);
  files.set("adapter_config.json", new TextEncoder().encode('{"fine_tune_type": "lora"}'));
  await assert.rejects(loadAdapter(files), /"peft_type" .*expected "LORA"; readAdapter\(\)/);
  await assert.rejects(loadAdapter("./news" as never), /from the path "\.\/news": expected folder\("…"\)/);
});

test("a path in place of a folder, and an adapter without its wrapping, are refused by what was wanted", async () => {
  const [base, adapter] = [memoryFolder(smallBase()), await loadAdapter(smallAdapter())];
  const place = /(?:from|to) the path "out": expected folder\("…"\) of "@lowrank\/lora\/fs", or /;
  const out = "out" as never;
  await assert.rejects(saveAdapter(adapter, out), { name: "TypeError", message: place });
  await assert.rejects(mergeCheckpoint(out, [{ adapter }], memorySink()), { name: "TypeError", message: place });
  await assert.rejects(mergeCheckpoint(base, [{ adapter }], out), { name: "TypeError", message: place });
  await assert.rejects(extractAdapter(out, base, { rank: 1 }), { name: "TypeError", message: place });
  const wrapping = { name: "TypeError", message: /an adapter alone: expected \{ adapter, weight \}/ };
  await assert.rejects(mergeCheckpoint(base, [adapter as never], memorySink()), wrapping);
  await assert.rejects(combineAdapters([adapter as never]), wrapping);
  const list = { name: "TypeError", message: /an adapter in place of a list: expected \[\{ adapter, weight \}\]/ };
  await assert.rejects(mergeCheckpoint(base, adapter as never, memorySink()), list);
  await assert.rejects(combineAdapters(adapter as never), list);
  for (const read of [loadTokenizer, recogniseDialect, readBaseFacts, ggufFolder]) {
    await assert.rejects(read(out), { name: "TypeError", message: place });
  }
  assert.throws(() => memoryFolder({} as never), { name: "TypeError", message: /of object: expected a Map/ });
  await assert.rejects(resizeAdapter(adapter, undefined as never), { name: "TypeError", message: /^Cannot resize / });
  const method = {
    name: "RangeError",
    message: /^Cannot combine adapters with method tie: expected one of exact, cat, /,
  };
  await assert.rejects(combineAdapters([{ adapter }], { method: "tie" as never }), method);
});

test("rows that are no rows are refused", async () => {
  await withLlama(async (model) => {
    const refusal = { name: "TypeError", message: /a row that is a number: expected rows of token ids/ };
    await assert.rejects(model.forward([1, 2] as never), refusal);
    await assert.rejects(model.loss([1, 2] as never), refusal);
  });
});

test("options of another type are refused, never computed with", async () => {
  const [base, adapter] = [memoryFolder(smallBase()), await loadAdapter(smallAdapter())];
  const sink = memorySink();
  const one = [{ adapter }];
  const size = { rank: 1 };
  const calls: [call: (options: never) => Promise<unknown>, options: Record<string, unknown>][] = [
    [(o) => extractAdapter(base, base, o), { svdClamp: "0.9" }],
    [(o) => extractAdapter(base, base, o), { energy: "0.9", rank: undefined }],
    [(o) => extractAdapter(base, base, o), { dtype: "f16" }],
    [(o) => extractAdapter(base, base, o), { onProgress: true }],
    [(o) => combineAdapters(one, o), { ...size, method: "svd", svdClamp: "0.9" }],
    [(o) => combineAdapters(one, o), { method: "ties", density: "0.5" }],
    [(o) => combineAdapters(one, o), { dtype: "F64" }],
    [(o) => combineAdapters(one, o), { name: 3 }],
    [(o) => combineAdapters(one, o), { signal: {} }],
    [(o) => resizeAdapter(adapter, o), { energy: "0.9", rank: undefined }],
    [(o) => compareAdapters(adapter, adapter, o), { of: "Delta" }],
    [(o) => mergeCheckpoint(base, one, sink, o), { strict: "false" }],
    [(o) => mergeCheckpoint(base, one, sink, o), { dryRun: "false" }],
    [(o) => mergeCheckpoint(base, one, sink, o), { backend: "wasm" }],
    [(o) => mergeCheckpoint(base, one, sink, o), { jobs: "2" }],
    [(o) => mergeGguf(memorySource("x.gguf", new Uint8Array(4)), one, sink, o), { outType: "Q8_0" }],
    [(o) => readAdapter(memoryFolder(smallAdapter()), o), { rank: "4" }],
    [(o) => writeAdapter(adapter, "loralib", sink, o), { alpha: "4" }],
    [(o) => writeAdapter(adapter, "gguf", sink, o), { allowLoss: 1 }],
    [(o) => loadAdapter(smallAdapter(), o), { allowPickle: "no" }],
    [(o) => toPlainLora(adapter, o), { weightOf: [] }],
  ];
  for (const [call, options] of calls) {
    const refusal = { name: "TypeError", message: /^Cannot \w.* with \w+ .*: expected / };
    await assert.rejects(call({ ...size, ...options } as never), refusal, JSON.stringify(options));
  }
  assert.equal(sink.files.size, 0);
  const none = {
    name: "TypeError",
    message: 'Cannot read an adapter from the path "./a": expected folder("…") of ' +
      '"@lowrank/lora/fs", or file("….safetensors")',
  };
  await assert.rejects(readAdapter("./a" as never), none);
});

test("a write that fails leaves no folder that it made, wherever it fails", async () => {
  const place = mkdtempSync(join(tmpdir(), "lora-failed-"));
  try {
    const [base, adapter] = [memoryFolder(smallBase()), await loadAdapter(smallAdapter())];
    const out = () => folder(join(place, "new", "out"));
    const merging = mergeCheckpoint(base, [{ adapter, weight: 1e38 }], out(), { dtype: "f16" });
    await assert.rejects(merging, { name: "NumericError" });
    assert.deepEqual(readdirSync(place), []);
    for (let calls = 1; calls <= 3; calls++) {
      let left = calls;
      const signal = { throwIfAborted: () => assert.ok(--left > 0, "stopped") } as AbortSignal;
      await assert.rejects(saveAdapter(adapter, out(), { signal }), /stopped/);
      assert.deepEqual(readdirSync(place), [], `${calls}`);
    }
  } finally {
    rmSync(place, { recursive: true });
  }
});
