import { LimitError } from "../errors.ts";
import type { TextNormalizer } from "./pre_tokenizer.ts";

/** A token that is found in the text before anything else is done to it. */
export interface AddedToken {
  readonly id: number;
  readonly content: string;
  readonly special: boolean;
  /** Matches only where no letter, digit or "_" touches it. */
  readonly singleWord: boolean;
  /** Takes the whitespace before it along. */
  readonly lstrip: boolean;
  /** Takes the whitespace after it along. */
  readonly rstrip: boolean;
  /** Is looked for in the normalised text. */
  readonly normalized: boolean;
}

/** A stretch of text between added tokens; `first`: it begins the whole text. */
export interface Stretch {
  readonly text: string;
  readonly first: boolean;
}

interface Node {
  readonly next: Map<string, Node>;
  token?: AddedToken;
}

/** Letters of all added tokens together; models with thousands of them have some 100,000. */
const MAX_LETTERS = 500_000;
/** Letters of tokens that are compared with a text, for each of its own: a long token may be met half at every letter. */
const COMPARED = 32;
const LEAST_COMPARED = 1_000_000;
const WORD_END = /[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]$/u;
const WORD_START = /^[\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]/u;
const SPACE = /^\p{White_Space}$/u;

/** Added tokens by their letters: the leftmost longest match wins, as in the Rust tokenizers. */
class Trie {
  readonly #root: Node = { next: new Map() };
  #left = 0;

  /** Begins with a text, for whose length it has so much patience. */
  begin(text: string): void {
    this.#left = LEAST_COMPARED + COMPARED * text.length;
  }

  add(content: string, token: AddedToken): void {
    let node = this.#root;
    for (const unit of content.split("")) {
      let next = node.next.get(unit);
      if (next === undefined) node.next.set(unit, next = { next: new Map() });
      node = next;
    }
    node.token = token;
  }

  /** The longest token at `start`, with its end. */
  match(text: string, start: number): { token: AddedToken; end: number } | null {
    let found = null;
    let node = this.#root.next.get(text.charAt(start));
    for (let at = start + 1; node !== undefined; at++) {
      if (--this.#left < 0) throw refuseComparing(text.length);
      if (node.token) found = { token: node.token, end: at };
      node = node.next.get(text.charAt(at));
    }
    return found;
  }
}

/** Finds added tokens in text. */
export class AddedTokens {
  readonly #raw: Trie = new Trie();
  readonly #normalized: Trie = new Trie();
  readonly #normalizer: TextNormalizer | null;
  /** Every special token as written. */
  readonly #special: Trie = new Trie();

  constructor(tokens: readonly AddedToken[], normalizer: TextNormalizer | null) {
    checkLength(tokens);
    this.#normalizer = normalizer;
    for (const token of tokens) {
      const content = token.normalized && normalizer ? normalizer.normalize(token.content) : token.content;
      (token.normalized ? this.#normalized : this.#raw).add(content, token);
      if (token.special) this.#special.add(token.content, token);
    }
  }

  /** The ids of the added tokens in `text`, and the normalised stretches between them. */
  *split(text: string, special: boolean): Generator<number | Stretch> {
    for (const part of cut(this.#raw, { text, first: true }, special)) {
      if (typeof part === "number") yield part;
      else {
        const normalized = this.#normalizer ? this.#normalizer.normalize(part.text) : part.text;
        yield* cut(this.#normalized, { text: normalized, first: part.first }, special);
      }
    }
  }

  /** `text` with `mark` after the first letter of every special token written in it, overlapping ones too. */
  breakSpecial(text: string, mark: string): string {
    this.#special.begin(text);
    let broken = "";
    let from = 0;
    for (let at = 0; at < text.length; at++) {
      if (this.#special.match(text, at) === null) continue;
      broken += text.slice(from, at + 1) + mark;
      from = at + 1;
    }
    return broken + text.slice(from);
  }
}

/** Every letter is a node, of some hundred bytes. */
function checkLength(tokens: readonly AddedToken[]): void {
  const length = tokens.reduce((sum, { content }) => sum + content.length, 0);
  if (length <= MAX_LETTERS) return;
  throw new LimitError(`Cannot read added tokens of ${length} characters together: expected at most ${MAX_LETTERS}`, {
    field: "added_tokens",
    limit: MAX_LETTERS,
    value: length,
  });
}

function refuseComparing(length: number): LimitError {
  const limit = LEAST_COMPARED + COMPARED * length;
  return new LimitError(
    `Cannot look for added tokens in a text of ${length} characters: expected at most ${limit} comparisons`,
    { field: "added_tokens", limit, value: limit + 1 },
  );
}

function* cut(trie: Trie, stretch: Stretch, special: boolean): Generator<number | Stretch> {
  const { text } = stretch;
  trie.begin(text);
  let from = 0;
  for (let at = 0; at < text.length;) {
    const match = trie.match(text, at);
    if (match === null) {
      at++;
      continue;
    }
    const { token } = match;
    if ((special || !token.special) && (!token.singleWord || isWord(text, at, match.end))) {
      const start = token.lstrip ? skipSpaceBack(text, at, from) : at;
      if (start > from) yield { text: text.slice(from, start), first: stretch.first && from === 0 };
      yield token.id;
      from = token.rstrip ? skipSpace(text, match.end) : match.end;
    }
    at = Math.max(match.end, from);
  }
  if (from < text.length) yield { text: text.slice(from), first: stretch.first && from === 0 };
}

function isWord(text: string, start: number, end: number): boolean {
  return !WORD_END.test(text.slice(Math.max(0, start - 2), start)) && !WORD_START.test(text.slice(end, end + 2));
}

function skipSpace(text: string, at: number): number {
  while (at < text.length && SPACE.test(text.charAt(at))) at++;
  return at;
}

function skipSpaceBack(text: string, at: number, from: number): number {
  while (at > from && SPACE.test(text.charAt(at - 1))) at--;
  return at;
}
