import { LimitError } from "../errors.ts";

/** Longest token, in UTF-16 units. */
const MAX_LENGTH = 256;

/**
 * The merges that a SentencePiece vocabulary with scores means, best first: every way to make a token of two others.
 * The order is that of transformers' conversion, so that ties fall alike.
 *
 * @param vocab Tokens and their ids.
 * @param scores By id.
 * @param skip Tokens that are never made by merging.
 * @returns Pairs, best first.
 * @throws {LimitError} If a token is too long.
 */
export function scoredMerges(
  vocab: ReadonlyMap<string, number>,
  scores: readonly number[],
  skip: ReadonlySet<string>,
): [string, string][] {
  checkLengths(vocab.keys());
  const merges: { pair: [string, string]; score: number; lengths: [number, number] }[] = [];
  for (const [token, id] of vocab) {
    if (skip.has(token)) continue;
    const pairs = splits(token).filter(([left, right]) =>
      vocab.has(left) && vocab.has(right) && !skip.has(left) && !skip.has(right)
    );
    pairs.sort((a, b) => vocab.get(a[0])! - vocab.get(b[0])! || vocab.get(a[1])! - vocab.get(b[1])!);
    for (const pair of pairs) {
      merges.push({ pair, score: scores[id]!, lengths: [characters(pair[0]), characters(pair[1])] });
    }
  }
  merges.sort((a, b) => b.score - a.score || b.lengths[0] - a.lengths[0] || b.lengths[1] - a.lengths[1]);
  return merges.map((merge) => merge.pair);
}

/** Cutting a token costs the square of its length; real ones have a few dozen letters. */
function checkLengths(tokens: Iterable<string>): void {
  let longest = 0;
  for (const token of tokens) longest = Math.max(longest, token.length);
  if (longest <= MAX_LENGTH) return;
  throw new LimitError(`Cannot read a token of ${longest} characters: expected at most ${MAX_LENGTH}`, {
    field: "tokenizer.ggml.tokens",
    limit: MAX_LENGTH,
    value: longest,
  });
}

/** Every way to cut a token in two, never inside a surrogate pair. */
function splits(token: string): [string, string][] {
  const cuts: [string, string][] = [];
  let at = 0;
  for (const character of token) {
    if (at > 0) cuts.push([token.slice(0, at), token.slice(at)]);
    at += character.length;
  }
  return cuts;
}

function characters(text: string): number {
  let count = 0;
  for (const _ of text) count++;
  return count;
}
