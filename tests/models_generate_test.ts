/** Text from a model, token by token. */
import { test } from "node:test";
import assert from "node:assert/strict";
import { DisposedError, LimitError, ShapeError } from "../src/errors.ts";
import { memoryFolder } from "../src/formats/memory.ts";
import { folder } from "../src/fs/mod.ts";
import { loadModel } from "../src/models/mod.ts";
import { openBackend } from "../src/open.ts";
import { fixture, generate, IDS, readFiles, withLlama } from "./models_support.ts";

const TINY = folder(new URL("../examples/models/tiny/base", import.meta.url));

test("generate() frees its cache when the loop is left early, and when it ends", async () => {
  await withLlama(async (model, backend) => {
    const streaming = await loadModel(TINY, { backend });
    const held = backend.bytes;
    for await (const _ of streaming.generate("<|end|>The movie", { maxNewTokens: 9 })) {
      assert.ok(backend.bytes > held);
      break;
    }
    assert.equal(backend.bytes, held);
    await generate(model, [5, 17], { maxNewTokens: 9 });
    assert.equal(backend.bytes, held);
  });
});

test("dispose() of a model frees the cache of a generation left open", async () => {
  const backend = await openBackend();
  const model = await loadModel(TINY, { backend });
  const open = model.generate("<|end|>The movie", { maxNewTokens: 9 })[Symbol.asyncIterator]();
  await open.next();
  model.dispose();
  assert.equal(backend.bytes, 0);
  await assert.rejects(open.next(), DisposedError);
  backend.dispose();
});

test("generate() stops at the end token, which is among the tokens and not in the text", async () => {
  const model = await loadModel(TINY, { dtype: "f32" });
  const seen: number[] = [];
  const { text, tokens } = await generate(model, "<|end|>The movie", {
    maxNewTokens: 200,
    onToken: (id) => seen.push(id),
  });
  assert.deepEqual(seen, tokens);
  const end = tokens.indexOf(0);
  assert.ok(end === -1 ? tokens.length === 200 : end === tokens.length - 1);
  assert.equal(text, model.tokenizer!.decode(tokens.filter((id) => id !== 0)));
  model.dispose();
});

test("generate() ends at the end of the context, its cache grown beyond its first room", async () => {
  await withLlama(async (model) => {
    const prompt = Array.from({ length: 100 }, (_, i) => 3 + i % 100);
    const { tokens, promptTokens } = await generate(model, prompt, { maxNewTokens: 1000, temperature: 1, seed: 4 });
    assert.equal(promptTokens, 100);
    if (tokens.at(-1) !== 2) assert.equal(tokens.length, 128 + 1 - 100);
    const full = Array.from({ length: 128 }, (_, i) => 3 + i % 100);
    assert.equal((await generate(model, full)).tokens.length, 1);
    assert.deepEqual((await generate(model, [5], { maxNewTokens: 0 })).tokens, []);
  });
});

test("generate() repeats sampled tokens for the same seed", async () => {
  await withLlama(async (model) => {
    const options = { temperature: 2, topK: 40, topP: 0.95, maxNewTokens: 20, adapter: { a: 0.5 } };
    const first = await generate(model, [5, 17], { ...options, seed: 1 });
    assert.deepEqual((await generate(model, [5, 17], { ...options, seed: 1 })).tokens, first.tokens);
    assert.notDeepEqual((await generate(model, [5, 17], { ...options, seed: 2 })).tokens, first.tokens);
  });
});

test("generate() and forward() reject with the reason of an aborted signal", async () => {
  await withLlama(async (model, backend) => {
    const held = backend.bytes;
    const reason = new Error("enough");
    const controller = new AbortController();
    const onToken = (): void => controller.abort(reason);
    const { signal } = controller;
    await assert.rejects(generate(model, [5, 17], { maxNewTokens: 50, onToken, signal }), reason);
    await assert.rejects(model.forward(IDS, { signal }), reason);
    await assert.rejects(model.loss(IDS, { signal }), reason);
    await assert.rejects(loadModel(fixture("base/llama"), { signal, backend }), reason);
    assert.equal(backend.bytes, held);
  });
});

test("generate() lets timers run between tokens", async () => {
  await withLlama(async (model) => {
    let ticks = 0;
    const timer = setInterval(() => ticks++, 1);
    const end = performance.now() + 200;
    const row = Array.from({ length: 120 }, () => 5);
    while (ticks === 0 && performance.now() < end) await generate(model, row, { maxNewTokens: 8 });
    clearInterval(timer);
    assert.ok(ticks > 0);
  });
});

test("a generation refuses to go on with an adapter that was unloaded, or after a merge", async () => {
  await withLlama(async (model) => {
    await model.loadAdapter("b", fixture("llama-rslora/adapter"));
    const unload = (): boolean => model.unloadAdapter("a");
    const first = generate(model, [5], { adapter: "a", maxNewTokens: 9, onToken: unload });
    await assert.rejects(first, /adapter "a" was unloaded meanwhile/);
    let merging: Promise<unknown> | undefined;
    const merge = (): void => void (merging ??= model.merge("b"));
    const second = generate(model, [5], { maxNewTokens: 9, onToken: merge });
    await assert.rejects(second, /merged or unmerged meanwhile/);
    await merging;
  });
});

test("forward() and generate() refuse ids and rows that are none", async () => {
  await withLlama(async (model) => {
    await assert.rejects(model.forward([]), ShapeError);
    await assert.rejects(model.forward([[]]), /empty prompt/);
    await assert.rejects(
      model.forward([[1, 2], [3]]),
      (error) => error instanceof ShapeError && /one length/.test(error.message),
    );
    for (const id of [131, -1, 1.5, NaN]) {
      await assert.rejects(model.forward([[1, id]]), { name: "RangeError", message: /token (131|-1|1.5|NaN) at 1/ });
      await assert.rejects(model.loss([[1, id]]), RangeError);
      assert.throws(() => model.generate([id]), RangeError);
    }
    assert.throws(() => model.generate([]), (error) => error instanceof ShapeError && error.field === "prompt");
    assert.throws(() => model.generate(Array.from({ length: 129 }, () => 1)), (error) => {
      assert(error instanceof LimitError);
      assert.deepEqual([error.value, error.limit], [129, 128]);
      assert.match(error.message, /129 tokens: the context of this model is 128/);
      return true;
    });
    assert.throws(() => model.generate("text"), /has no tokenizer/);
    assert.throws(() => model.generate([1], { chat: true }), TypeError);
    assert.throws(() => model.generate([1], { maxNewTokens: -1 }), RangeError);
    assert.throws(() => model.generate([1], { temperature: -1 }), RangeError);
    await assert.rejects(model.forward(IDS, { adapter: ["a", "a"] }), ShapeError);
  });
});

test("generate() begins a text with the beginning-of-text token where the tokenizer adds it, once", async () => {
  const files = await readFiles(TINY);
  const json = JSON.parse(new TextDecoder().decode(files.get("tokenizer.json")));
  json.post_processor.single.unshift({ SpecialToken: { id: "<|end|>", type_id: 0 } });
  json.post_processor.special_tokens = { "<|end|>": { id: "<|end|>", ids: [0], tokens: ["<|end|>"] } };
  files.set("tokenizer.json", new TextEncoder().encode(JSON.stringify(json)));
  const model = await loadModel(memoryFolder(files));
  const plain = model.tokenizer!.encode("The movie").length;
  assert.equal(model.generate("The movie").promptTokens, plain + 1);
  assert.equal(model.generate("<|end|>The movie").promptTokens, plain + 1);
  assert.throws(() => model.generate(""), ShapeError);
  model.dispose();
});

test("generate() with chat puts the prompt into the template, special tokens in it as plain text", async () => {
  const files = await readFiles(TINY);
  const template = "{% for m in messages %}<|end|>{{ m['content'] }}{% endfor %}";
  files.set("chat_template.jinja", new TextEncoder().encode(template));
  const model = await loadModel(memoryFolder(files));
  const words = model.tokenizer!.encode("hi<|end|>", { special: false });
  assert.equal(model.generate("hi<|end|>", { chat: true }).promptTokens, 1 + words.length);
  assert.ok(words.length > 2);
  model.dispose();
});
