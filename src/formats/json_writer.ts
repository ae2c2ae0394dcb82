import { NumericError } from "../errors.ts";
import { JsonNumber, type JsonValue } from "./json.ts";

/** Options of {@linkcode stringifyJson}. */
export interface JsonWriteOptions {
  /** Spaces per level; one line without any if absent. */
  readonly indent?: number;
  /** Whether keys are sorted by code points; file order if absent. */
  readonly sortKeys?: boolean;
}

/**
 * Compares two texts by code points, as Rust and Python do; JavaScript's own order differs above U+FFFF.
 *
 * @param a One text.
 * @param b The other.
 * @returns A negative number, 0 or a positive number, for sorting.
 */
export function compareCodePoints(a: string, b: string): number {
  const length = Math.min(a.length, b.length);
  for (let i = 0; i < length; i++) {
    const x = a.charCodeAt(i);
    const y = b.charCodeAt(i);
    if (x === y) continue;
    const isSurrogate = (c: number) => c >= 0xd800 && c <= 0xdfff;
    if (isSurrogate(x) !== isSurrogate(y)) return isSurrogate(x) ? 1 : -1;
    return x - y;
  }
  return a.length - b.length;
}

/**
 * Writes a JSON value exactly as Python's `json.dumps(value, indent=…, sort_keys=…)` does, ASCII only.
 *
 * Whole numbers are written as integers; a {@linkcode JsonNumber} is written as it was read, `0.0` for example.
 * Values nest as deep as the parser allows, so the writer may recurse.
 *
 * @param value The value.
 * @param options The layout.
 * @returns The text, without a line break at its end.
 * @throws {NumericError} If a number is NaN or infinite.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * const config = new Map([["r", 8], ["alpha", 16]]);
 * assert.equal(stringifyJson(config, { indent: 2, sortKeys: true }), '{\n  "alpha": 16,\n  "r": 8\n}');
 * ```
 */
export function stringifyJson(value: JsonValue, options: JsonWriteOptions = {}): string {
  return write(value, options, "\n", "");
}

function write(value: JsonValue, options: JsonWriteOptions, line: string, field: string): string {
  if (value === null || typeof value === "boolean") return String(value);
  if (typeof value === "string") return writeString(value);
  if (typeof value === "number") return writeNumber(value, field);
  if (value instanceof JsonNumber) return value.text;
  const inner = options.indent === undefined ? line : line + " ".repeat(options.indent);
  if (Array.isArray(value)) {
    return frame("[", "]", value.map((item) => write(item, options, inner, field)), options, line);
  }
  const keys = [...value.keys()];
  if (options.sortKeys) keys.sort(compareCodePoints);
  const members = keys.map((key) => `${writeString(key)}: ${write(value.get(key)!, options, inner, key)}`);
  return frame("{", "}", members, options, line);
}

function frame(open: string, close: string, items: string[], options: JsonWriteOptions, line: string): string {
  if (items.length === 0) return open + close;
  if (options.indent === undefined) return open + items.join(", ") + close;
  const inner = line + " ".repeat(options.indent);
  return open + inner + items.join("," + inner) + line + close;
}

function writeString(text: string): string {
  return JSON.stringify(text).replace(
    /[\u007f-\uffff]/g,
    (c) => c === "\u007f" ? c : `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
}

// Python writes an exponent of at least two digits, below 1e-4 and from 1e16 on; JavaScript below 1e-6 and from 1e21 on.
function writeNumber(value: number, field: string): string {
  if (!Number.isFinite(value)) {
    const found = field === "" ? String(value) : `${JSON.stringify(field)} = ${value}`;
    throw new NumericError(`Cannot write ${found} as JSON: expected a finite number`, { field, found: value });
  }
  if (Object.is(value, -0)) return "-0.0";
  if (Number.isSafeInteger(value)) return String(value);
  const [digits, exponent] = value.toExponential().split("e") as [string, string];
  const power = Number(exponent);
  if (power >= -4 && power < 16) return String(value);
  return `${digits}e${power < 0 ? "-" : "+"}${String(Math.abs(power)).padStart(2, "0")}`;
}
