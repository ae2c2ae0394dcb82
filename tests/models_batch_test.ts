/** Several prompts at once give what they give one by one. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { DisposedError, LimitError, MismatchError, ShapeError } from "../src/errors.ts";
import { memoryFolder } from "../src/formats/memory.ts";
import type { Folder } from "../src/formats/source.ts";
import { folder } from "../src/fs/mod.ts";
import { type GenerateBatchOptions, type LanguageModel, loadModel } from "../src/models/mod.ts";
import { openBackend } from "../src/open.ts";
import { forEachBackend, forEachBuild } from "./backends.ts";
import { fixture, generate, loadBase, readFiles, waitingAdapter, withLlama } from "./models_support.ts";

const TINY = folder(new URL("../examples/models/tiny/base", import.meta.url));
const PROMPTS = [[5, 17, 99, 4, 42, 7], [11], [3, 60, 61], [20, 21, 22]];

async function generateAll(
  model: LanguageModel,
  prompts: readonly (string | number[])[],
  options: GenerateBatchOptions,
): Promise<{ texts: string[]; tokens: readonly number[][] }> {
  const texts = prompts.map(() => "");
  const batch = model.generateBatch(prompts, options);
  for await (const { row, text } of batch) texts[row] += text;
  return { texts, tokens: batch.tokens };
}

forEachBackend("generateBatch() chooses what generate() chooses, each row by its adapter", async (backend) => {
  const cases = [["gpt2-lora-bias", "gpt2"], ["moe", "mixtral"], ["llama-dora", "llama"], ["qwen3-plain", "qwen3"]];
  // A GPU in software takes seconds for each.
  const some = backend.name === "webgpu" ? cases.slice(2, 3) : cases;
  for (const [name, base] of some as [string, string][]) {
    const model = await loadBase(backend, base);
    await model.loadAdapter("a", fixture(`${name}/adapter`));
    const adapter = ["a", null, "a", { a: 0.5 }];
    const { tokens } = await generateAll(model, PROMPTS, { adapter, maxNewTokens: 4 });
    // Measured behind the first pass, which leaves the norms of DoRA.
    const held = backend.bytes;
    for (const [row, prompt] of PROMPTS.entries()) {
      const alone = await generate(model, prompt, { adapter: adapter[row]!, maxNewTokens: 4 });
      assert.deepEqual(tokens[row], alone.tokens, `${name}, row ${row}`);
    }
    await generateAll(model, PROMPTS, { adapter, maxNewTokens: 1 });
    assert.equal(backend.bytes, held, `${name}: caches are freed`);
    model.dispose();
  }
});

/** The small Llama as a Mistral, whose tokens see four positions. */
async function windowed(): Promise<Folder> {
  const files = await readFiles(fixture("base/llama"));
  const config = JSON.parse(new TextDecoder().decode(files.get("config.json")));
  const json = { ...config, architectures: ["MistralForCausalLM"], model_type: "mistral", sliding_window: 4 };
  return memoryFolder(new Map([...files, ["config.json", new TextEncoder().encode(JSON.stringify(json))]]));
}

forEachBuild(
  "generateBatch() of integer weights and a narrow cache chooses what generate() chooses",
  async (backend) => {
    const prompts = [[5, 99, 4, 17, 42], [11], [99, 4, 3, 60, 61, 62, 63], [20, 99, 4], [7, 7], [8], [9, 10, 11, 12]];
    const adapter = ["a", null, "a", { a: 0.5, plain: 1 }, "plain", "a", null];
    for (const [dtype, cache] of [["int8", "f16"], ["int4", "int8"]] as const) {
      const model = await loadModel(await windowed(), { backend, dtype, cache });
      await model.loadAdapter("plain", fixture("llama-plain/adapter"));
      await model.loadAdapter("a", await waitingAdapter([99, 4]));
      for (const sampling of [{}, { temperature: 2, seed: 3 }]) {
        const options = { maxNewTokens: 12, ...sampling };
        const { tokens } = await generateAll(model, prompts, { ...options, adapter });
        for (const [row, prompt] of prompts.entries()) {
          const alone = await generate(model, prompt, { ...options, adapter: adapter[row]! });
          assert.deepEqual(tokens[row], alone.tokens, `${dtype}, row ${row}`);
        }
      }
      model.dispose();
    }
  },
);

test("every row of generateBatch() ends on its own, with its text, and draws as generate() does", async () => {
  const model = await loadModel(TINY, { dtype: "f32" });
  for (const name of ["news", "tweets"]) {
    await model.loadAdapter(name, folder(new URL(`../examples/models/tiny/${name}`, import.meta.url)));
  }
  const prompts = ["<|end|>The movie", "<|end|>Just", "<|end|>The", "<|end|>I"];
  const adapter = ["news", "tweets", null, "tweets"];
  for (const sampling of [{}, { temperature: 0.9, topK: 20, seed: 7 }]) {
    const seen: number[][] = prompts.map(() => []);
    const options = { maxNewTokens: 60, ...sampling };
    const onToken = (id: number, row: number) => seen[row]!.push(id);
    const { texts, tokens } = await generateAll(model, prompts, { ...options, adapter, onToken });
    assert.deepEqual(seen, tokens);
    for (const [row, prompt] of prompts.entries()) {
      const alone = await generate(model, prompt, { ...options, adapter: adapter[row]! });
      assert.deepEqual([tokens[row], texts[row]], [alone.tokens, alone.text], `row ${row}`);
    }
    assert.ok(new Set(tokens.map(({ length }) => length)).size > 1, "rows of several lengths");
  }
  model.dispose();
});

test("generateBatch() frees its caches when it is left, and when its model ends", async () => {
  const backend = await openBackend();
  const model = await loadModel(TINY, { backend });
  const held = backend.bytes;
  for await (const _ of model.generateBatch(["<|end|>The movie", "<|end|>I"], { maxNewTokens: 9 })) {
    assert.ok(backend.bytes > held);
    break;
  }
  assert.equal(backend.bytes, held);
  const open = model.generateBatch(["<|end|>The", "<|end|>I"])[Symbol.asyncIterator]();
  await open.next();
  model.dispose();
  assert.equal(backend.bytes, 0);
  await assert.rejects(open.next(), DisposedError);
  backend.dispose();
});

test("generateBatch() ends each row at the end of the context, and refuses what generate() refuses", async () => {
  await withLlama(async (model) => {
    const long = Array.from({ length: 126 }, (_, i) => 3 + i % 100);
    const { tokens } = await generateAll(model, [long, [5]], { maxNewTokens: 12, temperature: 1, seed: 4 });
    assert.ok(tokens[0]!.length <= 3 && (tokens[0]!.length === 3 || tokens[0]!.at(-1) === 2), String(tokens[0]));
    assert.ok(tokens[1]!.length === 12 || tokens[1]!.at(-1) === 2, String(tokens[1]));
    assert.deepEqual((await generateAll(model, [[5], [6]], { maxNewTokens: 0 })).tokens, [[], []]);
    assert.throws(() => model.generateBatch([]), ShapeError);
    assert.throws(() => model.generateBatch([[5], []]), ShapeError);
    assert.throws(() => model.generateBatch([[5], [6]], { adapter: [null] }), ShapeError);
    assert.throws(() => model.generateBatch([[5], [6]], { adapter: [null, "b"] }), MismatchError);
    assert.throws(() => model.generateBatch([[5], [...long, 1, 2, 3]]), LimitError);
    assert.throws(() => model.generateBatch([[5]], { maxNewTokens: 0.5 }), RangeError);
    const aborted = AbortSignal.abort(new Error("enough"));
    await assert.rejects(generateAll(model, [[5], [6]], { signal: aborted }), /enough/);
    const twice = model.generateBatch([[5]], { maxNewTokens: 1 });
    for await (const _ of twice);
    assert.throws(() => twice[Symbol.asyncIterator](), RangeError);
  });
});

test("rows of generateBatch() without a seed draw apart, with a seed alike", async () => {
  const model = await loadModel(TINY);
  const prompts = ["<|end|>The", "<|end|>The", "<|end|>The"];
  const [free, seeded] = [{ temperature: 2, maxNewTokens: 24 }, { temperature: 2, maxNewTokens: 24, seed: 3 }];
  assert.ok(new Set((await generateAll(model, prompts, free)).texts).size > 1);
  assert.equal(new Set((await generateAll(model, prompts, seeded)).texts).size, 1);
  model.dispose();
});

test("one text for generateBatch(), several for generate() and a bad row are refused by what was wanted", async () => {
  const model = await loadModel(TINY);
  assert.throws(() => model.generateBatch("The" as never), /a batch from string: expected an array of prompts/);
  assert.throws(() => model.generate(["The", "A"] as never), /several texts: expected one, or generateBatch\(\)/);
  assert.throws(() => model.generateBatch(["The", [2 ** 20]]), /generate row 1 with token 1048576 at 0/);
  model.dispose();
});
