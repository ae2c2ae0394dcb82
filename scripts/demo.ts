#!/usr/bin/env -S deno run -A
/**
 * `deno task demo`: one base model, loaded once, answers through several adapters. Without options it is the small
 * model of `examples/models/tiny`, compared with what transformers + PEFT compute; with `--model PATH --adapter PATH …`
 * the user's own.
 *
 * @module
 */

import process from "node:process";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { adapterArguments, adapterMix, checkAdapterPath } from "../src/cli/arguments.ts";
import { choiceOption, numberOption } from "../src/cli/options.ts";
import { asUsageError, UsageError } from "../src/cli/command.ts";
import { file } from "../src/fs/mod.ts";
import { formatDuration, paint, print, tableWidth } from "../src/cli/terminal.ts";
import type { LanguageModel } from "../src/models/mod.ts";
import {
  encodeText,
  encodeWords,
  END,
  type Expected,
  greedyTokens,
  perplexity,
  readExpected,
  readReviews,
  readTexts,
  relativeDifference,
  tellMoods,
  TINY,
} from "./demo_measures.ts";
import {
  checkMerging,
  checkMixedBatch,
  Checks,
  choicesOf,
  cut,
  loadAll,
  type Prompt,
  right,
  section,
  showAnswers,
  showTable,
  showTimes,
  type Stage,
} from "./demo_sections.ts";

const HELP = `One base model, loaded once, answers through several adapters.

Usage: deno task demo [--model PATH] [--adapter PATH[=WEIGHT]]… [OPTION]…

  --model PATH          Hugging Face folder or .gguf file; without it: examples/models/tiny with its three adapters
  --adapter PATH        PEFT folder; repeat it for several, whose weights are those of the mix
  --prompt TEXT         prompt to answer; repeat it for several
  --chat                wrap the prompts in the model's chat template
  --text FILE           show the perplexity of the lines of this file
  --tokens N            new tokens of each answer (20)
  --dtype f32|bf16|f16  precision of the weights in memory (f32: merging rounds less)
`;

const OPTIONS = {
  model: { type: "string" },
  adapter: { type: "string", multiple: true, default: [] as string[] },
  prompt: { type: "string", multiple: true, default: [] as string[] },
  chat: { type: "boolean", default: false },
  text: { type: "string" },
  tokens: { type: "string" },
  dtype: { type: "string" },
  help: { type: "boolean", short: "h", default: false },
} as const;

const TINY_ADAPTERS = ["emotion", "news", "tweets"];
const TINY_MIX = { news: 0.5, tweets: 0.5 };
/** Reviews shown with their moods. */
const EXAMPLES = 4;
const TINY_PROMPTS = ["The movie", "This phone is", "I am so"];
const PROMPTS = ["The best thing about this phone is", "In this paper, we", "I could not believe"];
/** Logits of merged and unmerged weights, relative to the largest: rounding of the products, and of W' itself. */
// f16 has 3 bits more than bf16.
const TOLERANCE = { f32: 1e-4, bf16: 5e-2, f16: 5e-2 / 8 } as const;
const TEXT_TOKENS = 512;

type Options = ReturnType<typeof parseOptions>;

function parseOptions(args: string[]) {
  const { values } = parseArgs({ args, options: OPTIONS });
  return {
    ...values,
    tokens: numberOption(values.tokens, "tokens", { min: 2, whole: true }) ?? 20,
    dtype: choiceOption(values.dtype, "dtype", ["f32", "bf16", "f16"]) ?? "f32",
  };
}

function formatPercent(part: number): string {
  return `${(part * 100).toFixed(1)}%`;
}

/** Perplexity of every kind of text by every choice; returns the greatest relative difference from the reference. */
async function showPerplexity({ model, choices }: Stage, expected: Expected): Promise<number> {
  section("Perplexity of unseen texts", "how surprised a model is, lower is better; 100 texts of each kind");
  const kinds = Object.entries(readTexts());
  const texts = kinds.map(([, list]) => list.map((text) => encodeText(model, text)));
  const rows: string[][] = [];
  let difference = 0;
  for (const { name, adapter } of choices) {
    const got: number[] = [];
    for (const ids of texts) got.push(await perplexity(model, ids, adapter));
    rows.push([name, ...got.map((value) => value.toFixed(2))]);
    const reference = expected.perplexity[name];
    if (!reference) continue;
    const want = kinds.map(([kind]) => reference[kind] ?? NaN);
    rows.push(["  transformers + PEFT", ...want.map((value) => value.toFixed(2))]);
    for (const [at, value] of want.entries()) {
      difference = Math.max(difference, relativeDifference([got[at] ?? NaN], [value]));
    }
  }
  const least = kinds.map((_, at) => Math.min(...rows.map((row) => Number(row[at + 1]))));
  const isLeast = (row: number, column: number) => Number(rows[row]?.[column]) === least[column - 1];
  showTable([{ title: "" }, ...kinds.map(([kind]) => right(kind))], rows, isLeast);
  return difference;
}

/** How many moods base and emotion adapter tell rightly; returns the greatest difference in reviews. */
async function showMoods({ model }: Stage, expected: Expected): Promise<number> {
  section("Mood of unseen reviews", 'is " good" or " bad" likelier after the review and "\\nMood:"?');
  const reviews = readReviews();
  const examples = reviews.slice(0, EXAMPLES).map((
    { text, mood },
  ) => [cut(text, Math.min(70, tableWidth() - 24)), mood]);
  const rows: string[][] = [];
  let difference = 0;
  for (const [name, want] of Object.entries(expected.accuracy)) {
    const moods = await tellMoods(model, reviews, name === "base" ? null : name);
    for (const [index, example] of examples.entries()) example.push(moods[index] ?? "");
    const count = reviews.filter(({ mood }, index) => mood === moods[index]).length;
    rows.push([name, formatPercent(count / reviews.length), `${count} of ${reviews.length}`, formatPercent(want)]);
    difference = Math.max(difference, Math.abs(count - want * reviews.length));
  }
  showTable([{ title: "review" }, { title: "is" }, ...rows.map(([name = ""]) => ({ title: name }))], examples);
  print("\n");
  showTable([{ title: "" }, right("right"), right("reviews"), right("transformers + PEFT")], rows);
  return difference;
}

async function countReferenceTokens(model: LanguageModel, expected: Expected): Promise<[equal: number, all: number]> {
  let [equal, all] = [0, 0];
  for (const { adapter, promptIds, tokens, safe } of expected.greedy) {
    const got = await greedyTokens(model, promptIds, adapter, tokens.length);
    all += safe;
    equal += tokens.slice(0, safe).filter((id, at) => got[at] === id).length;
  }
  return [equal, all];
}

async function showTiny(options: Options, checks: Checks): Promise<void> {
  const adapters = adapterArguments(TINY_ADAPTERS.map((name) => fileURLToPath(new URL(name, TINY))));
  const model = await loadAll(fileURLToPath(new URL("base", TINY)), adapters, options.dtype);
  try {
    const prompts = TINY_PROMPTS.map((title) => ({ title, ids: [END, ...encodeWords(model, title)] }));
    const stage = { model, choices: choicesOf(adapters, TINY_MIX), prompts, tokens: options.tokens };
    const expected = readExpected();
    await showAnswers(stage);
    const perplexities = await showPerplexity(stage, expected);
    const moods = await showMoods(stage, expected);
    await showTimes(stage);
    section("Checks");
    const [equal, all] = await countReferenceTokens(model, expected);
    const same = `${equal} of ${all} tokens with a clear winner are those of transformers + PEFT`;
    checks.add(equal === all, same);
    checks.add(perplexities <= 1e-3, `so are the perplexities (within ${perplexities.toExponential(1)})`);
    checks.add(moods <= 1, `so are the moods (${Math.round(moods)} reviews told otherwise)`);
    await checkMixedBatch(stage, checks);
    await checkMerging(stage, TOLERANCE[options.dtype], checks);
  } finally {
    model.dispose();
  }
}

function encodePrompt(model: LanguageModel, title: string, chat: boolean): Prompt {
  const { tokenizer } = model;
  if (!tokenizer) throw new UsageError("Cannot show answers of a model without a tokenizer: none was found beside it");
  const ids = chat ? tokenizer.chat([{ role: "user", content: title }]) : tokenizer.encode(title, { addSpecial: true });
  return { title, ids };
}

async function readLines(path: string): Promise<string[]> {
  const source = file(path);
  const text = new TextDecoder().decode(await source.read(0, await source.size()));
  return text.split("\n").filter((line) => line.trim() !== "");
}

async function showTextPerplexity({ model, choices }: Stage, path: string, lines: readonly string[]): Promise<void> {
  const rows = lines.map((line) => encodePrompt(model, line, false).ids.slice(0, TEXT_TOKENS));
  const texts = rows.filter((ids) => ids.length > 1);
  section("Perplexity", `${texts.length} lines of ${cut(path, 60)}; lower is better`);
  const table: string[][] = [];
  for (const { name, adapter } of choices) {
    table.push([name, (await perplexity(model, texts, adapter)).toFixed(2)]);
  }
  showTable([{ title: "" }, right("perplexity")], table);
}

async function showOwn(path: string, options: Options, checks: Checks): Promise<void> {
  const adapters = adapterArguments(options.adapter);
  for (const adapter of adapters) await checkAdapterPath(adapter);
  const lines = options.text === undefined ? [] : await readLines(options.text);
  const model = await loadAll(path, adapters, options.dtype);
  try {
    const titles = options.prompt.length > 0 ? options.prompt : PROMPTS;
    const prompts = titles.map((title) => encodePrompt(model, title, options.chat));
    const stage = { model, choices: choicesOf(adapters, adapterMix(adapters)), prompts, tokens: options.tokens };
    await showAnswers(stage);
    if (options.text !== undefined) await showTextPerplexity(stage, options.text, lines);
    await showTimes(stage);
    if (adapters.length === 0) return;
    section("Checks");
    await checkMixedBatch(stage, checks);
    await checkMerging(stage, TOLERANCE[options.dtype], checks);
  } finally {
    model.dispose();
  }
}

async function main(args: string[]): Promise<number> {
  const start = performance.now();
  const options = parseOptions(args);
  if (options.help) return print(HELP), 0;
  if (options.model === undefined && options.adapter.length > 0) {
    throw new UsageError("Cannot show adapters without their base: --model is wanted");
  }
  const checks = new Checks();
  if (options.model === undefined) await showTiny(options, checks);
  else await showOwn(options.model, options, checks);
  const texts = "Texts: the human-rated snippets published with VADER (Hutto and Gilbert, ICWSM 2014; MIT licence).";
  print(`\n${options.model === undefined ? paint("dim", texts) + "\n" : ""}`);
  const verdict = checks.failed === 0
    ? paint("green", "All is as it should be")
    : paint("red", `${checks.failed} FAILED`);
  print(`${verdict}, in ${formatDuration(performance.now() - start)}.\n`);
  return checks.failed === 0 ? 0 : 1;
}

// Whoever reads a pipe may have seen enough.
process.stdout.on("error", () => process.exit(1));
main(process.argv.slice(2)).then((code) => {
  process.exitCode = code;
}, (error) => {
  const usage = asUsageError(error);
  const told = usage ?? error;
  print(`${told instanceof Error ? told.message : told}\n${usage ? "Try: deno task demo --help\n" : ""}`, "stderr");
  process.exitCode = usage ? 2 : 1;
});
