import { open, readdir, rename, stat, unlink } from "node:fs/promises";
import { join } from "node:path";
import process from "node:process";
import { DisposedError, IntegrityError } from "../errors.ts";
import { quote } from "../formats/quote.ts";
import type { NewFileOptions, SinkFile } from "../formats/source.ts";
import { fileError, systemCode } from "./file_error.ts";
import { type FileWriter, PlainWriter } from "./file_writer.ts";
import type { NewFolder } from "./new_folder.ts";
import { ThreadedWriter } from "./threaded_writer.ts";

const PARTIAL = /\.\d+\.[0-9a-f]{16}\.partial$/;
const STALE_MS = 3_600_000;
/** A file that is longer is worth the 40 ms in which a thread starts. */
const THREAD_BYTES = 1 << 26;
/** What systems without a flush for directories answer (Windows, some network mounts). */
const NO_DIRECTORY_SYNC: ReadonlySet<string | undefined> = new Set(["EISDIR", "EPERM", "EINVAL", "ENOTSUP"]);

function partialName(target: string): string {
  const random = crypto.getRandomValues(new Uint8Array(8));
  return `${target}.${process.pid}.${
    Array.from(random, (byte) => byte.toString(16).padStart(2, "0")).join("")
  }.partial`;
}

/** Whether a name is that of an unfinished write of a file. */
export function isPartialOf(name: string, file: string): boolean {
  return name.startsWith(file) && PARTIAL.exec(name)?.index === file.length;
}

/** Removes what processes that died long ago left; failing to is no reason not to write. */
async function sweep(directory: string): Promise<void> {
  for (const name of (await readdir(directory)).filter((name) => PARTIAL.test(name))) {
    const path = join(directory, name);
    const entry = await stat(path).catch(() => undefined);
    if (entry?.isFile() && Date.now() - entry.mtimeMs > STALE_MS) await unlink(path).catch(() => {});
  }
}

/** Makes the names in a folder durable. */
export async function syncDirectory(directory: string): Promise<void> {
  try {
    const handle = await open(directory, "r");
    await handle.sync().finally(() => handle.close());
  } catch (error) {
    if (!NO_DIRECTORY_SYNC.has(systemCode(error))) throw error;
  }
}

/** Where a file goes. */
interface Place {
  readonly directory: string;
  /** The directory, if it has to be made. */
  readonly folder: NewFolder;
  readonly file: string;
}

class AtomicFile implements SinkFile {
  readonly #place: Place;
  readonly #partial: string;
  readonly #writer: FileWriter;
  /** What was asked before: calls that are not awaited happen in their order. */
  #turn: Promise<unknown> = Promise.resolve();
  #written = 0;
  #open = true;

  constructor(place: Place, partial: string, writer: FileWriter) {
    this.#place = place;
    this.#partial = partial;
    this.#writer = writer;
  }

  async write(bytes: Uint8Array): Promise<void> {
    await this.#attempt(async () => {
      await this.#writer.write(bytes);
      this.#written += bytes.length;
    });
  }

  /** sha256 of what has been written. */
  async sha256(): Promise<string> {
    return await this.#attempt(() => this.#writer.sha256());
  }

  async commit(): Promise<void> {
    await this.#attempt(async () => {
      const { directory, folder, file } = this.#place;
      const target = join(directory, file);
      await this.#writer.finish();
      await rename(this.#partial, target);
      this.#open = false;
      await folder.leave();
      await syncDirectory(directory);
      const { size } = await stat(target);
      if (size === this.#written) return;
      const message = `Cannot trust ${quote(target)}: it has ${size} bytes after ${this.#written} were written`;
      throw new IntegrityError(message, { file, found: size, expected: this.#written });
    });
  }

  async abort(): Promise<void> {
    await this.#next(() => this.#discard());
  }

  async #attempt<T>(body: () => Promise<T>): Promise<T> {
    const { directory, file } = this.#place;
    return await this.#next(async () => {
      if (!this.#open) {
        throw new DisposedError(`Cannot write ${quote(file)}: it was committed or aborted`, { file });
      }
      try {
        return await body();
      } catch (error) {
        await this.#discard();
        throw fileError("write", join(directory, file), file, error);
      }
    });
  }

  #next<T>(body: () => Promise<T>): Promise<T> {
    const own = this.#turn.then(body);
    this.#turn = own.catch(() => {});
    return own;
  }

  async #discard(): Promise<void> {
    if (!this.#open) return;
    this.#open = false;
    await this.#writer.close();
    await unlink(this.#partial).catch(() => {});
    await this.#place.folder.leave();
  }
}

/**
 * Begins a file that gets its final name in one step, when it is whole and on the disk.
 *
 * @throws {IntegrityError} If the system refuses; a folder that was made for the file is gone then.
 */
export async function createAtomicFile(place: Place, { bytes = 0 }: NewFileOptions = {}): Promise<SinkFile> {
  const { directory, folder, file } = place;
  const partial = join(directory, partialName(file));
  try {
    return await folder.enter(async () => {
      await sweep(directory);
      return new AtomicFile(place, partial, await openWriter(partial, bytes));
    });
  } catch (error) {
    throw fileError("create", join(directory, file), file, error);
  }
}

async function openWriter(path: string, bytes: number): Promise<FileWriter> {
  const handle = await open(path, "wx");
  try {
    const writer = bytes > THREAD_BYTES ? await ThreadedWriter.open(path) : null;
    if (writer === null) return new PlainWriter(handle);
    await handle.close();
    return writer;
  } catch (error) {
    await handle.close();
    await unlink(path).catch(() => {});
    throw error;
  }
}
