/**
 * Which adapters answer for which token: those of its sequence, with weight 0 those whose invocation has not come yet
 * (aLoRA): their updates wait, what they hold in full is there from the first token on, as in PEFT.
 *
 * @module
 */

import type { RowMix } from "../lora/selection.ts";

/**
 * Per adapter that waits for its invocation: the position from which it answers, for each sequence. Infinity is never.
 */
export type AdapterStarts = ReadonlyMap<string, readonly number[]>;

/**
 * Finds where an adapter begins: at the last occurrence of its invocation tokens.
 *
 * @param ids The prompt.
 * @param tokens The invocation.
 * @returns The position of its first token; Infinity where the prompt has none.
 */
export function findStart(ids: ArrayLike<number>, tokens: readonly number[]): number {
  for (let start = ids.length - tokens.length; start >= 0; start--) {
    if (tokens.every((token, i) => ids[start + i] === token)) return start;
  }
  return Infinity;
}

/** From ranges of sequences to ranges of token rows, for `length` tokens of each that follow `pasts` others. */
export function tokenMixes(
  { mixes, starts }: { readonly mixes: readonly RowMix[]; readonly starts: AdapterStarts },
  { length, pasts }: { readonly length: number; readonly pasts: readonly number[] },
): RowMix[] {
  return mixes.flatMap(({ start, end, mix }): RowMix[] => {
    if (!mix.some(([name]) => starts.has(name))) return [{ start: start * length, end: end * length, mix }];
    const ranges: RowMix[] = [];
    for (let row = start; row < end; row++) {
      const startOf = (name: string) => Math.min(Math.max((starts.get(name)?.[row] ?? 0) - pasts[row]!, 0), length);
      const cuts = [...new Set([0, ...mix.map(([name]) => startOf(name)), length])].sort((a, b) => a - b);
      for (let i = 0; i + 1 < cuts.length; i++) {
        const own = mix.map(([name, weight]) => [name, startOf(name) <= cuts[i]! ? weight : 0] as const);
        ranges.push({ start: row * length + cuts[i]!, end: row * length + cuts[i + 1]!, mix: own });
      }
    }
    return ranges;
  });
}
