import { FormatError } from "../errors.ts";
import { plainFileName } from "../formats/file_name.ts";
import { quote } from "../formats/quote.ts";

/** Windows opens a device for these, whatever the extension. */
const DEVICE = /^(con|prn|aux|nul|com\d|lpt\d)(\.|$)/i;

/**
 * Returns a name that may come from an untrusted index or config, when it is a plain file name on every platform.
 *
 * @throws {FormatError} If it is not.
 */
export function checkPlainName(name: string, folder: string): string {
  if (!DEVICE.test(plainFileName(name, folder))) return name;
  throw new FormatError(`Cannot open ${quote(name)} in ${quote(folder)}: expected a file name, not a device's`, {
    file: folder,
    field: "file name",
    found: name,
  });
}

/** Whether a name in a listing can be opened. */
export function isPlainName(name: string): boolean {
  try {
    return checkPlainName(name, "") === name;
  } catch {
    return false;
  }
}
