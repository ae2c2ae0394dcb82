import { FormatError } from "../errors.ts";
import { quote } from "./quote.ts";

/** Makes a decoder that {@linkcode decodeUtf8} can use again: making one costs more than decoding a short text. */
export function strictDecoder(): TextDecoder {
  return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
}

/**
 * Decodes UTF-8 strictly: no replacement characters, and a byte order mark is kept (and then refused by the parser).
 *
 * @param bytes The bytes.
 * @param file Name of the file, for error messages.
 * @param decoder A strict decoder; a new one if absent.
 * @returns The text.
 * @throws {FormatError} If the bytes are not UTF-8.
 */
export function decodeUtf8(bytes: Uint8Array, file: string, decoder: TextDecoder = strictDecoder()): string {
  try {
    return decoder.decode(bytes);
  } catch (cause) {
    throw new FormatError(`Cannot read ${quote(file)} as text: expected UTF-8`, { file, expected: "UTF-8", cause });
  }
}
