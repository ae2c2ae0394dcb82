/**
 * What the demo shows, section by section.
 *
 * @module
 */

import { relative } from "node:path";
import process from "node:process";
import { type AdapterArgument, modelArgument } from "../src/cli/arguments.ts";
import { Progress } from "../src/cli/progress.ts";
import { type Column, formatTable } from "../src/cli/table.ts";
import { formatBytes, formatCount, formatDuration, paint, print, printable, tableWidth } from "../src/cli/terminal.ts";
import type { AdapterChoice } from "../src/lora/selection.ts";
import { type LanguageModel, loadModel } from "../src/models/mod.ts";
import {
  type DecodeTimes,
  decodeTimes,
  firstTokenTime,
  greedyTokens,
  lastLogits,
  median,
  relativeDifference,
} from "./demo_measures.ts";

/** Columns that the demo fits in, where the terminal has them. */
const WIDTH = 100;
/** Large models need not be asked ten times. */
const SWAP_MS = 2000;

/** One way to answer. */
export interface Choice {
  readonly name: string;
  readonly adapter: AdapterChoice;
}

/** A prompt, and how it is written on the terminal. */
export interface Prompt {
  readonly title: string;
  readonly ids: readonly number[];
}

/** A model with its adapters, and what it is asked. */
export interface Stage {
  readonly model: LanguageModel;
  readonly choices: readonly Choice[];
  readonly prompts: readonly Prompt[];
  readonly tokens: number;
}

/** Shows what was checked, and counts what failed. */
export class Checks {
  failed = 0;

  add(passed: boolean, text: string): void {
    if (!passed) this.failed++;
    print(`  ${passed ? paint("green", "✓") : paint("red", "✗ FAILED:")} ${text}\n`);
  }
}

/** Begins a section. */
export function section(title: string, note = ""): void {
  print(`\n${paint(["bold", "cyan"], title)}${note && `  ${paint("dim", note)}`}\n\n`);
}

/** Shows a table: titles and lines that begin with "transformers" in grey, the cells to look at in green. */
export function showTable(
  columns: readonly Column[],
  rows: readonly (readonly string[])[],
  stands: (row: number, column: number) => boolean = () => false,
): void {
  const grey = (row: number) => row < 0 || rows[row]?.[0]?.trimStart().startsWith("transformers");
  const table = formatTable(columns, rows, (text, row, column) => {
    return grey(row) ? paint("dim", text) : stands(row, column) ? paint("green", text) : text;
  });
  print(table.replace(/^(?=.)/gm, "  "));
}

/** A column of numbers. */
export function right(title: string): Column {
  return { title, align: "right" };
}

/** One line of at most `width` characters. */
export function cut(text: string, width: number): string {
  const line = printable(text).replace(/\s+/g, " ");
  return line.length <= width ? line : `${line.slice(0, width - 1)}…`;
}

async function timed<T>(body: () => Promise<T>): Promise<[result: T, ms: number]> {
  const start = performance.now();
  const result = await body();
  return [result, performance.now() - start];
}

/** A mix in words: 0.5 news + 0.5 tweets. */
function formatMix(mix: Readonly<Record<string, number>>): string {
  return Object.entries(mix).map(([name, weight]) => `${weight} ${name}`).join(" + ");
}

/** The base, each adapter alone, and (of several) their mix. */
export function choicesOf(
  adapters: readonly AdapterArgument[],
  mix: Readonly<Record<string, number>> | null,
): Choice[] {
  return [
    { name: "base", adapter: null },
    ...adapters.map(({ name }) => ({ name, adapter: name })),
    ...(mix && adapters.length > 1 ? [{ name: "mix", adapter: mix }] : []),
  ];
}

/** Loads the base once and the adapters beside it, and shows what each took. */
export async function loadAll(
  path: string,
  adapters: readonly AdapterArgument[],
  dtype: "f32" | "bf16" | "f16",
): Promise<LanguageModel> {
  const progress = new Progress("Loading");
  const source = await modelArgument(path);
  const [model, ms] = await timed(() => loadModel(source, { dtype, onProgress: (state) => progress.update(state) }));
  progress.end();
  const { config, backend } = model;
  const size = formatBytes(backend.bytes);
  const place = relative(process.cwd(), path);
  const rows = [[
    place.length > 36 ? source.name : place,
    `${config.layers} layers, ${dtype}`,
    size,
    formatDuration(ms),
  ]];
  for (const { name, source } of adapters) {
    const before = backend.bytes;
    const [adapter, ms] = await timed(() => model.loadAdapter(name, source));
    const ranks = [...new Set(Array.from(adapter.modules.values(), ({ rank }) => rank))].join(", ");
    const what = `rank ${cut(ranks, 12)}, ${formatCount(adapter.parameters)} parameters`;
    rows.push([cut(name, 36), what, formatBytes(backend.bytes - before), formatDuration(ms)]);
  }
  section("Loaded", `backend ${backend.name} (${backend.info.variant}), ${backend.info.threads} thread; the base once`);
  showTable([{ title: "base, adapters" }, { title: "what" }, right("memory"), right("loaded in")], rows);
  return model;
}

/** The answers of every choice to every prompt. */
export async function showAnswers({ model, choices, prompts, tokens }: Stage): Promise<void> {
  const mix = choices.find(({ name }) => name === "mix")?.adapter;
  const note = mix && typeof mix === "object" ? `; mix: ${cut(formatMix(mix), 40)}` : "";
  section("The same prompts, answered by each", `the likeliest ${tokens} tokens${note}`);
  const width = Math.max(...choices.map(({ name }) => name.length));
  const columns = Math.min(WIDTH, tableWidth());
  for (const { title, ids } of prompts) {
    print(`  ${paint("bold", cut(title, columns - 4))}\n`);
    for (const { name, adapter } of choices) {
      const answer = await greedyTokens(model, ids, adapter, tokens);
      print(
        `    ${paint("cyan", name.padEnd(width))}  ${
          cut(model.tokenizer?.decode(answer) ?? "", columns - width - 7)
        }\n`,
      );
    }
  }
}

function rateCells({ ms, perSecond }: DecodeTimes): string[] {
  return [formatDuration(ms), perSecond.toFixed(0)];
}

/** What a swap and a token cost, unmerged and merged. The model is left unmerged. */
export async function showTimes({ model, choices, prompts, tokens }: Stage): Promise<void> {
  const named = choices.filter((choice) => typeof choice.adapter === "string");
  const [first] = named;
  const ids = prompts[0]?.ids ?? [];
  const rows = [["base alone", ...rateCells(await decodeTimes(model, ids, null, tokens))]];
  if (first) {
    rows.push([`${first.name}, unmerged`, ...rateCells(await decodeTimes(model, ids, first.adapter, tokens))]);
    const [, ms] = await timed(() => model.merge(first.adapter));
    rows.push([`${first.name}, merged`, ...rateCells(await decodeTimes(model, ids, undefined, tokens))]);
    const [, back] = await timed(() => Promise.resolve(model.unmerge()));
    section("Time", `merging ${first.name} took ${formatDuration(ms)}, unmerging ${formatDuration(back)}`);
  } else section("Time");
  showTable([{ title: "answer by" }, right("per token"), right("tokens/s")], rows);
  if (named.length > 0) await showSwap(model, ids, choices);
}

async function showSwap(model: LanguageModel, ids: readonly number[], choices: readonly Choice[]): Promise<void> {
  const same: number[] = [];
  const swapped: number[] = [];
  const start = performance.now();
  for (let round = 0; round < 10 && (round < 2 || performance.now() - start < SWAP_MS); round++) {
    for (const { adapter } of choices) {
      // The first answer comes after another adapter's, the second one after its own.
      swapped.push(await firstTokenTime(model, ids, adapter));
      same.push(await firstTokenTime(model, ids, adapter));
    }
  }
  const [again, swap] = [median(same), median(swapped)].map(formatDuration);
  print(`\n  Swap: the first token takes ${swap} after another adapter's answer, ${again} after its own.\n`);
}

/** Bits of the base's logits: all weights take part in them. */
async function fingerprint({ model, prompts }: Stage): Promise<Uint32Array[]> {
  const rows: Uint32Array[] = [];
  for (const { ids } of prompts) rows.push(new Uint32Array((await lastLogits(model, ids, null)).slice().buffer));
  return rows;
}

interface Answers {
  readonly tokens: (readonly number[])[];
  readonly logits: Float32Array[];
}

async function answersOf({ model, prompts, tokens }: Stage, adapter: AdapterChoice | undefined): Promise<Answers> {
  const answers: Answers = { tokens: [], logits: [] };
  for (const { ids } of prompts) {
    answers.tokens.push(await greedyTokens(model, ids, adapter, tokens));
    answers.logits.push(await lastLogits(model, ids, adapter));
  }
  return answers;
}

/** Merges every choice in turn: answers must stay the same, and unmerge must bring back every bit of the base. */
export async function checkMerging(stage: Stage, tolerance: number, checks: Checks): Promise<void> {
  const before = await fingerprint(stage);
  let [equal, all, difference, restored] = [0, 0, 0, true];
  for (const { adapter } of stage.choices.filter(({ adapter }) => adapter !== null)) {
    const unmerged = await answersOf(stage, adapter);
    await stage.model.merge(adapter);
    const merged = await answersOf(stage, undefined);
    stage.model.unmerge();
    const after = await fingerprint(stage);
    restored &&= before.every((row, at) => row.every((bits, index) => bits === after[at]?.[index]));
    for (const [at, want] of unmerged.logits.entries()) {
      difference = Math.max(difference, relativeDifference(merged.logits[at] ?? [], want));
      if (String(merged.tokens[at]) === String(unmerged.tokens[at])) equal++;
      all++;
    }
  }
  const same = `merged and unmerged give the same ${equal} of ${all} answers`;
  checks.add(difference <= tolerance, `${same} (logits within ${difference.toExponential(1)} of the largest)`);
  checks.add(restored, "unmerge restores every bit: the base's logits are what they were");
}

/** One batch whose rows name their own adapter gives what each row gives alone. */
export async function checkMixedBatch({ model, choices, prompts }: Stage, checks: Checks): Promise<void> {
  const ids = prompts[0]?.ids ?? [];
  const { shape, values } = await model.forward(choices.map(() => ids), {
    adapter: choices.map(({ adapter }) => adapter),
  });
  const stride = shape[1] * shape[2];
  let difference = 0;
  for (const [row, { adapter }] of choices.entries()) {
    const alone = await model.forward([ids], { adapter });
    const together = values.subarray(row * stride, (row + 1) * stride);
    difference = Math.max(difference, relativeDifference(together, alone.values));
  }
  const what = `one batch of ${choices.length} rows, each through its own adapter, gives what each gives alone`;
  checks.add(difference <= 1e-4, `${what} (within ${difference.toExponential(1)})`);
}
