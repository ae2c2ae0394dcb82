/**
 * The merges that a SentencePiece vocabulary with scores means, best first: every way to make a token of two others.
 * The order is that of transformers' conversion, so that ties fall alike.
 *
 * @param vocab Tokens and their ids.
 * @param scores By id.
 * @param skip Tokens that are never made by merging.
 * @returns Pairs, best first.
 */
export function scoredMerges(
  vocab: ReadonlyMap<string, number>,
  scores: readonly number[],
  skip: ReadonlySet<string>,
): [string, string][] {
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
