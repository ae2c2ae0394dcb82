import { LimitError } from "../errors.ts";

/** Longest run of marks on one letter; Unicode's stream-safe text has 30. */
const MAX_MARKS = 1000;
/** Marks, and the two letters that NFKC and NFKD make marks of. */
const MARKS = /[\p{M}\uff9e\uff9f]+/gu;

/** What a text can be brought into. */
export type NormalForm = "NFC" | "NFD" | "NFKC" | "NFKD";

/**
 * Brings a text into a normal form of Unicode.
 *
 * @param text The text.
 * @param form The form.
 * @returns The text in it.
 * @throws {LimitError} If a letter has more than 1000 marks: engines sort them in the square of their number, a megabyte
 * of them for minutes.
 */
export function normalForm(text: string, form: NormalForm): string {
  for (const [marks] of text.matchAll(MARKS)) {
    if (marks.length <= MAX_MARKS) continue;
    const message = `Cannot normalize a text with ${marks.length} marks on one letter: expected at most ${MAX_MARKS}`;
    throw new LimitError(message, { field: "normalizer", limit: MAX_MARKS, value: marks.length });
  }
  return text.normalize(form);
}
