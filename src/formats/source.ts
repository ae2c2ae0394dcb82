/**
 * Bytes in and bytes out: what every reader and writer of this package works on.
 * Implementations for folders and files are in `@lowrank/lora/fs`; memory and URLs are here.
 *
 * @module
 */

import { IntegrityError } from "../errors.ts";
import { quote } from "./quote.ts";

/** Options of every call that waits for bytes. */
export interface ReadOptions {
  /** Aborts the call, which then rejects with `signal.reason`. */
  readonly signal?: AbortSignal;
}

/** One run of bytes that can be read by ranges: a file, a URL, a bucket object, an array. */
export interface Source {
  /** File name or URL without credentials; it stands in error messages. */
  readonly name: string;
  /** Length in bytes. */
  size(options?: ReadOptions): Promise<number>;
  /**
   * Reads exactly `length` bytes from `offset`.
   *
   * @throws {IntegrityError} If fewer bytes come, or the file changed since `size()` was first asked.
   */
  read(offset: number, length: number, options?: ReadOptions): Promise<Uint8Array>;
  /** A text that changes whenever the bytes do, as far as the place can tell; null where it cannot. */
  version?(options?: ReadOptions): Promise<string | null>;
  /** The same bytes through a handle that stays open until it is closed: faster for many reads in a row. */
  hold?(): Promise<HeldSource>;
}

/** A source that stays open. */
export interface HeldSource extends Source {
  /** Reads as many bytes from `offset` as `into` has. */
  readInto(offset: number, into: Uint8Array, options?: ReadOptions): Promise<void>;
  /** Closes it. A second call does nothing. */
  close(): Promise<void>;
}

/** Files by plain name (no directories). */
export interface Folder {
  /** Folder name or URL without credentials. */
  readonly name: string;
  /** Whether there is such a file. */
  has(file: string, options?: ReadOptions): Promise<boolean>;
  /** The file, opened when it is first read. */
  open(file: string): Source;
  /** The names of all files, sorted, where the place can list them. */
  list?(options?: ReadOptions): Promise<string[]>;
  /** Where it really is: two folders, or a folder and a sink, with one location are one place. */
  location?(): Promise<string>;
}

/** A place that takes new files, each one whole or not at all. */
export interface Sink {
  /** Folder name or URL without credentials. */
  readonly name: string;
  /** Begins a file. Nothing has its final name before `commit()`. */
  create(file: string, options?: NewFileOptions): Promise<SinkFile>;
  /** Where it really is: a folder and a sink with one location are one place. */
  location?(): Promise<string>;
}

/** What is known of a file before it is written. */
export interface NewFileOptions {
  /** The length that it will have, for the way in which it is best written; it is not checked. */
  readonly bytes?: number;
}

/** A file being written. */
export interface SinkFile {
  /** Appends bytes, whose memory the caller uses again once this resolves. */
  write(bytes: Uint8Array): Promise<void>;
  /** Makes the file durable under its final name. */
  commit(): Promise<void>;
  /** Forgets what was written; nothing is left behind. */
  abort(): Promise<void>;
  /** sha256, in hexadecimal, of what was written, once it is all there; absent where the place cannot tell. */
  sha256?(): Promise<string>;
}

/** A lock that is held. */
export interface FolderLock {
  /** Gives it back. */
  release(): Promise<void>;
}

/** A folder on whose files a later run can build. */
export interface Workspace extends Folder, Sink {
  /** The names of all files, sorted. */
  list(options?: ReadOptions): Promise<string[]>;
  /** Gives a file another name, replacing the file that has it, in one durable step. */
  rename(from: string, to: string): Promise<void>;
  /** Removes a file and every unfinished write of it; absent is as good. */
  remove(file: string): Promise<void>;
  /**
   * Keeps others from working in the folder until it is released; a process that dies releases its locks.
   *
   * @throws {IntegrityError} If another one has the lock of that name.
   */
  lock?(name: string): Promise<FolderLock>;
  /** sha256, in hexadecimal, of a file. */
  sha256(file: string, options?: ReadOptions): Promise<string>;
}

/**
 * Reads exactly `length` bytes, whatever the source does.
 *
 * @param source Where to read.
 * @param offset First byte.
 * @param length Number of bytes; the caller has checked that they lie in the file.
 * @param options A signal.
 * @returns The bytes.
 * @throws {IntegrityError} If the source gives another number of bytes.
 */
export async function readExactly(
  source: Source,
  offset: number,
  length: number,
  options: ReadOptions = {},
): Promise<Uint8Array> {
  options.signal?.throwIfAborted();
  const bytes = await source.read(offset, length, options);
  if (bytes.length !== length) {
    throw new IntegrityError(
      `Cannot read ${quote(source.name)} with ${bytes.length} bytes at offset ${offset}: expected ${length} bytes`,
      { file: source.name, found: bytes.length, expected: length },
    );
  }
  return bytes;
}

/**
 * Holds a source open for many reads.
 *
 * @param source The source; one that has no `hold()` is only wrapped.
 * @returns The source, to be closed.
 */
export async function hold(source: Source): Promise<HeldSource> {
  if (source.hold) return await source.hold();
  return {
    name: source.name,
    size: (options) => source.size(options),
    read: (offset, length, options) => source.read(offset, length, options),
    readInto: async (offset, into, options) => into.set(await readExactly(source, offset, into.length, options)),
    close: () => Promise.resolve(),
  };
}
