/**
 * Checks of the token ids that callers pass.
 *
 * @module
 */

import { LimitError, ShapeError } from "../errors.ts";
import type { TransformerConfig } from "./transformer_config.ts";

type Sizes = Pick<TransformerConfig, "vocabSize" | "maxPositions">;

/**
 * Checks one sequence of ids.
 *
 * @param action What the ids are for, as messages say it.
 * @param ids The ids.
 * @param config The model's config.
 * @throws {ShapeError} If there is none.
 * @throws {LimitError} If they are more than the model's context.
 * @throws {RangeError} If one is no integer, or not in the vocabulary.
 * @throws {TypeError} If it is text.
 */
export function checkTokenIds(action: string, ids: readonly number[], config: Sizes): void {
  checkRow(action, ids);
  if (ids.length === 0) {
    const message = `Cannot ${action} with an empty prompt: expected at least one token`;
    throw new ShapeError(message, { field: "prompt", found: 0, expected: 1 });
  }
  if (ids.length > config.maxPositions) {
    const message = `Cannot ${action} with ${ids.length} tokens: the context of this model is ${config.maxPositions}`;
    throw new LimitError(message, { field: "prompt", limit: config.maxPositions, value: ids.length });
  }
  const at = ids.findIndex((id) => !Number.isInteger(id) || id < 0 || id >= config.vocabSize);
  if (at >= 0) {
    throw new RangeError(
      `Cannot ${action} with token ${ids[at]} at ${at}: expected an integer from 0 below ${config.vocabSize}`,
    );
  }
}

/** Refuses what is no list of ids. */
function checkRow(action: string, ids: unknown): void {
  if (typeof ids === "string") {
    throw new TypeError(`Cannot ${action} with text: expected its ids, as tokenizer.encode() gives them`);
  }
  if (typeof ids === "object" && ids !== null && "length" in ids) return;
  throw new TypeError(`Cannot ${action} with a row that is a ${typeof ids}: expected rows of token ids`);
}

/**
 * Puts rows of one length behind each other.
 *
 * @param action What the ids are for, as messages say it.
 * @param rows The sequences of the batch.
 * @param config The model's config.
 * @throws {ShapeError} If there are no rows, or of several lengths.
 */
export function flattenRows(action: string, rows: readonly (readonly number[])[], config: Sizes): Uint32Array {
  for (const row of rows) checkRow(action, row);
  const length = rows[0]?.length ?? 0;
  const other = rows.findIndex((row) => row.length !== length);
  if (other >= 0) {
    throw new ShapeError(
      `Cannot ${action} with rows of ${length} and ${rows[other]!.length} tokens: expected one length`,
      {
        field: "ids",
        found: rows[other]!.length,
        expected: length,
      },
    );
  }
  if (rows.length === 0) throw new ShapeError(`Cannot ${action} with no rows: expected at least one`, { field: "ids" });
  for (const row of rows) checkTokenIds(action, row, config);
  // Not flat(), which leaves typed arrays whole.
  const flat = new Uint32Array(rows.length * length);
  rows.forEach((row, i) => flat.set(row, i * length));
  return flat;
}
