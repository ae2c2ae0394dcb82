import { FormatError } from "../errors.ts";
import { quote } from "./quote.ts";
import { readExactly, type ReadOptions, type Source } from "./source.ts";

/** Where the central directory of a zip file lies. */
export interface Directory {
  /** Number of entries. */
  readonly count: number;
  /** First byte. */
  readonly offset: number;
  /** Bytes. */
  readonly size: number;
}

/** A 32-bit field whose value is in a 64-bit field elsewhere. */
export const ELSEWHERE = 0xffffffff;
const END = 0x06054b50;
const END64 = 0x06064b50;
const LOCATOR64 = 0x07064b50;
const END_SIZE = 22;
const LOCATOR_SIZE = 20;
const END64_SIZE = 56;

/**
 * Finds the central directory by the end record, which must be the last bytes of the file; torch adds the 64-bit one to
 * every file.
 *
 * @param source The file.
 * @param size Its size.
 * @param options A signal.
 * @returns The directory; it ends where the end records begin.
 * @throws {FormatError} If the end records are missing, misplaced or disagree.
 */
export async function findDirectory(source: Source, size: number, options: ReadOptions): Promise<Directory> {
  if (size < END_SIZE) throw refuseZip(source, `${size} bytes`, "a zip file");
  const tailSize = Math.min(size, END_SIZE + LOCATOR_SIZE + END64_SIZE);
  const tail = await readExactly(source, size - tailSize, tailSize, options);
  const view = viewOf(tail);
  const end = tailSize - END_SIZE;
  if (view.getUint32(end, true) !== END || view.getUint16(end + 20, true) !== 0) {
    throw refuseZip(source, "no zip directory at its end", "an end record without a comment");
  }
  const short = {
    disks: view.getUint32(end + 4, true),
    counts: [view.getUint16(end + 8, true), view.getUint16(end + 10, true)],
    size: view.getUint32(end + 12, true),
    offset: view.getUint32(end + 16, true),
  };
  const is64 = end >= LOCATOR_SIZE && view.getUint32(end - LOCATOR_SIZE, true) === LOCATOR64;
  const long = is64
    ? readEnd64(source, view, size)
    : { count: short.counts[0]!, size: short.size, offset: short.offset };
  const agrees = short.disks === 0 &&
    short.counts.every((count) => count === long.count || (is64 && count === 0xffff)) &&
    (short.size === long.size || (is64 && short.size === ELSEWHERE)) &&
    (short.offset === long.offset || (is64 && short.offset === ELSEWHERE));
  const expectedEnd = size - END_SIZE - (is64 ? LOCATOR_SIZE + END64_SIZE : 0);
  if (!agrees || long.offset + long.size !== expectedEnd) {
    const found = `a zip directory of ${long.count} entries in ${long.size} bytes at byte ${long.offset}`;
    throw refuseZip(source, found, `one that ends at byte ${expectedEnd}, the same in all end records`);
  }
  return long;
}

function readEnd64(source: Source, view: DataView, size: number): Directory {
  const locator = view.byteLength - END_SIZE - LOCATOR_SIZE;
  const record = locator - END64_SIZE;
  const position = BigInt(size - END_SIZE - LOCATOR_SIZE - END64_SIZE);
  const isHere = record >= 0 && view.getUint32(locator + 4, true) === 0 &&
    view.getBigUint64(locator + 8, true) === position && view.getUint32(locator + 16, true) === 1 &&
    view.getUint32(record, true) === END64 && view.getBigUint64(record + 4, true) === BigInt(END64_SIZE - 12) &&
    view.getBigUint64(record + 16, true) === 0n;
  if (!isHere) throw refuseZip(source, "a misplaced zip64 end record", `one of ${END64_SIZE} bytes before its locator`);
  const [here, all, length, offset] = [24, 32, 40, 48].map((at) => view.getBigUint64(record + at, true));
  if (here !== all) throw refuseZip(source, `${here} of ${all} zip entries in this file`, "all of them");
  for (const value of [all!, length!, offset!]) {
    if (value > BigInt(size)) throw refuseZip(source, `${value} in a zip64 end record`, `at most ${size}, its size`);
  }
  return { count: Number(all), size: Number(length), offset: Number(offset) };
}

/** Views bytes for reading numbers. */
export function viewOf(bytes: Uint8Array): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** Makes the error for a zip file that is not as expected. */
export function refuseZip(source: Source, found: string, expected: string): FormatError {
  return new FormatError(`Cannot read ${quote(source.name)} with ${found}: expected ${expected}`, {
    code: "zip",
    file: source.name,
    found,
    expected,
  });
}
