/** What every engine does with the model: the same prompts and lengths. */
import type { Job } from "./types.ts";

/** Tokens read at once. */
export const PREFILL_TOKENS = 512;

/** What reading them takes in its products: the layers have 106 million weights, and one row meets the head's 28. */
export const PREFILL_FLOP: number = 2 * (PREFILL_TOKENS * 106_168_320 + 28_311_552);

/** The prompt of what is decoded; its answer does not end early. */
export const DECODE_PROMPT: readonly number[] = [1, 2, 3, 4, 5, 6, 7, 8];

/** Tokens of one decoding, behind the first. */
export function decodeTokens({ quick }: Job): number {
  return quick ? 24 : 40;
}

/** Ids of ordinary tokens. */
export function prefillPrompt(): number[] {
  return Array.from({ length: PREFILL_TOKENS }, (_, index) => 100 + index * 7 % 4000);
}

/** The same number of tokens as a text, for engines that take nothing else: each of these words is a token. */
export function promptText(tokens: number): string {
  const words = ["the", "of", "and", "to", "in", "is", "that", "it", "was", "for"];
  return Array.from({ length: tokens }, (_, index) => words[(index * 7 + (index >> 3)) % words.length]).join(" ");
}
