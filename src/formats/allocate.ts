import { OutOfMemoryError } from "../errors.ts";
import { quote } from "./quote.ts";

/**
 * Memory for bytes whose number another machine tells.
 *
 * @param name The file or URL.
 * @param length Number of bytes.
 * @returns Zeros.
 * @throws {OutOfMemoryError} If there is no such memory.
 */
export function allocate(name: string, length: number): Uint8Array<ArrayBuffer> {
  try {
    return new Uint8Array(length);
  } catch (cause) {
    const message = `Cannot read ${quote(name)} with ${length} bytes at once: expected as many as there is memory for`;
    throw new OutOfMemoryError(message, { file: name, field: "length", found: length, cause });
  }
}
