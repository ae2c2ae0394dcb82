/**
 * Strict JSON for untrusted headers and configs: iterative, so that depth costs no stack; duplicate keys,
 * lone surrogates and numbers that JavaScript cannot hold are refused; objects become maps in file order.
 *
 * @module
 */

import { FormatError, LimitError } from "../errors.ts";
import { quote } from "./quote.ts";

export { decodeUtf8 } from "./utf8.ts";

/** A number together with its text, where the text is not what JavaScript would write: `0.0`, `1e-05`, `-0`. */
export class JsonNumber {
  /** The number as written in the file. */
  readonly text: string;
  /** Its value, rounded to nearest. */
  readonly value: number;
  /** Keeps `text`, which must be a JSON number. */
  constructor(text: string) {
    this.text = text;
    this.value = Number(text);
  }
}

/** A parsed JSON value; {@linkcode JsonNumber} occurs only where `keepNumberText` asked for it. */
export type JsonValue = null | boolean | number | string | JsonNumber | JsonValue[] | Map<string, JsonValue>;

/** Options of {@linkcode parseJson}. */
export interface JsonOptions {
  /** Name of the file, for error messages. */
  readonly file: string;
  /** Deepest nesting of arrays and objects; 64 if absent. */
  readonly maxDepth?: number;
  /**
   * Keeps the text of numbers that would be written back differently, as {@linkcode JsonNumber}. Integers beyond
   * 2^53 - 1, refused otherwise, are then kept too.
   */
  readonly keepNumberText?: boolean;
}

type Container = JsonValue[] | Map<string, JsonValue>;

const DEFAULT_MAX_DEPTH = 64;
const LITERALS: ReadonlyMap<string, JsonValue> = new Map([["true", true], ["false", false], ["null", null]]);
const ESCAPES: ReadonlyMap<string, string> = new Map([
  ['"', '"'],
  ["\\", "\\"],
  ["/", "/"],
  ["b", "\b"],
  ["f", "\f"],
  ["n", "\n"],
  ["r", "\r"],
  ["t", "\t"],
]);
const QUOTE = 0x22;
const BACKSLASH = 0x5c;

/**
 * Parses a JSON text.
 *
 * @param text The text of one JSON value, with optional white space around it.
 * @param options The file name for errors, and limits.
 * @returns The value; objects are maps in file order.
 * @throws {FormatError} If the text is not strict JSON, repeats a key, holds a lone surrogate, or a number does not fit.
 * @throws {LimitError} If arrays and objects nest deeper than `maxDepth`.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * const config = parseJson('{"r": 8, "lora_alpha": 16}', { file: "adapter_config.json" });
 * assert.deepEqual(config, new Map([["r", 8], ["lora_alpha", 16]]));
 * ```
 */
export function parseJson(text: string, options: JsonOptions): JsonValue {
  return new JsonReader(text, options).read();
}

class JsonReader {
  readonly #text: string;
  readonly #file: string;
  readonly #maxDepth: number;
  readonly #keepNumberText: boolean;
  readonly #number = /-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?/y;
  readonly #open: Container[] = [];
  readonly #keys: string[] = [];
  #at = 0;

  constructor(text: string, options: JsonOptions) {
    this.#text = text;
    this.#file = options.file;
    this.#maxDepth = options.maxDepth ?? DEFAULT_MAX_DEPTH;
    this.#keepNumberText = options.keepNumberText ?? false;
  }

  read(): JsonValue {
    for (;;) {
      let value = this.#start();
      while (value !== undefined) {
        const container = this.#open.at(-1);
        if (container === undefined) return this.#end(value);
        value = this.#place(container, value);
      }
    }
  }

  /** Reads a scalar or an empty container; enters any other container and answers undefined. */
  #start(): JsonValue | undefined {
    const c = this.#peek();
    if (c === "{") return this.#enter(new Map(), "}");
    if (c === "[") return this.#enter([], "]");
    if (c === '"') return this.#string();
    if (c === "-" || (c >= "0" && c <= "9")) return this.#numeral();
    for (const [word, value] of LITERALS) {
      if (this.#text.startsWith(word, this.#at)) {
        this.#at += word.length;
        return value;
      }
    }
    throw this.#refuse("a value");
  }

  #enter(container: Container, close: string): Container | undefined {
    if (this.#open.length >= this.#maxDepth) {
      const message = `Cannot parse ${quote(this.#file)} of ${this.#maxDepth + 1} levels`;
      throw new LimitError(`${message}: expected at most ${this.#maxDepth}`, {
        file: this.#file,
        field: this.#position(),
        limit: this.#maxDepth,
        value: this.#maxDepth + 1,
      });
    }
    this.#at++;
    if (this.#peek() === close) {
      this.#at++;
      return container;
    }
    this.#open.push(container);
    if (container instanceof Map) this.#key(container);
    return undefined;
  }

  /** Puts a finished value into its container; answers the container if that ends it. */
  #place(container: Container, value: JsonValue): Container | undefined {
    const isMap = container instanceof Map;
    if (isMap) container.set(this.#keys.pop()!, value);
    else container.push(value);
    const c = this.#peek();
    const close = isMap ? "}" : "]";
    if (c !== "," && c !== close) throw this.#refuse(`"," or "${close}"`);
    this.#at++;
    if (c === ",") {
      if (isMap) this.#key(container);
      return undefined;
    }
    this.#open.pop();
    return container;
  }

  #key(container: Map<string, JsonValue>): void {
    if (this.#peek() !== '"') throw this.#refuse("a key in double quotes");
    const start = this.#at;
    const key = this.#string();
    if (container.has(key)) {
      this.#at = start;
      throw this.#refuse("every key once", key, `key ${quote(key)} a second time`);
    }
    if (this.#peek() !== ":") throw this.#refuse('":"');
    this.#at++;
    this.#keys.push(key);
  }

  #end(value: JsonValue): JsonValue {
    if (this.#peek() !== "") throw this.#refuse("the end of the text");
    return value;
  }

  #numeral(): JsonValue {
    return this.#shortInteger() ?? this.#anyNumber();
  }

  /** Integers of 1 to 15 digits, nearly all numbers of a header, without a regular expression: 1.3× (measured). */
  #shortInteger(): number | undefined {
    const text = this.#text;
    let value = 0;
    let at = this.#at;
    let c = text.charCodeAt(at);
    while (c >= 0x30 && c <= 0x39) {
      value = value * 10 + c - 0x30;
      c = text.charCodeAt(++at);
    }
    const digits = at - this.#at;
    const isLonger = c === 0x2e || c === 0x45 || c === 0x65;
    if (digits === 0 || digits > 15 || isLonger || (digits > 1 && text.charCodeAt(this.#at) === 0x30)) return undefined;
    this.#at = at;
    return value;
  }

  #anyNumber(): JsonValue {
    this.#number.lastIndex = this.#at;
    const text = this.#number.exec(this.#text)?.[0];
    if (text === undefined) throw this.#refuse("a number");
    const value = Number(text);
    const path = this.#keys.join(".");
    const found = `${path === "" ? "" : `${quote(path)} = `}${text.slice(0, 40)}`;
    if (!Number.isFinite(value)) throw this.#refuse("a number below 1.8e308", path || undefined, found);
    const keep = this.#keepNumberText && String(value) !== text;
    if (!keep && Number.isInteger(value) && !Number.isSafeInteger(value) && /^-?[0-9]+$/.test(text)) {
      throw this.#refuse("an integer of at most 2^53 - 1", path || undefined, found);
    }
    this.#at += text.length;
    return keep ? new JsonNumber(text) : value;
  }

  #string(): string {
    const start = ++this.#at;
    for (;;) {
      const c = this.#text.charCodeAt(this.#at);
      if (c === QUOTE) break;
      if (c === BACKSLASH) return this.#escapedString(start);
      if (!(c >= 0x20)) throw this.#refuse("a string without control characters, ended by a double quote");
      this.#at++;
    }
    return this.#wellFormed(this.#text.slice(start, this.#at++), start);
  }

  /** Goes on with a string at its first escape. */
  #escapedString(start: number): string {
    const parts = [this.#text.slice(start, this.#at)];
    for (;;) {
      const c = this.#text.charCodeAt(this.#at);
      if (c === QUOTE) break;
      if (!(c >= 0x20)) throw this.#refuse("a string without control characters, ended by a double quote");
      if (c === BACKSLASH) {
        parts.push(this.#escape());
      } else {
        const from = this.#at;
        while (this.#isPlain(this.#text.charCodeAt(this.#at))) this.#at++;
        parts.push(this.#text.slice(from, this.#at));
      }
    }
    this.#at++;
    return this.#wellFormed(parts.join(""), start);
  }

  #isPlain(c: number): boolean {
    return c >= 0x20 && c !== QUOTE && c !== BACKSLASH;
  }

  #escape(): string {
    const c = this.#text.charAt(this.#at + 1);
    if (c === "u") {
      const digits = this.#text.slice(this.#at + 2, this.#at + 6);
      if (!/^[0-9a-fA-F]{4}$/.test(digits)) throw this.#refuse("four hexadecimal digits after \\u");
      this.#at += 6;
      return String.fromCharCode(parseInt(digits, 16));
    }
    const plain = ESCAPES.get(c);
    if (plain === undefined) throw this.#refuse("an escape of JSON");
    this.#at += 2;
    return plain;
  }

  // Two names that differ only in a lone surrogate would be one name once encoded as UTF-8.
  #wellFormed(value: string, start: number): string {
    if (value.isWellFormed()) return value;
    this.#at = start;
    throw this.#refuse("surrogates in pairs", undefined, "a lone surrogate");
  }

  /** Skips white space and gives the next character, "" at the end. */
  #peek(): string {
    for (;;) {
      const c = this.#text.charCodeAt(this.#at);
      if (c !== 0x20 && c !== 0x0a && c !== 0x0d && c !== 0x09) return this.#text.charAt(this.#at);
      this.#at++;
    }
  }

  #position(): string {
    let [line, start] = [1, 0];
    for (let at = this.#text.indexOf("\n"); at >= 0 && at < this.#at; at = this.#text.indexOf("\n", start)) {
      line++;
      start = at + 1;
    }
    return `line ${line}, column ${this.#at - start + 1}`;
  }

  #refuse(expected: string, field?: string, what?: string): FormatError {
    const position = this.#position();
    const word = /^(?:-?Infinity|NaN|[\s\S])/u.exec(this.#text.slice(this.#at, this.#at + 10))?.[0];
    const found = what ?? (word === undefined ? "the end of the text" : quote(word));
    return new FormatError(`Cannot parse ${quote(this.#file)} with ${found} at ${position}: expected ${expected}`, {
      file: this.#file,
      field: field ?? position,
      found,
      expected,
    });
  }
}
