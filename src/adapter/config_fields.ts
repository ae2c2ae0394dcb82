import { FormatError, LimitError } from "../errors.ts";
import { JsonNumber, type JsonValue } from "../formats/json.ts";
import { stringifyJson } from "../formats/json_writer.ts";
import { quote } from "../formats/quote.ts";

/** Typed access to the fields of an adapter config; every refusal names file and field. An absent field is null. */
export class ConfigFields {
  /** Name of the file. */
  readonly file: string;
  /** Entries that a list or map may hold. */
  readonly maxEntries: number;
  readonly #raw: ReadonlyMap<string, JsonValue>;
  readonly #options: ReadonlyMap<string, string> | undefined;

  /**
   * Wraps parsed keys; lists and maps may hold `maxEntries` entries. Where the values are a caller's options, `options` has
   * their names by field, and errors speak of them.
   */
  constructor(
    raw: ReadonlyMap<string, JsonValue>,
    file: string,
    maxEntries: number,
    options?: ReadonlyMap<string, string>,
  ) {
    this.#raw = raw;
    this.file = file;
    this.maxEntries = maxEntries;
    this.#options = options;
  }

  /** Begins a message about a field; `what` says what its value is, where that is not plain. */
  cannot(field: string, value: string, what?: string): string {
    if (this.#options) return `Cannot create an adapter with ${this.#inOptions(field)} ${value}`;
    return `Cannot read ${quote(field)} of ${quote(this.file)} with ${what ? `${what} ` : ""}${value}`;
  }

  /** Where a field is, for an error. */
  place(field: string): { readonly file?: string; readonly field: string } {
    return this.#options ? { field: this.#inOptions(field) } : { file: this.file, field };
  }

  /** Makes the error for a field that is not as expected. */
  refuse(field: string, expected: string, found: JsonValue = this.#get(field)): FormatError {
    const wanted = this.#inOptions(expected);
    const message = `${this.cannot(field, show(found), "value")}: expected ${wanted}`;
    return new FormatError(message, { ...this.place(field), found, expected: wanted });
  }

  /** A text about fields, in the names of the options. */
  #inOptions(text: string): string {
    return this.#options ? text.replace(/\w+/g, (word) => this.#options?.get(word) ?? word) : text;
  }

  /** A truth value; false if absent. */
  boolean(field: string): boolean {
    const value = this.#get(field) ?? false;
    if (typeof value !== "boolean") throw this.refuse(field, "true or false");
    return value;
  }

  /** A text or null. */
  string(field: string): string | null {
    const value = this.#get(field);
    if (value !== null && typeof value !== "string") throw this.refuse(field, "a string or null");
    return value;
  }

  /** A number from 0 to 1; 0 if absent. */
  probability(field: string): number {
    const value = this.#get(field) ?? 0;
    const number = value instanceof JsonNumber ? value.value : value;
    if (typeof number !== "number" || !(number >= 0 && number <= 1)) throw this.refuse(field, "a number from 0 to 1");
    return number;
  }

  /** A list of names, one name or pattern, or null. */
  names(field: string): readonly string[] | string | null {
    const value = this.#get(field);
    if (value === null || typeof value === "string") return value;
    if (!Array.isArray(value)) throw this.refuse(field, "a list of names, a pattern or null");
    this.checkEntries(field, value.length);
    return value.map((item) => {
      if (typeof item !== "string") throw this.refuse(field, "names only", item);
      return item;
    });
  }

  /** A list of names or null; an empty list is null. */
  list(field: string): readonly string[] | null {
    const names = this.names(field);
    if (typeof names === "string") throw this.refuse(field, "a list of names or null");
    return names && names.length > 0 ? names : null;
  }

  /** A list of whole numbers from 0, one of them, or null. */
  indices(field: string): readonly number[] | null {
    const value = this.#get(field);
    if (Array.isArray(value)) this.checkEntries(field, value.length);
    return value === null ? null : this.readIndices(field, value);
  }

  /** A value as a list of whole numbers from 0. */
  readIndices(field: string, value: JsonValue): readonly number[] {
    const items = Array.isArray(value) ? value : [value];
    return items.map((item) => {
      if (typeof item === "number" && Number.isSafeInteger(item) && item >= 0) return item;
      throw this.refuse(field, "whole numbers from 0", item);
    });
  }

  /** A map of numbers, each read by `read`; empty if absent. */
  map(field: string, read: (value: JsonValue) => number): ReadonlyMap<string, number> {
    const value = this.#get(field) ?? new Map<string, JsonValue>();
    if (!(value instanceof Map)) throw this.refuse(field, "an object");
    this.checkEntries(field, value.size);
    return new Map([...value].map(([key, item]) => [key, read(item)]));
  }

  /** Refuses more entries than a list or map may hold. */
  checkEntries(field: string, value: number): void {
    if (value <= this.maxEntries) return;
    const message = `${this.cannot(field, `${value} entries`)}: expected at most ${this.maxEntries}`;
    throw new LimitError(message, { ...this.place(field), limit: this.maxEntries, value });
  }

  #get(field: string): JsonValue {
    return this.#raw.get(field) ?? null;
  }
}

function show(value: JsonValue): string {
  const text = typeof value === "number" ? String(value) : stringifyJson(value);
  return text.length > 80 ? `${text.slice(0, 80)}…` : text;
}
