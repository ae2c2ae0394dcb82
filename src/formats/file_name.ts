import { FormatError } from "../errors.ts";
import { quote } from "./quote.ts";

/**
 * Lets a plain file name pass: one path segment that means the same in a folder, in a URL and on every platform.
 *
 * Slashes, backslashes, percent signs, colons, control characters and `..` are refused before any path or URL is
 * built, because `new URL` resolves `%2e%2e` and `..\` to the parent without a word.
 *
 * @param name The name, undecoded.
 * @param folder Name of the folder it is for, for error messages.
 * @returns The same name.
 * @throws {FormatError} If it is anything but a plain name.
 */
export function plainFileName(name: string, folder: string): string {
  // deno-lint-ignore no-control-regex
  const unsafe = /[\u0000-\u001f\u007f/\\%:*?"<>|#]|\.\.|^\.?$|^ |[ .]$/;
  if (name.length > 255 || unsafe.test(name) || !name.isWellFormed()) {
    throw new FormatError(`Cannot open ${quote(name)} in ${quote(folder)}: expected a plain file name`, {
      file: folder,
      field: "file name",
      found: name,
      expected: "one path segment",
    });
  }
  return name;
}
