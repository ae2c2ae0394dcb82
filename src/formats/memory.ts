import { IntegrityError, MismatchError } from "../errors.ts";
import { concat } from "./concat.ts";
import { plainFileName } from "./file_name.ts";
import { quote } from "./quote.ts";
import { sha256, toHex } from "./sha256.ts";
import type { Folder, ReadOptions, Sink, SinkFile, Source } from "./source.ts";

const DEFAULT_NAME = "files held in memory";

/**
 * Makes bytes a source. Reads copy, so that later changes of `bytes` change nothing that was read.
 *
 * @param name Name for error messages.
 * @param bytes The whole file.
 * @returns The source.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * import { memorySource } from "@lowrank/lora";
 * const source = memorySource("a.bin", new Uint8Array([1, 2, 3]));
 * assert.deepEqual(await source.read(1, 2), new Uint8Array([2, 3]));
 * ```
 */
export function memorySource(name: string, bytes: Uint8Array): Source {
  if (!(bytes instanceof Uint8Array)) {
    throw new TypeError(`Cannot make a source of ${typeof bytes}: expected a Uint8Array`);
  }
  return new MemorySource(name, bytes);
}

/**
 * Makes a map of file names to bytes a folder.
 *
 * @param files The files by plain name.
 * @param name Name for error messages; "files held in memory" if absent.
 * @returns The folder, which sees later changes of the map.
 * @throws {TypeError} If the files are no map.
 *
 * @example
 * ```ts
 * import { loadAdapter, memoryFolder, memorySink, saveAdapter } from "@lowrank/lora";
 * import { folder } from "@lowrank/lora/fs";
 * import assert from "node:assert/strict";
 *
 * const adapter = await loadAdapter(folder("examples/models/tiny/news"));
 * const sink = memorySink();
 * await saveAdapter(adapter, sink);
 * const again = await loadAdapter(memoryFolder(sink.files, "news"));
 * assert.equal(again.id, adapter.id);
 * ```
 */
export function memoryFolder(files: ReadonlyMap<string, Uint8Array>, name: string = DEFAULT_NAME): Folder {
  if (typeof files?.get !== "function") {
    throw new TypeError(`Cannot make a folder of ${typeof files}: expected a Map of file names to bytes`);
  }
  return new MemoryFolder(files, name);
}

/**
 * Makes a sink that keeps its files in memory.
 *
 * @param name Name for error messages; "files held in memory" if absent.
 * @returns The sink; a file is in `files` once it is committed.
 */
export function memorySink(name: string = DEFAULT_NAME): Sink & { readonly files: ReadonlyMap<string, Uint8Array> } {
  return new MemorySink(name);
}

class MemorySource implements Source {
  readonly name: string;
  readonly #bytes: Uint8Array;

  constructor(name: string, bytes: Uint8Array) {
    this.name = name;
    this.#bytes = bytes;
  }

  // deno-lint-ignore require-await
  async size(options: ReadOptions = {}): Promise<number> {
    options.signal?.throwIfAborted();
    return this.#bytes.length;
  }

  // deno-lint-ignore require-await
  async read(offset: number, length: number, options: ReadOptions = {}): Promise<Uint8Array> {
    options.signal?.throwIfAborted();
    if (offset < 0 || length < 0 || offset + length > this.#bytes.length) {
      throw new IntegrityError(
        `Cannot read ${length} bytes at offset ${offset} of ${quote(this.name)}: it has ${this.#bytes.length} bytes`,
        { file: this.name, found: this.#bytes.length, expected: offset + length },
      );
    }
    return this.#bytes.slice(offset, offset + length);
  }
}

class MemoryFolder implements Folder {
  readonly name: string;
  readonly #files: ReadonlyMap<string, Uint8Array>;

  constructor(files: ReadonlyMap<string, Uint8Array>, name: string) {
    this.name = name;
    this.#files = files;
  }

  // deno-lint-ignore require-await
  async has(file: string, options: ReadOptions = {}): Promise<boolean> {
    options.signal?.throwIfAborted();
    return this.#files.has(file);
  }

  open(file: string): Source {
    plainFileName(file, this.name);
    const bytes = this.#files.get(file);
    return bytes === undefined ? new MissingSource(file, this.name) : memorySource(file, bytes);
  }

  // deno-lint-ignore require-await
  async list(options: ReadOptions = {}): Promise<string[]> {
    options.signal?.throwIfAborted();
    return [...this.#files.keys()].sort();
  }
}

/** Says on first use that there is no such file. */
class MissingSource implements Source {
  readonly name: string;
  readonly #folder: string;

  constructor(name: string, folder: string) {
    this.name = name;
    this.#folder = folder;
  }

  size(): Promise<number> {
    return Promise.reject(
      new MismatchError(`Cannot open ${quote(this.name)} in ${quote(this.#folder)}: there is no such file`, {
        code: "missing-file",
        file: this.name,
        missing: [this.name],
      }),
    );
  }

  async read(): Promise<Uint8Array> {
    await this.size();
    return new Uint8Array();
  }
}

class MemorySink implements Sink {
  readonly name: string;
  readonly files: Map<string, Uint8Array> = new Map();

  constructor(name: string) {
    this.name = name;
  }

  // deno-lint-ignore require-await
  async create(file: string): Promise<SinkFile> {
    plainFileName(file, this.name);
    const parts: Uint8Array[] = [];
    return {
      // deno-lint-ignore require-await
      write: async (bytes) => void parts.push(bytes.slice()),
      // deno-lint-ignore require-await
      commit: async () => void this.files.set(file, concat(parts)),
      // deno-lint-ignore require-await
      abort: async () => void parts.splice(0),
      sha256: async () => toHex(await sha256(concat(parts))),
    };
  }
}
