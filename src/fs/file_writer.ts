import { createHash } from "node:crypto";
import type { FileHandle } from "node:fs/promises";

/** The bytes of one new file on their way to the disk. After a failure only `close()` may be called. */
export interface FileWriter {
  /** Appends bytes, whose memory the caller uses again once this resolves. */
  write(bytes: Uint8Array): Promise<void>;
  /** sha256, in hexadecimal, of what has been written. */
  sha256(): Promise<string>;
  /** Waits until all is on the disk, and closes the file. */
  finish(): Promise<void>;
  /** Closes the file as it is; a second call does nothing. */
  close(): Promise<void>;
}

/** Bytes after which the disk begins to write, so that the last flush of a large file has little left to wait for. */
export const FLUSH_BYTES: number = 1 << 26;

/** Writes through the page cache, from the caller's thread. */
export class PlainWriter implements FileWriter {
  readonly #handle: FileHandle;
  readonly #hash = createHash("sha256");
  #unflushed = 0;
  #flushing: Promise<void> | null = null;
  #failure: unknown = null;

  /** Takes an empty file. */
  constructor(handle: FileHandle) {
    this.#handle = handle;
  }

  async write(bytes: Uint8Array): Promise<void> {
    const writing = this.#append(bytes);
    // While the system writes.
    this.#hash.update(bytes);
    await writing;
    this.#flush(bytes.length);
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

  // deno-lint-ignore require-await
  async sha256(): Promise<string> {
    return this.#hash.copy().digest("hex");
  }

  async finish(): Promise<void> {
    await this.#flushing;
    if (this.#failure !== null) throw this.#failure;
    await this.#handle.sync();
    await this.#handle.close();
  }

  async close(): Promise<void> {
    await this.#flushing;
    await this.#handle.close().catch(() => {});
  }
}
