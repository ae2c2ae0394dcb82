/**
 * Fields of an untrusted JSON config, read one by one; every refusal names the file and the field.
 *
 * @module
 */

import { FormatError, LimitError } from "../errors.ts";
import type { JsonValue } from "../formats/json.ts";
import { quote } from "../formats/quote.ts";

/** What {@linkcode ConfigFields.integer} accepts. */
export interface IntegerRange {
  /** Least value; the default is 1. */
  readonly min?: number;
  /** Greatest value that is supported; above it the refusal is a `LimitError`. */
  readonly max: number;
  /** The value where the field is absent or null; without it the field is required. */
  readonly absent?: number;
}

/** What {@linkcode ConfigFields.positive} accepts. */
export interface PositiveOptions {
  /** The value where the field is absent or null; without it the field is required. */
  readonly absent?: number;
}

/** Reads the fields of one JSON object. */
export class ConfigFields {
  /** File that stands in messages. */
  readonly file: string;
  readonly #values: ReadonlyMap<string, JsonValue>;
  readonly #path: string;

  /** Reads `values`, found in `file` under the dotted `path`. */
  constructor(values: ReadonlyMap<string, JsonValue>, file: string, path: string = "") {
    this.file = file;
    this.#values = values;
    this.#path = path;
  }

  /** The value as it stands; null where the field is absent. */
  value(field: string): JsonValue {
    return this.#values.get(field) ?? null;
  }

  /**
   * Refuses a field's value.
   *
   * @throws {FormatError} Always.
   */
  refuse(field: string, expected: string): never {
    const found = this.value(field);
    throw new FormatError(`Cannot read ${this.#where(field)}: expected ${expected}`, {
      file: this.file,
      field: this.#path + field,
      found,
      expected,
    });
  }

  /**
   * A whole number.
   *
   * @throws {FormatError} If it is absent and required, is no integer, or is below `min`.
   * @throws {LimitError} If it is above `max`.
   */
  integer(field: string, range: IntegerRange): number {
    const found = this.value(field);
    if (found === null && range.absent !== undefined) return range.absent;
    const { min = 1, max } = range;
    if (typeof found !== "number" || !Number.isInteger(found) || found < min) {
      return this.refuse(field, `an integer of at least ${min}`);
    }
    if (found > max) {
      throw new LimitError(`Cannot read ${this.#where(field)}: expected at most ${max}`, {
        file: this.file,
        field: this.#path + field,
        limit: max,
        value: found,
      });
    }
    return found;
  }

  /**
   * A number above 0 and finite, as f32 too: that is what kernels compute with.
   *
   * @throws {FormatError} If it is absent and required, or is anything else.
   */
  positive(field: string, options: PositiveOptions = {}): number {
    const found = this.value(field);
    if (found === null && options.absent !== undefined) return options.absent;
    if (typeof found !== "number" || !(Math.fround(found) > 0) || Math.fround(found) === Infinity) {
      return this.refuse(field, "a number above 0 that is finite in 32 bits");
    }
    return found;
  }

  /**
   * True or false; `absent` where the field is absent or null.
   *
   * @throws {FormatError} If it is anything else.
   */
  flag(field: string, absent: boolean): boolean {
    const found = this.value(field) ?? absent;
    return typeof found === "boolean" ? found : this.refuse(field, "true or false");
  }

  /**
   * One of `choices`; `absent` where the field is absent or null.
   *
   * @throws {FormatError} If it is anything else.
   */
  choice<Choice extends string>(field: string, choices: readonly Choice[], absent?: Choice): Choice {
    const found = this.value(field) ?? absent;
    const choice = choices.find((candidate) => candidate === found);
    return choice ?? this.refuse(field, choices.map((each) => `"${each}"`).join(" or "));
  }

  /**
   * The name of GELU, or of its approximation by tanh: `"tanh"` for that, undefined for GELU itself.
   *
   * @throws {FormatError} If it is another activation.
   */
  gelu(field: string, absent: "gelu" | "gelu_new"): "tanh" | undefined {
    const names = ["gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu"] as const;
    return this.choice(field, names, absent) === "gelu" ? undefined : "tanh";
  }

  /**
   * Checks fields that change the mathematics: each is absent, null, or the only value supported.
   *
   * @throws {FormatError} If one has another value.
   */
  requireNeutral(values: readonly (readonly [field: string, value: JsonValue])[]): void {
    for (const [field, value] of values) {
      if ((this.value(field) ?? value) !== value) this.refuse(field, JSON.stringify(value));
    }
  }

  /**
   * A nested object; null where the field is absent or null.
   *
   * @throws {FormatError} If it is anything else.
   */
  object(field: string): ConfigFields | null {
    const found = this.value(field);
    if (found === null) return null;
    if (!(found instanceof Map)) return this.refuse(field, "an object");
    return new ConfigFields(found, this.file, `${this.#path}${field}.`);
  }

  /**
   * Token ids, written as one integer or as a list.
   *
   * @throws {FormatError} If it is anything else.
   */
  tokenIds(field: string): number[] {
    const found = this.value(field);
    if (found === null) return [];
    const ids: number[] = [];
    for (const id of Array.isArray(found) ? found : [found]) {
      if (typeof id !== "number" || !Number.isInteger(id) || id < 0) {
        return this.refuse(field, "token ids");
      }
      ids.push(id);
    }
    return ids;
  }

  #where(field: string): string {
    const found = this.value(field);
    const shown = found instanceof Map ? "an object" : JSON.stringify(found).slice(0, 80);
    return `${quote(this.file)} with "${this.#path}${field}" = ${shown}`;
  }
}
