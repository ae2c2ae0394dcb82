/**
 * What the demo measures on `examples/models/tiny`, by the definitions of its README.
 *
 * @module
 */

import { readFileSync } from "node:fs";
import type { AdapterChoice } from "../src/lora/selection.ts";
import type { LanguageModel } from "../src/models/mod.ts";

/** A review and whether it praises. */
export interface Review {
  readonly text: string;
  readonly mood: "good" | "bad";
}

/** What transformers + PEFT compute in float32. */
export interface Expected {
  /** By adapter (or `"base"`), by kind of text. */
  readonly perplexity: Readonly<Record<string, Readonly<Record<string, number>>>>;
  /** Part of the reviews that are judged rightly, by adapter. */
  readonly accuracy: Readonly<Record<string, number>>;
  /** Likeliest tokens; the first `safe` of them have a clear winner. */
  readonly greedy: readonly {
    readonly adapter: string | null;
    readonly prompt: string;
    readonly promptIds: readonly number[];
    readonly tokens: readonly number[];
    readonly safe: number;
  }[];
}

/** `<|end|>`, which begins and ends every text of the tiny model. */
export const END = 0;
const TEXT_TOKENS = 96;
const REVIEW_TOKENS = 90;

/** Where the tiny model lies. */
export const TINY: URL = new URL("../examples/models/tiny/", import.meta.url);

function readJson<T>(name: string): T {
  return JSON.parse(readFileSync(new URL(name, TINY), "utf8"));
}

/** Unseen texts by kind: movies, products, news, tweets. */
export function readTexts(): Readonly<Record<string, readonly string[]>> {
  return readJson("texts.json");
}

/** Unseen reviews with their mood. */
export function readReviews(): readonly Review[] {
  return readJson("emotion.json");
}

/** The reference. */
export function readExpected(): Expected {
  return readJson("expected.json");
}

/** Ids of a text, as nothing but words. */
export function encodeWords(model: LanguageModel, text: string): number[] {
  if (!model.tokenizer) throw new Error("Cannot encode text: the model has no tokenizer");
  return model.tokenizer.encode(text, { special: false });
}

/** Ids of a whole text of the tiny model. */
export function encodeText(model: LanguageModel, text: string): number[] {
  return [END, ...encodeWords(model, text), END].slice(0, TEXT_TOKENS);
}

/** exp(sum of the losses / number of predicted tokens) over these texts. */
export async function perplexity(
  model: LanguageModel,
  texts: readonly (readonly number[])[],
  adapter: AdapterChoice | undefined,
): Promise<number> {
  let sum = 0;
  let count = 0;
  for (const losses of await model.loss(texts, { adapter })) {
    for (const loss of losses) sum += loss;
    count += losses.length;
  }
  return Math.exp(sum / count);
}

/** The mood that the model reads in each review: " good" or " bad", whichever is likelier after "\nMood:". */
export async function tellMoods(
  model: LanguageModel,
  reviews: readonly Review[],
  adapter: AdapterChoice | undefined,
): Promise<Review["mood"][]> {
  const [good = 0] = encodeWords(model, " good");
  const [bad = 0] = encodeWords(model, " bad");
  const question = encodeWords(model, "\nMood:");
  const moods: Review["mood"][] = [];
  for (const { text } of reviews) {
    const ids = [END, ...encodeWords(model, text).slice(0, REVIEW_TOKENS), ...question];
    const logits = await lastLogits(model, ids, adapter);
    moods.push((logits[good] ?? NaN) > (logits[bad] ?? NaN) ? "good" : "bad");
  }
  return moods;
}

/** Logits after the last id. */
export async function lastLogits(
  model: LanguageModel,
  ids: readonly number[],
  adapter: AdapterChoice | undefined,
): Promise<Float32Array> {
  const { shape, values } = await model.forward([ids], { adapter });
  return values.subarray(-shape[2]);
}

/** The likeliest tokens after a prompt. */
export async function greedyTokens(
  model: LanguageModel,
  prompt: string | readonly number[],
  adapter: AdapterChoice | undefined,
  maxNewTokens: number,
): Promise<readonly number[]> {
  const generation = model.generate(prompt, { adapter, maxNewTokens });
  for await (const _piece of generation);
  return generation.tokens;
}

/** Greatest |difference| over greatest |wanted|. */
export function relativeDifference(got: ArrayLike<number>, want: ArrayLike<number>): number {
  let difference = 0;
  let size = 0;
  for (let index = 0; index < want.length; index++) {
    difference = Math.max(difference, Math.abs((got[index] ?? NaN) - (want[index] ?? NaN)));
    size = Math.max(size, Math.abs(want[index] ?? NaN));
  }
  return difference / size;
}

/** The middle value. */
export function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[values.length >> 1] ?? NaN;
}

/** Time from the question to its first token, in ms. */
export async function firstTokenTime(
  model: LanguageModel,
  prompt: readonly number[],
  adapter: AdapterChoice | undefined,
): Promise<number> {
  const start = performance.now();
  await greedyTokens(model, prompt, adapter, 1);
  return performance.now() - start;
}

/** What a token after the first one costs. */
export interface DecodeTimes {
  readonly ms: number;
  readonly perSecond: number;
}

/** Median time of a token of an answer, the prompt's own time left out. */
export async function decodeTimes(
  model: LanguageModel,
  prompt: readonly number[],
  adapter: AdapterChoice | undefined,
  maxNewTokens: number,
): Promise<DecodeTimes> {
  const times: number[] = [];
  for (let round = 0; round < 3; round++) {
    let last: number | undefined;
    const onToken = () => {
      const now = performance.now();
      if (last !== undefined) times.push(now - last);
      last = now;
    };
    for await (const _piece of model.generate(prompt, { adapter, maxNewTokens, onToken }));
  }
  const ms = median(times);
  return { ms, perSecond: 1000 / ms };
}
