/**
 * What an adapter may ask for that is not computed. A row goes when its kind is built.
 *
 * @module
 */

import { FormatError } from "../errors.ts";
import type { JsonValue } from "../formats/json.ts";
import { quote } from "../formats/quote.ts";

interface Unsupported {
  /** Field of the config. */
  readonly field: string;
  /** What it is. */
  readonly what: string;
  /** What a caller can do. */
  readonly remedy: string;
}

const UNSUPPORTED: readonly Unsupported[] = [
  {
    field: "arrow_config",
    what: "Arrow, which routes every token over several adapters",
    remedy: "serve it with PEFT: it cannot be merged",
  },
];

/**
 * Refuses a config that asks for what this version does not compute.
 *
 * @param raw The keys of the config.
 * @param file Name of the file.
 * @throws {FormatError} If it does; the message names the field and the remedy.
 */
export function refuseUnsupportedFields(raw: ReadonlyMap<string, JsonValue>, file: string): void {
  for (const { field, what, remedy } of UNSUPPORTED) {
    const found = raw.get(field) ?? null;
    // Python takes every value but these for true, so a value of the wrong type is refused too.
    if (found === null || found === false) continue;
    throw new FormatError(
      `Cannot load an adapter with ${quote(field)} set in ${quote(file)} (${what}): not supported yet, ${remedy}`,
      { code: "unsupported", file, field, found },
    );
  }
}
