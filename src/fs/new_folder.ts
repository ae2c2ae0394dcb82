import { mkdir, rmdir, stat } from "node:fs/promises";
import { dirname } from "node:path";
import { IntegrityError } from "../errors.ts";
import { quote } from "../formats/quote.ts";
import { systemCode } from "./file_error.ts";

const TRIES = 3;

/** A folder that is made for the first file in it, and goes again with its last one if that does not become whole. */
export class NewFolder {
  readonly #path: string;
  /** The outermost folder that was made; undefined if all were there, or a file stays. */
  #made: string | undefined;
  #users = 0;

  /** Makes nothing yet. */
  constructor(path: string) {
    this.#path = path;
  }

  /** Makes the folder, and those around it, and begins a file in it; what is begun ends with one call of `leave()`. */
  async enter<T>(begin: () => Promise<T>): Promise<T> {
    this.#users++;
    try {
      for (let left = TRIES;; left--) {
        await this.#make(this.#path);
        try {
          return await begin();
        } catch (error) {
          // Another process that had made the folder may just have removed it.
          if (systemCode(error) !== "ENOENT") throw error;
          if (left === 1) throw refuse("write into", this.#path, error);
        }
      }
    } catch (error) {
      await this.leave();
      throw error;
    }
  }

  /** Removes what was made, if nothing is in it and nobody else is about to write. */
  async leave(): Promise<void> {
    if (--this.#users > 0 || this.#made === undefined) return;
    const made = this.#made;
    this.#made = undefined;
    for (let path = this.#path;; path = dirname(path)) {
      // A folder that holds something stays, and so do those around it.
      await rmdir(path).catch(() => {});
      if (path === made) return;
    }
  }

  /** Node's own way with `recursive` never ends where a system takes no new folder, as in /proc. */
  async #make(path: string): Promise<void> {
    const entry = await stat(path).catch(() => undefined);
    if (entry?.isDirectory()) return;
    if (!entry && dirname(path) !== path) await this.#make(dirname(path));
    try {
      await mkdir(path);
      this.#made ??= path;
    } catch (error) {
      // Another process was faster.
      if ((await stat(path).catch(() => undefined))?.isDirectory()) return;
      if (systemCode(error) !== "ENOENT") throw error;
      throw refuse("make", path, error);
    }
  }
}

function refuse(action: "write into" | "make", path: string, cause: unknown): IntegrityError {
  const message = `Cannot ${action} the folder ${quote(path)}: the system takes nothing there`;
  return new IntegrityError(message, { code: "no-folder", file: path, cause });
}
