/**
 * How a model reads the committed text: the loss of every token and the likeliest one, for comparisons of accuracy.
 *
 * @module
 */
import { readFileSync } from "node:fs";
import type { LanguageModel } from "../src/models/mod.ts";

const TEXT = new URL("./fixtures/text/village.txt", import.meta.url);
/** Lines that a model reads at once. */
const WINDOW = 12;

/** What a model said about each token. */
export interface Answers {
  /** Mean of −log p of the tokens that came. */
  readonly loss: number;
  /** The likeliest token after each. */
  readonly likeliest: readonly number[];
}

/** Reads the first lines of the text. */
export async function readAnswers(model: LanguageModel, lines: number): Promise<Answers> {
  const text = readFileSync(TEXT, "utf8").trim().split("\n").slice(0, lines);
  const losses: number[] = [];
  const likeliest: number[] = [];
  for (let first = 0; first < text.length; first += WINDOW) {
    const ids = [...model.tokenizer!.encode(`\n${text.slice(first, first + WINDOW).join("\n")}`)];
    const { shape: [, , vocabulary], values } = await model.forward([ids]);
    ids.forEach((_, i) => {
      const row = values.subarray(i * vocabulary, (i + 1) * vocabulary);
      const best = row.reduce((best, value, j) => value > row[best]! ? j : best, 0);
      likeliest.push(best);
      const next = ids[i + 1];
      if (next === undefined) return;
      const sum = row.reduce((total, value) => total + Math.exp(value - row[best]!), 0);
      losses.push(Math.log(sum) + row[best]! - row[next]!);
    });
  }
  return { loss: losses.reduce((sum, loss) => sum + loss, 0) / losses.length, likeliest };
}

/** The relative rise of perplexity, and the share of positions with the same likeliest token. */
export function compareAnswers(answers: Answers, truth: Answers): { perplexity: number; same: number } {
  const same = answers.likeliest.filter((token, i) => token === truth.likeliest[i]).length / truth.likeliest.length;
  return { perplexity: Math.exp(answers.loss - truth.loss) - 1, same };
}
