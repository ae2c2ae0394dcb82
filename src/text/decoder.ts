import { LimitError } from "../errors.ts";

/** How tokens become text. */
export type DecoderPlan =
  /** Tokens are words, or go on with one after a prefix (BERT). */
  | { readonly kind: "words"; readonly prefix: string; readonly cleanup: boolean }
  /** Every character of a token stands for one byte (GPT-2). */
  | { readonly kind: "bytes" }
  /** Tokens are text after replacements (SentencePiece). */
  | {
    readonly kind: "pieces";
    /** In each token, one after the other. */
    readonly replace: readonly (readonly [from: string, to: string])[];
    /** "<0x0A>" stands for a byte. */
    readonly byteFallback: boolean;
    /** Up to `count` characters `char` are taken off the start of the text. */
    readonly strip: { readonly char: string; readonly count: number } | null;
    /** This character is taken out of the first token. */
    readonly dropInFirst: string | null;
  };

/** Longest text of one token; in a file's vocabulary they are as long as a file. */
const MAX_TOKEN_TEXT = 1 << 22;

const BYTE_TOKEN = /^<0x([0-9A-Fa-f]{2})>$/;

/** The 256 characters that stand for bytes in byte-level vocabularies, by byte. */
function byteCharacters(): string[] {
  const printable = (byte: number) => (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(printable(byte) ? byte : next++));
}

/**
 * Makes the function that turns a token into its bytes by a table of characters.
 * A token with another character (an added token) is its own text, as in the Rust tokenizers.
 */
function byteLevel(): (token: string) => Uint8Array {
  const bytes = new Map(byteCharacters().map((character, byte) => [character, byte]));
  const encoder = new TextEncoder();
  return (token) => {
    const found = Array.from(token, (character) => bytes.get(character) ?? -1);
    return found.includes(-1) ? encoder.encode(token) : Uint8Array.from(found);
  };
}

/** Takes one token's text after the other. */
export interface TokenStream {
  push(token: string): string;
  end(): string;
}

/**
 * Makes what makes streams over tokens; ids that are not to be shown have already been left out.
 *
 * @param plan How tokens become text.
 * @returns Begins a stream.
 */
export function decoderOf(plan: DecoderPlan): () => TokenStream {
  if (plan.kind === "words") return () => new WordStream(plan);
  if (plan.kind === "pieces") return () => new PieceStream(plan);
  const bytesOf = byteLevel();
  return () => new ByteStream(bytesOf);
}

class ByteStream implements TokenStream {
  readonly #utf8 = new TextDecoder("utf-8", { ignoreBOM: true });
  readonly #bytesOf: (token: string) => Uint8Array;

  constructor(bytesOf: (token: string) => Uint8Array) {
    this.#bytesOf = bytesOf;
  }

  push(token: string): string {
    return this.#utf8.decode(this.#bytesOf(token), { stream: true });
  }

  end(): string {
    return this.#utf8.decode();
  }
}

/** What the Rust tokenizers take back of English text that was set apart. */
const CLEANUPS: readonly (readonly [from: string, to: string])[] = [
  ...[".", "?", "!", ",", "n't", "'m"].map((end) => [` ${end}`, end] as const),
  [" ' ", "'"],
  [" do not", " don't"],
  ...["'s", "'ve", "'re"].map((end) => [` ${end}`, end] as const),
];

class WordStream implements TokenStream {
  readonly #plan: DecoderPlan & { kind: "words" };
  #first = true;

  constructor(plan: DecoderPlan & { kind: "words" }) {
    this.#plan = plan;
  }

  push(token: string): string {
    const { prefix, cleanup } = this.#plan;
    const goesOn = prefix !== "" && token.startsWith(prefix);
    const text = this.#first ? token : goesOn ? token.slice(prefix.length) : ` ${token}`;
    this.#first = false;
    return cleanup ? CLEANUPS.reduce((changed, [from, to]) => changed.replaceAll(from, to), text) : text;
  }

  end(): string {
    this.#first = true;
    return "";
  }
}

/** A few steps that each replace a letter by several make any text as long as memory, and the engine ends the process. */
function checkGrowth(text: string): string {
  if (text.length <= MAX_TOKEN_TEXT) return text;
  throw new LimitError(`Cannot decode a token to ${text.length} characters: expected at most ${MAX_TOKEN_TEXT}`, {
    field: "decoder",
    limit: MAX_TOKEN_TEXT,
    value: text.length,
  });
}

class PieceStream implements TokenStream {
  readonly #plan: DecoderPlan & { kind: "pieces" };
  readonly #utf8 = new TextDecoder("utf-8", { ignoreBOM: true });
  #first = true;
  #toStrip: number;

  constructor(plan: DecoderPlan & { kind: "pieces" }) {
    this.#plan = plan;
    this.#toStrip = plan.strip?.count ?? 0;
  }

  push(token: string): string {
    const byte = this.#plan.byteFallback ? BYTE_TOKEN.exec(token) : null;
    if (byte) {
      this.#first = false;
      return this.#strip(this.#utf8.decode(Uint8Array.of(parseInt(byte[1]!, 16)), { stream: true }));
    }
    let text = token;
    const { dropInFirst, replace } = this.#plan;
    if (this.#first && dropInFirst !== null) text = text.replaceAll(dropInFirst, "");
    for (const [from, to] of replace) text = checkGrowth(text.split(from).join(to));
    this.#first = false;
    return this.#strip(this.#utf8.decode() + text);
  }

  end(): string {
    const rest = this.#strip(this.#utf8.decode());
    this.#first = true;
    this.#toStrip = this.#plan.strip?.count ?? 0;
    return rest;
  }

  #strip(text: string): string {
    if (this.#toStrip === 0 || text === "") return text;
    const char = this.#plan.strip!.char;
    let start = 0;
    while (this.#toStrip > 0 && text.startsWith(char, start)) {
      start += char.length;
      this.#toStrip--;
    }
    if (start < text.length) this.#toStrip = 0;
    return text.slice(start);
  }
}
