/**
 * The types of options, for callers whose language does not check them: a text where a number is wanted compares as one
 * and is then computed with as a text.
 *
 * @module
 */

import { quote } from "./quote.ts";

/** What an option has to be: a type of JavaScript, or one of some texts. */
export type OptionType = "boolean" | "number" | "string" | "function" | "object" | readonly string[];

const ARTICLES: Readonly<Record<string, string>> = {
  boolean: "true or false",
  number: "a number",
  string: "a text",
  function: "a function",
  object: "an object",
};

/**
 * Checks the types of options; one that is undefined is absent. A signal is checked wherever there is one.
 *
 * @param action What could not be done, as in `Cannot <action> with rank "8"`.
 * @param options The options.
 * @param types The type of each.
 * @throws {TypeError} If one is of another type, or the options are no object.
 */
export function checkOptionTypes(action: string, options: object, types: Readonly<Record<string, OptionType>>): void {
  if (typeof options !== "object" || options === null) {
    throw new TypeError(`Cannot ${action} with options ${show(options)}: expected an object`);
  }
  const given = options as Readonly<Record<string, unknown>>;
  for (const [field, type] of Object.entries(types)) {
    const value = given[field];
    if (value === undefined || isOf(type, value)) continue;
    const expected = typeof type === "string" ? ARTICLES[type] : type.map(quote).join(", ");
    throw new TypeError(`Cannot ${action} with ${field} ${show(value)}: expected ${expected}`);
  }
  const { signal } = given;
  if (signal === undefined || typeof (signal as Partial<AbortSignal> | null)?.throwIfAborted === "function") return;
  throw new TypeError(`Cannot ${action} with signal ${show(signal)}: expected an AbortSignal`);
}

function isOf(type: OptionType, value: unknown): boolean {
  return typeof type === "string" ? typeof value === type && value !== null : type.includes(value as string);
}

function show(value: unknown): string {
  if (typeof value === "string") return quote(value);
  const isPlain = value === null || ["number", "boolean", "bigint"].includes(typeof value);
  return isPlain ? String(value) : `of type ${typeof value}`;
}
