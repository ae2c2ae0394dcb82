import { mkdir, rmdir } from "node:fs/promises";
import { dirname } from "node:path";
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
        this.#made = await mkdir(this.#path, { recursive: true }) ?? this.#made;
        try {
          return await begin();
        } catch (error) {
          // Another process that had made the folder may just have removed it.
          if (left === 1 || systemCode(error) !== "ENOENT") throw error;
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
      const isGone = await rmdir(path).then(() => true, () => false);
      if (!isGone || path === made) return;
    }
  }
}
