import type { Fields } from "./fields.ts";

/** Longest word that a file may ask to be taken apart, twice BERT's: the time grows with its square. */
const MAX_CHARACTERS = 200;

/** How words are taken apart by BERT's vocabularies. */
export interface WordPieceOptions {
  /** Begins every piece but the first of a word. */
  readonly prefix: string;
  /** A longer word is unknown. */
  readonly maxCharacters: number;
}

/**
 * Reads the numbers of a WordPiece model.
 *
 * @throws {FormatError} If one is out of its range, or there is no token for unknown words.
 */
export function wordPieceOptions(model: Fields): WordPieceOptions {
  const maxCharacters = model.get("max_input_chars_per_word") ?? 100;
  if (typeof maxCharacters !== "number" || !(maxCharacters >= 1 && maxCharacters <= MAX_CHARACTERS)) {
    throw model.refusal("max_input_chars_per_word", maxCharacters, `a number from 1 up to ${MAX_CHARACTERS}`);
  }
  if (model.text("unk_token") === null) throw model.refusal("unk_token", null, "a token of the vocabulary");
  return { prefix: model.text("continuing_subword_prefix") ?? "##", maxCharacters };
}

/**
 * Takes a word apart: always the longest piece of the vocabulary that comes next.
 *
 * @param word The word.
 * @param vocab Ids of the pieces.
 * @param options Prefix and longest word.
 * @returns Ids; null if the word has a part that is no piece, which makes all of it unknown.
 */
export function wordPieces(
  word: string,
  vocab: ReadonlyMap<string, number>,
  { prefix, maxCharacters }: WordPieceOptions,
): number[] | null {
  const characters = Array.from(word);
  if (characters.length > maxCharacters) return null;
  const ids: number[] = [];
  for (let start = 0; start < characters.length;) {
    let end = characters.length;
    let id: number | undefined;
    for (; end > start; end--) {
      id = vocab.get((start > 0 ? prefix : "") + characters.slice(start, end).join(""));
      if (id !== undefined) break;
    }
    if (id === undefined) return null;
    ids.push(id);
    start = end;
  }
  return ids;
}
