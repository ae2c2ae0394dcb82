/**
 * Sequences of several lengths without their padding, the shortest first: no row is computed for padding, and sequences
 * of one length stay one batch.
 *
 * @module
 */

import { FormatError, ShapeError } from "../errors.ts";
import { type RowMix, takeMixes } from "../lora/selection.ts";
import { checkTokenIds } from "./token_ids.ts";

/** One sequence. */
export interface PackedSequence {
  /** Its number in the batch. */
  readonly row: number;
  /** Its first token among all. */
  readonly start: number;
  /** Where its tokens stand in its row, padding counted. */
  readonly positions: readonly number[];
}

/** Sequences of one length. */
export interface PackedGroup {
  /** Their first token among all. */
  readonly start: number;
  /** How many they are. */
  readonly batch: number;
  /** Tokens of each. */
  readonly length: number;
}

/** A batch without padding. */
export interface PackedRows {
  /** Its tokens. */
  readonly ids: Uint32Array;
  /** The position of each. */
  readonly positions: Uint32Array;
  /** Its sequences. */
  readonly sequences: readonly PackedSequence[];
  /** The same, those of one length together. */
  readonly groups: readonly PackedGroup[];
  /** Length of the longest row, padding counted. */
  readonly width: number;
}

/** What {@linkcode packRows} checks against. */
type Sizes = Parameters<typeof checkTokenIds>[2];

/**
 * Takes the padding out of a batch.
 *
 * @param action What the ids are for, as messages say it.
 * @param rows The sequences.
 * @param mask 1 for each token and 0 for padding, in the shape of the rows; no padding if absent.
 * @param config The model's config.
 * @returns The tokens.
 * @throws {ShapeError} If there are no rows, one has no token, or the mask has another shape.
 * @throws {FormatError} If the mask has another number.
 * @throws {LimitError} If a row is longer than the model's positions.
 */
export function packRows(
  action: string,
  rows: readonly (readonly number[])[],
  mask: readonly (readonly number[])[] | undefined,
  config: Sizes,
): PackedRows {
  if (rows.length === 0) throw new ShapeError(`Cannot ${action} with no rows: expected at least one`, { field: "ids" });
  for (const row of rows) checkTokenIds(action, row, config);
  if (mask) checkMask(action, rows, mask);
  const kept = rows.map((ids, row) => {
    return { row, positions: [...ids.keys()].filter((position) => mask === undefined || mask[row]![position] === 1) };
  });
  const sequences: PackedSequence[] = [];
  const groups: PackedGroup[] = [];
  let start = 0;
  for (const sequence of kept.toSorted((a, b) => a.positions.length - b.positions.length)) {
    const { length } = sequence.positions;
    const last = groups.at(-1);
    if (last?.length === length) groups[groups.length - 1] = { ...last, batch: last.batch + 1 };
    else groups.push({ start, batch: 1, length });
    sequences.push({ ...sequence, start });
    start += length;
  }
  return {
    ids: Uint32Array.from(sequences.flatMap(({ row, positions }) => positions.map((at) => rows[row]![at]!))),
    positions: Uint32Array.from(sequences.flatMap(({ positions }) => positions)),
    sequences,
    groups,
    width: rows.reduce((most, row) => Math.max(most, row.length), 0),
  };
}

function checkMask(
  action: string,
  rows: readonly (readonly number[])[],
  mask: readonly (readonly number[])[],
): void {
  if (mask.length !== rows.length) {
    const message = `Cannot ${action} with an attention mask of ${mask.length} rows: expected ${rows.length}`;
    throw new ShapeError(message, { field: "attentionMask", found: mask.length, expected: rows.length });
  }
  mask.forEach((marks, row) => {
    const what = `Cannot ${action} with row ${row} of the attention mask`;
    const { length } = rows[row]!;
    if (marks.length !== length) {
      const details = { field: "attentionMask", found: marks.length, expected: length };
      throw new ShapeError(`${what}, of ${marks.length} tokens: expected ${length}`, details);
    }
    const at = Array.from(marks).findIndex((mark) => mark !== 0 && mark !== 1);
    if (at >= 0) {
      const other = marks[at];
      const details = { field: "attentionMask", found: other, expected: "0 or 1" };
      throw new FormatError(`${what}, which has ${other}: expected 0 or 1`, details);
    }
    if (marks.includes(1)) return;
    throw new ShapeError(`${what}, which hides all of it: expected a token`, { field: "attentionMask", found: 0 });
  });
}

/** From ranges of sequences, in the order of the batch, to ranges of token rows. */
export function packMixes(mixes: readonly RowMix[], { sequences, ids }: PackedRows): RowMix[] {
  const startOf = (sequence: number) => sequences[sequence]?.start ?? ids.length;
  return takeMixes(mixes, sequences.map(({ row }) => row)).map(({ start, end, mix }) => {
    return { start: startOf(start), end: startOf(end), mix };
  });
}
