import { mkdir, open, readdir, rename, stat, unlink } from "node:fs/promises";
import { join } from "node:path";
import process from "node:process";
import { DisposedError, IntegrityError } from "../errors.ts";
import { quote } from "../formats/quote.ts";
import type { NewFileOptions, SinkFile } from "../formats/source.ts";
import { fileError, systemCode } from "./file_error.ts";
import { type FileWriter, PlainWriter } from "./file_writer.ts";
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

class AtomicFile implements SinkFile {
  readonly #directory: string;
  readonly #file: string;
  readonly #partial: string;
  readonly #writer: FileWriter;
  #written = 0;
  #open = true;

  constructor(directory: string, file: string, partial: string, writer: FileWriter) {
    this.#directory = directory;
    this.#file = file;
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
      await this.#writer.finish();
      this.#open = false;
      const target = join(this.#directory, this.#file);
      await rename(this.#partial, target);
      await syncDirectory(this.#directory);
      const { size } = await stat(target);
      if (size === this.#written) return;
      throw new IntegrityError(
        `Cannot trust ${quote(target)}: it has ${size} bytes after ${this.#written} were written`,
        {
          file: this.#file,
          found: size,
          expected: this.#written,
        },
      );
    });
  }

  async abort(): Promise<void> {
    if (this.#open) await this.#discard();
  }

  async #attempt<T>(body: () => Promise<T>): Promise<T> {
    if (!this.#open) {
      throw new DisposedError(`Cannot write ${quote(this.#file)}: it was committed or aborted`, { file: this.#file });
    }
    try {
      return await body();
    } catch (error) {
      await this.#discard();
      throw fileError("write", join(this.#directory, this.#file), this.#file, error);
    }
  }

  async #discard(): Promise<void> {
    this.#open = false;
    await this.#writer.close();
    await unlink(this.#partial).catch(() => {});
  }
}

/**
 * Begins a file that gets its final name in one step, when it is whole and on the disk.
 *
 * @throws {IntegrityError} If the system refuses.
 */
export async function createAtomicFile(
  directory: string,
  file: string,
  { bytes = 0 }: NewFileOptions = {},
): Promise<SinkFile> {
  const partial = join(directory, partialName(file));
  try {
    await mkdir(directory, { recursive: true });
    await sweep(directory);
    return new AtomicFile(directory, file, partial, await openWriter(partial, bytes));
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
