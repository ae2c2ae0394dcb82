import { BPE, type PreTokenizer } from "@huggingface/tokenizers";
import { LimitError } from "../errors.ts";
import { type AddedToken, AddedTokens, type Stretch } from "./added_tokens.ts";
import { ChatTemplate } from "./chat_template.ts";
import { decoderOf, type DecoderPlan, type TokenStream } from "./decoder.ts";
import type { TextNormalizer } from "./pre_tokenizer.ts";
import { type WordPieceOptions, wordPieces } from "./word_piece.ts";
import type { ChatMessage, ChatOptions, DecodeOptions, EncodeOptions, TextStream, Tokenizer } from "./tokenizer.ts";

/** Longest text that is encoded, in UTF-16 units. */
const MAX_TEXT = 4_000_000;
/** Longest word; a word is merged as a whole, about 5 s for this one. */
const MAX_WORD = 1_000_000;

/** Everything that a tokenizer is made of, checked. */
export interface TokenizerParts {
  readonly vocab: ReadonlyMap<string, number>;
  readonly merges: [string, string][];
  readonly unkToken: string | null;
  readonly fuseUnk: boolean;
  readonly byteFallback: boolean;
  readonly ignoreMerges: boolean;
  /** Set where words are taken apart by their longest pieces, not by merges. */
  readonly wordPiece: WordPieceOptions | null;
  readonly normalizer: TextNormalizer | null;
  readonly preTokenizer: PreTokenizer | null;
  readonly decoder: DecoderPlan;
  readonly added: readonly AddedToken[];
  /** Ids that `addSpecial` puts before and after a text. */
  readonly prefix: readonly number[];
  readonly suffix: readonly number[];
  readonly bosId: number | null;
  readonly eosIds: readonly number[];
  readonly chatTemplate: string | null;
  /** What templates know by name: bos_token, eos_token and so on. */
  readonly templateTokens: Readonly<Record<string, string>>;
  /** File name for errors. */
  readonly file: string;
}

/** A tokenizer that encodes word by word, by byte pairs or by BERT's pieces. */
export class WordTokenizer implements Tokenizer {
  readonly vocabSize: number;
  readonly bosId: number | null;
  readonly eosIds: readonly number[];
  readonly addsBos: boolean;
  readonly chatTemplate: string | null;
  readonly #parts: TokenizerParts;
  readonly #model: BPE;
  readonly #added: AddedTokens;
  readonly #special: ReadonlySet<number>;
  readonly #tokens: readonly (string | undefined)[];
  readonly #newStream: () => TokenStream;
  #template: ChatTemplate | null = null;

  constructor(parts: TokenizerParts) {
    this.#parts = parts;
    this.#model = new BPE({
      type: "BPE",
      vocab: Object.fromEntries(parts.vocab),
      merges: parts.merges,
      unk_token: parts.unkToken,
      fuse_unk: parts.fuseUnk,
      byte_fallback: parts.byteFallback,
      ignore_merges: parts.ignoreMerges,
    });
    this.#added = new AddedTokens(parts.added, parts.normalizer);
    this.#special = new Set(parts.added.filter((token) => token.special).map((token) => token.id));
    const tokens: string[] = [];
    for (const [token, id] of parts.vocab) tokens[id] = token;
    for (const token of parts.added) tokens[token.id] = token.content;
    this.#tokens = tokens;
    this.#newStream = decoderOf(parts.decoder);
    this.vocabSize = tokens.length;
    this.bosId = parts.bosId;
    this.eosIds = [...new Set(parts.eosIds)].sort((a, b) => a - b);
    this.addsBos = parts.bosId !== null && parts.prefix[0] === parts.bosId;
    this.chatTemplate = parts.chatTemplate;
  }

  encode(text: string, options: EncodeOptions = {}): number[] {
    if (typeof text !== "string") throw new TypeError(`Cannot encode ${typeof text}: expected a string`);
    const ids = this.#encode(text, options.special ?? true);
    return options.addSpecial ? [...this.#parts.prefix, ...ids, ...this.#parts.suffix] : ids;
  }

  decode(ids: readonly number[], options: DecodeOptions = {}): string {
    const stream = this.stream(options);
    let text = "";
    for (const id of ids) text += stream.push(id);
    return text + stream.end();
  }

  stream(options: DecodeOptions = {}): TextStream {
    const skip = options.skipSpecial ?? false;
    const tokens = this.#newStream();
    return {
      push: (id) => {
        const token = this.#token(id);
        return skip && this.#special.has(id) ? "" : tokens.push(token);
      },
      end: () => tokens.end(),
    };
  }

  chat(messages: readonly ChatMessage[], options: ChatOptions = {}): number[] {
    this.#template ??= new ChatTemplate(this.chatTemplate, this.#parts.templateTokens, this.#parts.file);
    const { text, mark } = this.#template.render(messages, options, {
      breakSpecial: (content, mark) => this.#added.breakSpecial(content, mark),
      specials: (text) => this.#specials(text),
    });
    return this.#encode(text, true, mark);
  }

  /** The token of an id; empty for a gap in the vocabulary. */
  #token(id: number): string {
    if (Number.isInteger(id) && id >= 0 && id < this.vocabSize) return this.#tokens[id] ?? "";
    throw new RangeError(`Cannot decode token ${id}: the vocabulary has ${this.vocabSize} tokens`);
  }

  /** The special tokens recognised in `text`. */
  #specials(text: string): number[] {
    checkLength(text, MAX_TEXT, "a text");
    const ids = [...this.#added.split(text, true)].filter((part) => typeof part === "number");
    return ids.filter((id) => this.#special.has(id));
  }

  /** Encodes; `mark` is a character that keeps special tokens apart and is no part of the text. */
  #encode(text: string, special: boolean, mark: string | null = null): number[] {
    checkLength(text, MAX_TEXT, "a text");
    const ids: number[] = [];
    for (const part of this.#added.split(text, special)) {
      if (typeof part === "number") ids.push(part);
      else this.#encodeStretch(mark === null ? part : { ...part, text: part.text.replaceAll(mark, "") }, ids);
    }
    return ids;
  }

  #encodeStretch({ text, first }: Stretch, ids: number[]): void {
    if (text === "") return;
    for (const word of this.#words(text, first)) {
      checkLength(word, MAX_WORD, "a word");
      const found = this.#lookUp(word);
      // Merges may spell out a special token, which plain text never is.
      const plain = found.some((id) => this.#special.has(id) && id !== this.#model.unk_token_id);
      for (const id of plain ? Array.from(word).flatMap((character) => this.#lookUp(character)) : found) ids.push(id);
    }
  }

  #words(text: string, first: boolean): readonly string[] {
    const { preTokenizer } = this.#parts;
    try {
      return preTokenizer ? preTokenizer.pre_tokenize(text, { section_index: first ? 0 : 1 }) : [text];
    } catch (cause) {
      if (cause instanceof RangeError && !(cause instanceof LimitError)) {
        // The stack of V8's matcher holds some four million characters of one match.
        checkLength(text, MAX_WORD, "a word in a text", cause);
      }
      throw cause;
    }
  }

  #lookUp(word: string): number[] {
    const { tokens_to_ids, unk_token_id } = this.#model;
    const { vocab, wordPiece } = this.#parts;
    if (wordPiece) return wordPieces(word, vocab, wordPiece) ?? [unk_token_id!];
    const ids: number[] = [];
    for (const token of this.#model._call([word])) {
      const id = tokens_to_ids.get(token) ?? unk_token_id;
      if (id !== undefined) ids.push(id);
    }
    return ids;
  }
}

function checkLength(text: string, limit: number, what: string, cause?: unknown): void {
  if (text.length <= limit) return;
  throw new LimitError(`Cannot encode ${what} of ${text.length} characters: expected at most ${limit}`, {
    limit,
    value: text.length,
    cause,
  });
}
