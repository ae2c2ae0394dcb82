/**
 * Which adapters answer for which rows: from what a caller writes to row ranges.
 *
 * @module
 */

import { MismatchError, NumericError, ShapeError } from "../errors.ts";

/**
 * One adapter by name, the base (`null`), or a mix of adapters with weights. A mix is applied in the order of its names;
 * where that matters (an adapter with a magnitude), no name may be an integer: JavaScript puts such keys first.
 */
export type AdapterChoice = string | null | Readonly<Record<string, number>>;

/** One choice for all rows, or an array with one per row. */
export type AdapterSelection = AdapterChoice | readonly AdapterChoice[];

/** Adapters with the weight of each; none is the base alone. */
export type Mix = readonly (readonly [name: string, weight: number])[];

/** A mix for the rows `start <= row < end`. */
export interface RowMix {
  /** First row. */
  readonly start: number;
  /** One past the last row. */
  readonly end: number;
  /** The adapters, in the order in which they are added. */
  readonly mix: Mix;
}

/** What {@linkcode resolveSelection} has to know. */
export interface SelectionOptions {
  /** How many rows a selection may name: rows of x, or sequences of a batch. */
  readonly rows: number;
  /** Rows of x for each row of the selection (the length of a sequence); 1 when absent. */
  readonly rowsPer?: number;
  /** The adapters that exist. */
  readonly known: { has(name: string): boolean; keys(): Iterable<string> };
}

/**
 * Resolves a choice into names and weights.
 *
 * @throws {MismatchError} If a name is unknown; the message lists the known ones.
 * @throws {NumericError} If a weight is not finite.
 * @throws {TypeError} If the choice is of another type.
 */
export function resolveChoice(choice: AdapterChoice, known: SelectionOptions["known"]): Mix {
  if (choice === null) return [];
  if (typeof choice !== "string" && !isPlainObject(choice)) {
    const found = typeof choice === "object" ? (choice as object).constructor?.name : typeof choice;
    throw new TypeError(`Cannot select adapters with a ${found}: expected a name, { name: weight } or null`);
  }
  const mix: Mix = typeof choice === "string" ? [[choice, 1]] : Object.entries(choice);
  for (const [name, weight] of mix) {
    if (!known.has(name)) throw unknownAdapter(name, [...known.keys()]);
    if (typeof weight !== "number") {
      throw new TypeError(`Cannot apply adapter "${name}" with a ${typeof weight} as weight: expected a number`);
    }
    if (!Number.isFinite(weight)) {
      const message = `Cannot apply adapter "${name}" with weight ${weight}: expected a finite number`;
      throw new NumericError(message, { field: name, found: weight });
    }
  }
  return mix.filter(([, weight]) => weight !== 0);
}

/**
 * Refuses a mix that is applied in another order than it may have been written.
 *
 * @throws {MismatchError} If there are several names, and one is an integer.
 */
export function requireOrder(mix: Mix): void {
  const integer = mix.find(([name]) => /^(0|[1-9][0-9]*)$/.test(name));
  if (mix.length < 2 || !integer) return;
  const message = `Cannot mix adapter "${integer[0]}" with others and a magnitude (DoRA), whose order matters`;
  throw new MismatchError(`${message}: JavaScript puts integer keys first, expected names that are no integers`, {
    field: "adapter",
    found: integer[0],
  });
}

/**
 * Resolves a selection into ascending row ranges; neighbours with the same mix become one range.
 *
 * @throws {ShapeError} If an array does not have one choice per row.
 * @throws {MismatchError} If a name is unknown.
 *
 * @example
 * ```ts
 * import { resolveSelection } from "@lowrank/lora";
 * import assert from "node:assert/strict";
 *
 * const known = new Set(["qa"]);
 * assert.deepEqual(resolveSelection(["qa", null], { rows: 2, rowsPer: 3, known }), [
 *   { start: 0, end: 3, mix: [["qa", 1]] },
 *   { start: 3, end: 6, mix: [] },
 * ]);
 * ```
 */
export function resolveSelection(selection: AdapterSelection | undefined, options: SelectionOptions): RowMix[] {
  const { rows, rowsPer = 1, known } = options;
  if (!isPerRow(selection)) return [{ start: 0, end: rows * rowsPer, mix: resolveChoice(selection ?? null, known) }];
  if (selection.length !== rows) {
    const message = `Cannot select adapters with ${selection.length} choices: expected ${rows}, one per row`;
    throw new ShapeError(message, { field: "adapter", found: selection.length, expected: rows });
  }
  const ranges: RowMix[] = [];
  selection.forEach((choice, row) => {
    const mix = resolveChoice(choice, known);
    const last = ranges.at(-1);
    const [start, end] = [row * rowsPer, (row + 1) * rowsPer];
    if (last && isSameMix(last.mix, mix)) ranges[ranges.length - 1] = { ...last, end };
    else ranges.push({ start, end, mix });
  });
  return ranges;
}

/** The mixes of the rows with these numbers, in their order; neighbours with the same mix become one range. */
export function takeMixes(mixes: readonly RowMix[], rows: ArrayLike<number>): RowMix[] {
  const taken: RowMix[] = [];
  for (let i = 0; i < rows.length; i++) {
    const mix = mixes.find(({ start, end }) => start <= rows[i]! && rows[i]! < end)?.mix ?? [];
    const last = taken.at(-1);
    if (last?.end === i && isSameMix(last.mix, mix)) taken[taken.length - 1] = { ...last, end: i + 1 };
    else taken.push({ start: i, end: i + 1, mix });
  }
  return taken;
}

/** A Map or another class has no entries of its own: it would choose the base without a word. */
function isPlainObject(value: unknown): boolean {
  if (typeof value !== "object" || value === null) return false;
  const prototype = Object.getPrototypeOf(value);
  return prototype === null || Object.getPrototypeOf(prototype) === null;
}

function isPerRow(selection: AdapterSelection | undefined): selection is readonly AdapterChoice[] {
  return Array.isArray(selection);
}

function isSameMix(first: Mix, second: Mix): boolean {
  return first.length === second.length &&
    first.every(([name, weight], i) => name === second[i]![0] && weight === second[i]![1]);
}

function unknownAdapter(name: string, known: readonly string[]): MismatchError {
  const list = known.length === 0 ? "none is loaded" : `expected one of ${known.map((k) => `"${k}"`).join(", ")}`;
  return new MismatchError(`Cannot apply adapter "${name}": ${list}`, {
    field: "adapter",
    found: name,
    expected: known,
  });
}
