import { createHash } from "node:crypto";
import { type FileHandle, mkdir, open, readdir, rename, stat, unlink } from "node:fs/promises";
import { join } from "node:path";
import process from "node:process";
import { DisposedError, IntegrityError } from "../errors.ts";
import { quote } from "../formats/quote.ts";
import type { SinkFile } from "../formats/source.ts";
import { fileError, systemCode } from "./file_error.ts";

const PARTIAL = /\.\d+\.[0-9a-f]{16}\.partial$/;
const STALE_MS = 3_600_000;
/** Bytes after which the disk begins to write, so that the last flush of a large file has little left to wait for. */
const FLUSH_BYTES = 1 << 26;
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
  readonly #handle: FileHandle;
  readonly #hash = createHash("sha256");
  #written = 0;
  #unflushed = 0;
  #flushing: Promise<void> | null = null;
  #failure: unknown = null;
  #open = true;

  constructor(directory: string, file: string, partial: string, handle: FileHandle) {
    this.#directory = directory;
    this.#file = file;
    this.#partial = partial;
    this.#handle = handle;
  }

  async write(bytes: Uint8Array): Promise<void> {
    await this.#attempt(async () => {
      const writing = this.#append(bytes);
      // While the system writes.
      this.#hash.update(bytes);
      await writing;
      this.#written += bytes.length;
      this.#flush(bytes.length);
    });
  }

  async #append(bytes: Uint8Array): Promise<void> {
    for (let done = 0; done < bytes.length;) {
      done += (await this.#handle.write(bytes, done, bytes.length - done)).bytesWritten;
    }
  }

  /** Lets the disk begin; a system tells of a failed flush once, so that it is kept for the next call. */
  #flush(length: number): void {
    if (this.#failure !== null) throw this.#failure;
    this.#unflushed += length;
    if (this.#unflushed < FLUSH_BYTES || this.#flushing !== null) return;
    this.#unflushed = 0;
    this.#flushing = this.#handle.datasync()
      .catch((error) => void (this.#failure = error))
      .finally(() => this.#flushing = null);
  }

  /** sha256 of what has been written. */
  // deno-lint-ignore require-await
  async sha256(): Promise<string> {
    return this.#hash.copy().digest("hex");
  }

  async commit(): Promise<void> {
    await this.#attempt(async () => {
      await this.#flushing;
      if (this.#failure !== null) throw this.#failure;
      await this.#handle.sync();
      this.#open = false;
      await this.#handle.close();
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

  async #attempt(body: () => Promise<void>): Promise<void> {
    if (!this.#open) {
      throw new DisposedError(`Cannot write ${quote(this.#file)}: it was committed or aborted`, { file: this.#file });
    }
    try {
      await body();
    } catch (error) {
      await this.#discard();
      throw fileError("write", join(this.#directory, this.#file), this.#file, error);
    }
  }

  async #discard(): Promise<void> {
    this.#open = false;
    await this.#flushing;
    await this.#handle.close().catch(() => {});
    await unlink(this.#partial).catch(() => {});
  }
}

/**
 * Begins a file that gets its final name in one step, when it is whole and on the disk.
 *
 * @throws {IntegrityError} If the system refuses.
 */
export async function createAtomicFile(directory: string, file: string): Promise<SinkFile> {
  const partial = join(directory, partialName(file));
  try {
    await mkdir(directory, { recursive: true });
    await sweep(directory);
    return new AtomicFile(directory, file, partial, await open(partial, "wx"));
  } catch (error) {
    throw fileError("create", join(directory, file), file, error);
  }
}
