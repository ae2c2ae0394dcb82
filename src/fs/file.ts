import { type FileHandle, open, realpath, stat } from "node:fs/promises";
import { basename, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { IntegrityError } from "../errors.ts";
import { quote } from "../formats/quote.ts";
import type { HeldSource, ReadOptions, Source } from "../formats/source.ts";
import { fileError } from "./file_error.ts";

/** Node refuses more than 2³¹ − 1 bytes at once, and an abort should not wait for gigabytes. */
const MAX_READ = 1 << 26;

/** What must stay the same for a file to be the one whose size was told. */
interface Identity {
  readonly size: number;
  readonly version: string;
}

/** Turns a path or a `file:` URL into an absolute path. */
export function toPath(path: string | URL): string {
  if (typeof path !== "string" && !(path instanceof URL)) {
    throw new TypeError(`Cannot use ${typeof path} as a path: a string or a file: URL is wanted`);
  }
  return resolve(path instanceof URL ? fileURLToPath(path) : path);
}

/** A file that `locate` finds anew for every read, so that nothing stays open between them. */
export class FileSource implements Source {
  readonly name: string;
  readonly #path: string;
  readonly #locate: () => Promise<string>;
  #identity: Identity | undefined;

  constructor(name: string, path: string, locate: () => Promise<string>) {
    this.name = name;
    this.#path = path;
    this.#locate = locate;
  }

  async size(options: ReadOptions = {}): Promise<number> {
    return await this.#open(options, (handle) => this.#check(handle));
  }

  async read(offset: number, length: number, options: ReadOptions = {}): Promise<Uint8Array> {
    if (!Number.isSafeInteger(offset) || !Number.isSafeInteger(length) || offset < 0 || length < 0) {
      throw new RangeError(
        `Cannot read ${length} bytes from ${offset} of ${quote(this.name)}: two natural numbers are wanted`,
      );
    }
    return await this.#open(options, async (handle) => {
      const size = await this.#check(handle);
      const bytes = await this.#read(handle, size, [offset, length], options);
      await this.#check(handle);
      return bytes;
    });
  }

  /** Inode, time of change and size. */
  async version(options: ReadOptions = {}): Promise<string> {
    await this.size(options);
    return this.#identity!.version;
  }

  /** The file is checked when it is opened and when it is closed. */
  async hold(): Promise<HeldSource> {
    return await this.#attempt(async () => {
      const handle = await open(await this.#find(), "r");
      try {
        return this.#held(handle, await this.#check(handle));
      } catch (error) {
        await handle.close();
        throw error;
      }
    }, {});
  }

  #held(handle: FileHandle, size: number): HeldSource {
    let isOpen = true;
    const check = () => this.#check(handle).finally(() => handle.close());
    return {
      name: this.name,
      size: () => Promise.resolve(size),
      read: (offset, length, options = {}) =>
        this.#attempt(() => this.#read(handle, size, [offset, length], options), options),
      readInto: (offset, into, options = {}) =>
        this.#attempt(async () => {
          this.#checkRange(offset, into.length, size);
          await this.#fill(handle, offset, into, options);
        }, options),
      close: async () => {
        if (isOpen) await this.#attempt(check, {});
        isOpen = false;
      },
    };
  }

  async #read(
    handle: FileHandle,
    size: number,
    [offset, length]: readonly [number, number],
    options: ReadOptions,
  ): Promise<Uint8Array> {
    this.#checkRange(offset, length, size);
    return await this.#fill(handle, offset, new Uint8Array(length), options);
  }

  #checkRange(offset: number, length: number, size: number): void {
    if (offset + length > size) this.#refuse(`${length} bytes from ${offset}`, `${size} bytes in all`);
  }

  async #fill(
    handle: FileHandle,
    offset: number,
    bytes: Uint8Array,
    options: ReadOptions,
  ): Promise<Uint8Array> {
    for (let done = 0; done < bytes.length;) {
      options.signal?.throwIfAborted();
      const { bytesRead } = await handle.read(bytes, done, Math.min(bytes.length - done, MAX_READ), offset + done);
      if (bytesRead === 0) this.#refuse(`${bytes.length} bytes from ${offset}`, `its end after ${done}`);
      done += bytesRead;
    }
    return bytes;
  }

  /** Size of the open file, which must be the file of the first call. */
  async #check(handle: FileHandle): Promise<number> {
    const { dev, ino, mtimeNs, size } = await handle.stat({ bigint: true });
    const found = { size: Number(size), version: `${dev}:${ino}:${mtimeNs}:${size}` };
    const expected = this.#identity ??= found;
    if (found.version === expected.version) return found.size;
    throw new IntegrityError(`Cannot read ${quote(this.#path)}: the file changed since it was opened`, {
      file: this.name,
      found: found.version,
      expected: expected.version,
    });
  }

  #refuse(wanted: string, found: string): never {
    throw new IntegrityError(`Cannot read ${wanted} of ${quote(this.#path)}: found ${found}`, {
      file: this.name,
      found,
      expected: wanted,
    });
  }

  async #open<T>(options: ReadOptions, body: (handle: FileHandle) => Promise<T>): Promise<T> {
    return await this.#attempt(async () => {
      const handle = await open(await this.#find(), "r");
      try {
        return await body(handle);
      } finally {
        await handle.close();
      }
    }, options);
  }

  async #find(): Promise<string> {
    const path = await this.#locate();
    // Opening a pipe would wait for its writer.
    if (!(await stat(path)).isFile()) this.#refuse("bytes", "something that is no file");
    return path;
  }

  async #attempt<T>(body: () => Promise<T>, { signal }: ReadOptions): Promise<T> {
    signal?.throwIfAborted();
    try {
      return await body();
    } catch (error) {
      throw fileError("read", this.#path, this.name, error);
    } finally {
      signal?.throwIfAborted();
    }
  }
}

/**
 * A file on disk, read by ranges. Nothing is opened before the first read or held between reads.
 *
 * @param path A path, relative to the working directory, or a `file:` URL.
 * @throws {MismatchError} From `size()` and `read()`: if there is no such file.
 * @throws {IntegrityError} From `size()` and `read()`: if the file cannot be read, ends too early, or is not the same
 * (place, size, time of change) as when it was first read.
 * @example
 * ```ts
 * import { file } from "@lowrank/lora/fs";
 * import assert from "node:assert/strict";
 *
 * const source = file("examples/models/tiny/base/model.safetensors");
 * assert.equal(await source.size(), 3_351_928);
 * assert.equal((await source.read(0, 8)).length, 8);
 * ```
 */
export function file(path: string | URL): Source {
  const absolute = toPath(path);
  return new FileSource(basename(absolute), absolute, () => realpath(absolute));
}
