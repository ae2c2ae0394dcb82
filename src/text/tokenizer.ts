/**
 * What a tokenizer is here: text to token ids and back.
 *
 * @module
 */

/** Options of {@linkcode Tokenizer.encode}. */
export interface EncodeOptions {
  /**
   * `true` (the default): special tokens written in the text get their ids, as in transformers. `false`: they stay
   * plain text, as with `split_special_tokens` in transformers; meant for text of strangers.
   */
  readonly special?: boolean;
  /**
   * `true`: adds what transformers' `tokenizer(text)` adds around a text, mostly the beginning-of-text token
   * (`add_special_tokens`). `false` (the default): adds nothing.
   */
  readonly addSpecial?: boolean;
}

/** Options of {@linkcode Tokenizer.decode} and {@linkcode Tokenizer.stream}. */
export interface DecodeOptions {
  /** Leaves special tokens out; `false` if absent. */
  readonly skipSpecial?: boolean;
}

/** One turn of a conversation. A template may read further members (`name`, `tool_calls`). */
export interface ChatMessage {
  /** Who speaks: "system", "user", "assistant" or what else the template knows. */
  readonly role: string;
  /** What is said. Special tokens in it stay plain text. */
  readonly content: string;
  /** Further JSON values for the template; special tokens in their strings stay plain text too. */
  readonly [key: string]: unknown;
}

/** Options of {@linkcode Tokenizer.chat}. */
export interface ChatOptions {
  /** Ends with the opening of the assistant's turn; `true` if absent. */
  readonly addGenerationPrompt?: boolean;
  /** Further JSON values for the template, as `tools` or `enable_thinking`. */
  readonly variables?: Readonly<Record<string, unknown>>;
  /** The time that the template's `strftime_now` tells; the present, in local time, if absent. */
  readonly now?: Date;
}

/** Turns ids into text one by one. */
export interface TextStream {
  /**
   * The text that `id` completes; empty while a character is unfinished.
   *
   * @throws {RangeError} If the id is not in the vocabulary.
   */
  push(id: number): string;
  /** The rest: an unfinished character becomes U+FFFD. The stream begins anew after it. */
  end(): string;
}

/** Text to token ids and back, and conversations to token ids. Holds nothing that has to be released. */
export interface Tokenizer {
  /** Largest id + 1. A model's embedding may have more rows. */
  readonly vocabSize: number;
  /** The beginning-of-text token. */
  readonly bosId: number | null;
  /** Every id at which generation stops, ascending. */
  readonly eosIds: readonly number[];
  /** Whether `encode(text, { addSpecial: true })` begins with `bosId`. */
  readonly addsBos: boolean;
  /** Jinja source of the chat template. */
  readonly chatTemplate: string | null;
  /**
   * Text to ids; equals transformers' `tokenizer(text, add_special_tokens=addSpecial)`.
   *
   * @throws {LimitError} If the text has more than 4,000,000 characters, or 1,000,000 in one word, or 1,000 marks on one
   * letter where the tokenizer normalizes.
   */
  encode(text: string, options?: EncodeOptions): number[];
  /**
   * Ids to text; equals transformers' `decode` (without the optional clean-up of spaces). Bytes that are not UTF-8
   * become U+FFFD. `stream()` gives the same text in pieces.
   *
   * @throws {RangeError} If an id is not in the vocabulary.
   */
  decode(ids: readonly number[], options?: DecodeOptions): string;
  /** A decoder for ids that come one by one: never emits half a character. */
  stream(options?: DecodeOptions): TextStream;
  /**
   * A conversation to ids by the chat template; equals transformers' `apply_chat_template`, except that special
   * tokens inside the messages stay plain text: nobody can write another role's turn. Tokens that the model's maker
   * did not mark as special ("<think>") are recognised there, as in transformers.
   *
   * @throws {FormatError} If there is no template, it does not parse, or it refuses the messages.
   * @throws {LimitError} If the template has more than 65,536 characters, or 1,000 white spaces in a row, or the text is
   * too long.
   */
  chat(messages: readonly ChatMessage[], options?: ChatOptions): number[];
}
