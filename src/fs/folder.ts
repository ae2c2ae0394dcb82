import { createHash } from "node:crypto";
import { readdir, realpath, rename, rm, stat } from "node:fs/promises";
import { basename, join, sep } from "node:path";
import { FormatError, MismatchError } from "../errors.ts";
import { quote } from "../formats/quote.ts";
import type { FolderLock, NewFileOptions, ReadOptions, SinkFile, Workspace } from "../formats/source.ts";
import { createAtomicFile, isPartialOf, syncDirectory } from "./atomic_file.ts";
import { FileSource, toPath } from "./file.ts";
import { fileError } from "./file_error.ts";
import { lockFolder } from "./lock.ts";
import { NewFolder } from "./new_folder.ts";
import { checkPlainName, isPlainName } from "./plain_name.ts";

/** Options of {@linkcode folder}. */
export interface FolderOptions {
  /**
   * How far links may lead: a folder around this one, such as that of a model in the Hugging Face cache, whose snapshots
   * link to its blobs. The default is the folder itself.
   */
  readonly linksWithin?: string | URL;
}

const HASH_PIECE = 1 << 23;

class DiskFolder implements Workspace {
  readonly name: string;
  readonly #path: string;
  readonly #bound: string;
  readonly #folder: NewFolder;

  constructor(path: string, bound: string) {
    this.name = basename(path) || path;
    this.#path = path;
    this.#bound = bound;
    this.#folder = new NewFolder(path);
  }

  async has(file: string, options: ReadOptions = {}): Promise<boolean> {
    options.signal?.throwIfAborted();
    checkPlainName(file, this.name);
    try {
      return (await stat(await this.#locate(file))).isFile();
    } catch (error) {
      const refusal = fileError("look for", join(this.#path, file), file, error);
      if (refusal instanceof MismatchError) return false;
      throw refusal;
    }
  }

  open(file: string): FileSource {
    checkPlainName(file, this.name);
    return new FileSource(file, join(this.#path, file), () => this.#locate(file));
  }

  async list(options: ReadOptions = {}): Promise<string[]> {
    options.signal?.throwIfAborted();
    try {
      const entries = await readdir(this.#path, { withFileTypes: true });
      const names = entries.filter((entry) => entry.isFile() || entry.isSymbolicLink()).map((entry) => entry.name);
      return names.filter(isPlainName).sort();
    } catch (error) {
      throw fileError("list", this.#path, this.name, error);
    }
  }

  /** The path without links; as it was given where there is no such folder yet. */
  async location(): Promise<string> {
    return await realpath(this.#path).catch(() => this.#path);
  }

  async create(file: string, options: NewFileOptions = {}): Promise<SinkFile> {
    const place = { directory: this.#path, folder: this.#folder, file: checkPlainName(file, this.name) };
    return await createAtomicFile(place, options);
  }

  async rename(from: string, to: string): Promise<void> {
    for (const name of [from, to]) checkPlainName(name, this.name);
    try {
      await rename(join(this.#path, from), join(this.#path, to));
      await syncDirectory(this.#path);
    } catch (error) {
      throw fileError("rename", join(this.#path, from), from, error);
    }
  }

  async remove(file: string): Promise<void> {
    checkPlainName(file, this.name);
    try {
      const names = await readdir(this.#path);
      for (const name of names.filter((name) => name === file || isPartialOf(name, file))) {
        await rm(join(this.#path, name), { force: true });
      }
    } catch (error) {
      const refusal = fileError("remove", join(this.#path, file), file, error);
      if (!(refusal instanceof MismatchError)) throw refusal;
    }
  }

  async lock(name: string): Promise<FolderLock> {
    checkPlainName(name, this.name);
    return await lockFolder(this.#path, name, this.#folder);
  }

  async sha256(file: string, options: ReadOptions = {}): Promise<string> {
    const source = await this.open(file).hold();
    try {
      const [hash, size] = [createHash("sha256"), await source.size()];
      for (let at = 0; at < size; at += HASH_PIECE) {
        hash.update(await source.read(at, Math.min(HASH_PIECE, size - at), options));
      }
      return hash.digest("hex");
    } finally {
      await source.close();
    }
  }

  /** Where a file really is; a link may rename it inside the bound, never lead out. */
  async #locate(file: string): Promise<string> {
    const bound = await realpath(this.#bound);
    const path = await realpath(join(this.#path, file));
    if (path.startsWith(bound.endsWith(sep) ? bound : bound + sep)) return path;
    throw new FormatError(`Cannot open ${quote(join(this.#path, file))}: it is a link that leads out of its folder`, {
      file,
      found: path,
      expected: bound,
    });
  }
}

/**
 * A folder on disk: reads the files in it, and takes new ones, each whole or not at all. Only plain file names are taken
 * (they may come from an untrusted index), and no link is followed out of the folder.
 *
 * `create()` writes to `<file>.<pid>.<random>.partial` beside the final name; `commit()` flushes it to the disk and renames
 * it, so a process that dies leaves the old file or the new one under the name, never a torn one. What dead processes
 * left is swept by the next `create()` after an hour. The folder is made when the first file is created, and removed if
 * none becomes whole. A file that is
 * announced with more than 64 MB is hashed and written by a thread of its own, around the page cache where that is possible.
 *
 * @param path A path, relative to the working directory, or a `file:` URL.
 * @param options How far links may lead.
 * @throws {FormatError} From `has()`, `open()` and `create()`: if the name is not plain or a link leads out.
 * @throws {MismatchError} From the calls that read: if there is no such file.
 * @throws {IntegrityError} From the calls that touch the disk: if the system refuses; `code` is its code.
 * @example
 * ```ts
 * import { folder } from "@lowrank/lora/fs";
 * import assert from "node:assert/strict";
 *
 * const place = folder("examples/models/tiny/emotion");
 * assert.deepEqual(await place.list?.(), ["adapter_config.json", "adapter_model.safetensors"]);
 * ```
 */
export function folder(path: string | URL, options: FolderOptions = {}): Workspace {
  return new DiskFolder(toPath(path), toPath(options.linksWithin ?? path));
}
