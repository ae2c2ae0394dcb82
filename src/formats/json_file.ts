import { LimitError } from "../errors.ts";
import { type JsonOptions, type JsonValue, parseJson } from "./json.ts";
import { quote } from "./quote.ts";
import { readExactly, type ReadOptions, type Source } from "./source.ts";
import { decodeUtf8 } from "./utf8.ts";

/**
 * Reads a whole UTF-8 text file, no larger than a cap.
 *
 * @param source The file.
 * @param options The cap in bytes, and a signal.
 * @returns The text.
 * @throws {LimitError} If the file is larger; nothing of it is read then.
 * @throws {FormatError} If it is not UTF-8.
 */
export async function readText(source: Source, options: ReadOptions & { readonly maxBytes: number }): Promise<string> {
  options.signal?.throwIfAborted();
  const size = await source.size(options);
  if (size > options.maxBytes) {
    throw new LimitError(`Cannot read ${quote(source.name)} of ${size} bytes: expected at most ${options.maxBytes}`, {
      file: source.name,
      field: "size",
      limit: options.maxBytes,
      value: size,
    });
  }
  return decodeUtf8(await readExactly(source, 0, size, options), source.name);
}

/**
 * Reads and parses a JSON file, no larger than a cap.
 *
 * @param source The file.
 * @param options The cap in bytes, a signal and the parser's options.
 * @returns The value; objects are maps in file order.
 * @throws {LimitError} If the file is larger, or nests deeper than `maxDepth`.
 * @throws {FormatError} If it is not strict JSON.
 */
export async function readJson(
  source: Source,
  options: ReadOptions & Omit<JsonOptions, "file"> & { readonly maxBytes: number },
): Promise<JsonValue> {
  return parseJson(await readText(source, options), { ...options, file: source.name });
}
