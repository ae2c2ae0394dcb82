/** The small base model that ships with the examples, and its adapters, answer as transformers and PEFT do. */
import { test } from "node:test";
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { folder } from "../src/fs/mod.ts";
import { type LanguageModel, loadModel } from "../src/models/mod.ts";
import { generate } from "./models_support.ts";

const ROOT = new URL("../examples/models/tiny/", import.meta.url);
const ADAPTERS = ["news", "tweets", "emotion"];
const END = 0;
/** Bun gives a test five seconds, which a busy machine needs. */
const PATIENCE = { timeout: 120_000 };
/** Each adapter where it was trained, and the base everywhere: half of the table, which tells as much. */
const CELLS = [
  ["base", "movies"],
  ["base", "products"],
  ["base", "news"],
  ["base", "tweets"],
  ["news", "news"],
  ["tweets", "tweets"],
] as const;

interface Expected {
  readonly perplexity: Readonly<Record<string, Readonly<Record<string, number>>>>;
  readonly accuracy: Readonly<Record<string, number>>;
  readonly greedy: readonly { adapter: string | null; promptIds: number[]; tokens: number[]; safe: number }[];
}

function readJson<T>(name: string): T {
  return JSON.parse(readFileSync(new URL(name, ROOT), "utf8"));
}

async function loadTiny(): Promise<LanguageModel> {
  const model = await loadModel(folder(new URL("base", ROOT)), { dtype: "f32" });
  for (const name of ADAPTERS) await model.loadAdapter(name, folder(new URL(name, ROOT)));
  return model;
}

test("generate() chooses transformers' greedy tokens with the tiny model and its adapters", PATIENCE, async () => {
  const model = await loadTiny();
  const { greedy } = readJson<Expected>("expected.json");
  assert.equal(greedy.length, 16);
  for (const { adapter, promptIds, tokens, safe } of greedy) {
    const answer = await generate(model, promptIds, { adapter, maxNewTokens: 20 });
    assert.deepEqual(answer.tokens.slice(0, safe), tokens.slice(0, safe), `${adapter} after ${promptIds}`);
  }
  model.dispose();
});

test("loss() gives transformers' perplexities with the tiny model and its adapters", PATIENCE, async () => {
  const model = await loadTiny();
  const texts = readJson<Record<string, string[]>>("texts.json");
  const { perplexity } = readJson<Expected>("expected.json");
  for (const [name, kind] of CELLS) {
    const want = perplexity[name]![kind]!;
    const ids = texts[kind]!.map((text) => [END, ...model.tokenizer!.encode(text), END].slice(0, 96));
    const losses = await model.loss(ids, { adapter: name === "base" ? null : name });
    const sum = losses.reduce((total, row) => total + row.reduce((a, b) => a + b, 0), 0);
    const got = Math.exp(sum / losses.reduce((count, row) => count + row.length, 0));
    assert.ok(Math.abs(got - want) <= 1e-3 * want, `${name} on ${kind}: ${got}, not ${want}`);
  }
  model.dispose();
});

test("forward() tells moods apart as often as transformers does with the emotion adapter", PATIENCE, async () => {
  const model = await loadTiny();
  const reviews = readJson<{ text: string; mood: string }[]>("emotion.json");
  const [good, bad] = [" good", " bad"].map((mood) => model.tokenizer!.encode(mood)[0]!);
  const suffix = model.tokenizer!.encode("\nMood:");
  const { accuracy } = readJson<Expected>("expected.json");
  let right = 0;
  for (const { text, mood } of reviews) {
    const ids = [END, ...model.tokenizer!.encode(text).slice(0, 90), ...suffix];
    const { values } = await model.forward([ids], { adapter: "emotion" });
    const last = values.subarray(values.length - model.config.vocabSize);
    if ((last[good!]! > last[bad!]! ? "good" : "bad") === mood) right++;
  }
  assert.ok(Math.abs(right / reviews.length - accuracy.emotion!) < 0.005, `${right} of ${reviews.length}`);
  model.dispose();
});
