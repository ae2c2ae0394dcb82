/**
 * The zip files that torch writes: entries stored as they are, listed in one central directory. The directory decides;
 * each entry's own header must agree with it, and entries, directory and end record must fill the file without a gap,
 * so that no two readers can see two different archives.
 *
 * @module
 */

import { LimitError } from "../errors.ts";
import { quote } from "./quote.ts";
import { readExactly, type ReadOptions, type Source } from "./source.ts";
import { decodeUtf8 } from "./utf8.ts";
import { type Directory, ELSEWHERE, findDirectory, refuseZip as refuse, viewOf } from "./zip_end.ts";

/** One stored entry. */
export interface ZipEntry {
  /** Its exact name. */
  readonly name: string;
  /** First byte of its own header. */
  readonly offset: number;
  /** Bytes from there to the next entry or the directory: header, content and descriptor. */
  readonly span: number;
  /** Bytes of its content. */
  readonly size: number;
  /** Its flags: 8 (a descriptor follows the content), 0x800 (the name is UTF-8), both or none. */
  readonly flags: number;
  /** CRC-32 of the content as the directory has it; nothing checks the content against it. */
  readonly crc: number;
}

/** Options of {@linkcode readZipDirectory}. */
export interface ZipOptions extends ReadOptions {
  /** Most entries; 100,000 if absent. */
  readonly maxEntries?: number;
}

type DirectoryEntry = Omit<ZipEntry, "span">;

const CENTRAL = 0x02014b50;
const LOCAL = 0x04034b50;
const DESCRIPTOR = 0x08074b50;
const CENTRAL_SIZE = 46;
const LOCAL_SIZE = 30;
const HAS_DESCRIPTOR = 0x8;
const KNOWN_FLAGS = HAS_DESCRIPTOR | 0x800;
const ZIP64_EXTRA = 1;
const MAX_NAME = 4096;
const DEFAULT_MAX_ENTRIES = 100_000;

/**
 * Reads the central directory of a zip file; no content is read.
 *
 * @param source The file.
 * @param options A cap and a signal.
 * @returns The entries by name, in the order of the directory.
 * @throws {FormatError} If anything but stored, plainly named, distinct entries that fill the file is found.
 * @throws {LimitError} If there are more entries than the cap.
 */
export async function readZipDirectory(
  source: Source,
  options: ZipOptions = {},
): Promise<ReadonlyMap<string, ZipEntry>> {
  const size = await source.size(options);
  const directory = await findDirectory(source, size, options);
  const { maxEntries = DEFAULT_MAX_ENTRIES } = options;
  if (directory.count > maxEntries) {
    const message = `Cannot read ${quote(source.name)} with ${directory.count} zip entries: expected at most`;
    throw new LimitError(`${message} ${maxEntries}`, {
      file: source.name,
      field: "zip entries",
      limit: maxEntries,
      value: directory.count,
    });
  }
  if (directory.size > directory.count * (CENTRAL_SIZE + 2 * MAX_NAME)) {
    throw refuse(source, `a directory of ${directory.size} bytes`, `one for ${directory.count} entries`);
  }
  const bytes = await readExactly(source, directory.offset, directory.size, options);
  return withSpans(source, parseDirectory(source, bytes, directory), directory.offset);
}

/**
 * Reads the content of one entry, header and descriptor checked.
 *
 * @param source The file.
 * @param entry One of its entries.
 * @param options A signal.
 * @returns The content.
 * @throws {FormatError} If the entry's own header disagrees with the directory.
 */
export async function readZipEntry(source: Source, entry: ZipEntry, options: ReadOptions = {}): Promise<Uint8Array> {
  const span = await readExactly(source, entry.offset, entry.span, options);
  const view = viewOf(span);
  const agree = (what: string, found: number, expected: number) => {
    if (found === expected) return;
    const where = `${what} ${found} in the header of entry ${quote(entry.name)}`;
    throw refuse(source, where, `${expected}, as in its directory`);
  };
  agree("signature", view.getUint32(0, true), LOCAL);
  agree("flags", view.getUint16(6, true), entry.flags);
  agree("method", view.getUint16(8, true), 0);
  const hasDescriptor = (entry.flags & HAS_DESCRIPTOR) !== 0;
  const fields = [view.getUint32(14, true), view.getUint32(18, true), view.getUint32(22, true)];
  // Where a descriptor follows, writers leave these three empty.
  if (!hasDescriptor || fields.some((field) => field !== 0)) {
    agree("CRC", fields[0]!, entry.crc);
    for (const field of fields.slice(1)) if (field !== ELSEWHERE) agree("size", field, entry.size);
  }
  const nameLength = view.getUint16(26, true);
  const start = LOCAL_SIZE + nameLength + view.getUint16(28, true);
  const end = start + entry.size;
  if (end > entry.span) throw refuse(source, `entry ${quote(entry.name)} cut short`, `${entry.size} bytes`);
  const name = decodeUtf8(span.subarray(LOCAL_SIZE, LOCAL_SIZE + nameLength), source.name);
  if (name !== entry.name) throw refuse(source, `name ${quote(name)} in a header`, quote(entry.name));
  checkDescriptor(source, entry, span.subarray(end));
  return span.subarray(start, end);
}

function parseDirectory(source: Source, bytes: Uint8Array, { count, offset }: Directory): DirectoryEntry[] {
  const view = viewOf(bytes);
  const entries: DirectoryEntry[] = [];
  let at = 0;
  for (let i = 0; i < count; i++) {
    if (at + CENTRAL_SIZE > bytes.length || view.getUint32(at, true) !== CENTRAL) {
      throw refuse(source, `no directory entry at byte ${offset + at}`, `${count} zip entries`);
    }
    const nameEnd = at + CENTRAL_SIZE + view.getUint16(at + 28, true);
    const extraEnd = nameEnd + view.getUint16(at + 30, true);
    const end = extraEnd + view.getUint16(at + 32, true);
    if (end > bytes.length || nameEnd - at > CENTRAL_SIZE + MAX_NAME) {
      throw refuse(source, `a directory entry of ${end - at} bytes`, `at most ${bytes.length - at}`);
    }
    const name = plainName(source, bytes.subarray(at + CENTRAL_SIZE, nameEnd));
    const extra = new DataView(view.buffer, view.byteOffset + nameEnd, extraEnd - nameEnd);
    entries.push(parseEntry(source, name, new DataView(view.buffer, view.byteOffset + at, CENTRAL_SIZE), extra));
    at = end;
  }
  if (at !== bytes.length) throw refuse(source, `${bytes.length - at} bytes after its directory`, "none");
  return entries;
}

function parseEntry(source: Source, name: string, view: DataView, extra: DataView): DirectoryEntry {
  const flags = view.getUint16(8, true);
  const method = view.getUint16(10, true);
  if ((flags & ~KNOWN_FLAGS) !== 0 || method !== 0 || view.getUint16(34, true) !== 0) {
    const found = `flags ${flags} and method ${method} of entry ${quote(name)}`;
    throw refuse(source, found, "an entry stored as it is: not compressed, not encrypted");
  }
  const long = zip64Fields(extra);
  const field = (at: number): number => {
    const value = view.getUint32(at, true);
    if (value !== ELSEWHERE) return value;
    const next = long.shift();
    if (next !== undefined && next <= BigInt(Number.MAX_SAFE_INTEGER)) return Number(next);
    throw refuse(source, `entry ${quote(name)} with its size elsewhere`, "a zip64 field below 2^53 for it");
  };
  // The order of the 64-bit fields: size, stored size, offset.
  const size = field(24);
  const stored = field(20);
  const offset = field(42);
  if (size !== stored) throw refuse(source, `${stored} bytes stored of entry ${quote(name)}`, `its size, ${size}`);
  return { name, offset, size, flags, crc: view.getUint32(16, true) };
}

function zip64Fields(extra: DataView): bigint[] {
  for (let at = 0; at + 4 <= extra.byteLength;) {
    const length = extra.getUint16(at + 2, true);
    const end = Math.min(at + 4 + length, extra.byteLength);
    if (extra.getUint16(at, true) === ZIP64_EXTRA) {
      const fields: bigint[] = [];
      for (let field = at + 4; field + 8 <= end; field += 8) fields.push(extra.getBigUint64(field, true));
      return fields;
    }
    at = end;
  }
  return [];
}

function plainName(source: Source, bytes: Uint8Array): string {
  const name = decodeUtf8(bytes, source.name);
  const isPlain = name.split("/").every((part) => part !== "" && part !== "." && part !== "..");
  // deno-lint-ignore no-control-regex
  if (isPlain && !/[\x00-\x1f\x7f\\:]/.test(name)) return name;
  throw refuse(source, `a zip entry named ${quote(name)}`, "a plain relative path");
}

/** Gives every entry the bytes up to the next one; the first starts the file, and no two start at one place. */
function withSpans(source: Source, entries: DirectoryEntry[], end: number): ReadonlyMap<string, ZipEntry> {
  const ordered = entries.toSorted((a, b) => a.offset - b.offset);
  const spans = new Map<DirectoryEntry, number>();
  for (const [i, entry] of ordered.entries()) {
    const span = (ordered[i + 1]?.offset ?? end) - entry.offset;
    const least = LOCAL_SIZE + entry.size;
    if (span < least || (i === 0 && entry.offset !== 0)) {
      const found = `${span} bytes from byte ${entry.offset} for entry ${quote(entry.name)}`;
      throw refuse(source, found, `at least ${least}, and entries from byte 0 to ${end} without overlap`);
    }
    spans.set(entry, span);
  }
  const named = new Map<string, ZipEntry>();
  for (const entry of entries) {
    if (named.has(entry.name)) throw refuse(source, `two zip entries named ${quote(entry.name)}`, "every name once");
    named.set(entry.name, { ...entry, span: spans.get(entry)! });
  }
  return named;
}

/** What follows the content: nothing, or CRC and sizes of 32 or 64 bits with or without a signature. */
function checkDescriptor(source: Source, entry: ZipEntry, rest: Uint8Array): void {
  const view = viewOf(rest);
  const hasSignature = rest.length % 8 === 0 && rest.length > 0 && view.getUint32(0, true) === DESCRIPTOR;
  const at = hasSignature ? 4 : 0;
  const expected = (entry.flags & HAS_DESCRIPTOR) === 0 ? rest.length === 0 : isDescriptor(view, at, entry);
  if (expected) return;
  const found = `${rest.length} bytes after the content of entry ${quote(entry.name)}`;
  throw refuse(source, found, "only a descriptor that agrees with its directory");
}

function isDescriptor(view: DataView, at: number, { crc, size }: ZipEntry): boolean {
  const length = view.byteLength - at;
  if ((length !== 12 && length !== 20) || view.getUint32(at, true) !== crc) return false;
  const sizes = length === 12
    ? [view.getUint32(at + 4, true), view.getUint32(at + 8, true)]
    : [view.getBigUint64(at + 4, true), view.getBigUint64(at + 12, true)];
  return sizes.every((value) => BigInt(value) === BigInt(size));
}
