import { FormatError } from "../errors.ts";

const PLAIN = /^[A-Za-z0-9_][A-Za-z0-9._+-]{0,254}$/;
/** Windows opens a device for these, whatever the extension. */
const DEVICE = /^(con|prn|aux|nul|com\d|lpt\d)(\.|$)/i;

/** Whether a name is one path segment, without links to parents, escapes or devices on any platform. */
export function isPlainName(name: string): boolean {
  return PLAIN.test(name) && !DEVICE.test(name) && !name.endsWith(".");
}

/**
 * Returns the name, which may come from an untrusted index or config.
 *
 * @throws {FormatError} If it is anything but a plain name.
 */
export function checkPlainName(name: string, folder: string): string {
  if (isPlainName(name)) return name;
  throw new FormatError(
    `Cannot open ${JSON.stringify(name)} in folder "${folder}": a plain file name without folders is wanted`,
    { file: folder, found: name },
  );
}
