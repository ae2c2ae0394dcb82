import { FormatError } from "../errors.ts";
import type { JsonValue } from "../formats/json.ts";
import { quote } from "../formats/quote.ts";

/** A JSON object of a file, read with checks: every refusal names the file and the field. */
export class Fields {
  readonly file: string;
  /** Path of this object in the file; empty for the whole. */
  readonly path: string;
  readonly #map: ReadonlyMap<string, JsonValue>;

  /** Takes a parsed value that must be an object. */
  constructor(value: JsonValue | undefined, file: string, path = "") {
    this.file = file;
    this.path = path;
    if (!(value instanceof Map)) throw this.refusal("", value, "an object");
    this.#map = value;
  }

  /** The value as parsed; null where there is none. */
  get(key: string): JsonValue {
    return this.#map.get(key) ?? null;
  }

  /** The object's keys, in file order. */
  keys(): string[] {
    return [...this.#map.keys()];
  }

  /** Text, or null where there is none. */
  text(key: string): string | null {
    return this.#typed<string>(key, "string", "text");
  }

  /** A flag, or `absent` where there is none. */
  flag(key: string, absent: boolean): boolean {
    return this.#typed<boolean>(key, "boolean", "true or false") ?? absent;
  }

  /** A list; empty where there is none. */
  list(key: string): readonly JsonValue[] {
    const value = this.get(key);
    if (value !== null && !Array.isArray(value)) throw this.refusal(key, value, "a list");
    return value ?? [];
  }

  /** An object, or null where there is none. */
  object(key: string): Fields | null {
    return this.get(key) === null ? null : new Fields(this.get(key), this.file, this.#at(key));
  }

  /** The objects of a list. */
  objects(key: string): Fields[] {
    return this.list(key).map((value, index) => new Fields(value, this.file, `${this.#at(key)}[${index}]`));
  }

  /** The error that says what was found in a field and what was wanted. */
  refusal(key: string, found: unknown, expected: string): FormatError {
    const field = this.#at(key);
    const shown = typeof found === "string" ? quote(found) : describe(found);
    const place = field === "" ? "" : ` in field "${field}"`;
    return new FormatError(`Cannot read ${quote(this.file)} with ${shown}${place}: expected ${expected}`, {
      file: this.file,
      field,
      found,
      expected,
    });
  }

  #at(key: string): string {
    return this.path === "" || key === "" ? this.path + key : `${this.path}.${key}`;
  }

  #typed<T>(key: string, type: "string" | "boolean", expected: string): T | null {
    const value = this.get(key);
    if (value !== null && typeof value !== type) throw this.refusal(key, value, expected);
    return value as T | null;
  }
}

function describe(value: unknown): string {
  if (value === undefined || value === null) return "nothing";
  if (Array.isArray(value)) return "a list";
  return typeof value === "object" ? "an object" : String(value);
}

/** A parsed value with plain objects in place of maps. */
export function plainJson(value: JsonValue): unknown {
  if (Array.isArray(value)) return value.map(plainJson);
  if (value instanceof Map) return Object.fromEntries([...value].map(([key, item]) => [key, plainJson(item)]));
  return value;
}
