/**
 * Paths are strings, and folders are not: the slip of all who come from Python.
 *
 * @module
 */

import { quote } from "./quote.ts";

/** What a caller gave in place of a folder, as messages say it. */
function describePlace(place: unknown): string {
  return typeof place === "string" ? `the path ${quote(place)}` : `a ${typeof place}`;
}

/**
 * Checks that files can be read from what a caller gave.
 *
 * @param action What could not be done, as in `Cannot <action> from the path "…"`.
 * @param place What was given.
 * @param others What else than folders is taken.
 * @throws {TypeError} If it is no folder, nor another source.
 */
export function checkReadable(action: string, place: unknown, others = "urlFolder(url)"): void {
  const given = place as { open?: unknown; read?: unknown } | null | undefined;
  if (typeof given?.open === "function" || typeof given?.read === "function") return;
  const expected = `folder("…") of "@lowrank/lora/fs", or ${others}`;
  throw new TypeError(`Cannot ${action} from ${describePlace(place)}: expected ${expected}`);
}

/**
 * Checks that files can be written to what a caller gave.
 *
 * @param action What could not be done.
 * @param place What was given.
 * @throws {TypeError} If it takes no files.
 */
export function checkWritable(action: string, place: unknown): void {
  if (typeof (place as { create?: unknown } | null | undefined)?.create === "function") return;
  const expected = 'folder("…") of "@lowrank/lora/fs", or memorySink()';
  throw new TypeError(`Cannot ${action} to ${describePlace(place)}: expected ${expected}`);
}
