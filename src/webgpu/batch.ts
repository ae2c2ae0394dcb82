/**
 * A batch of commands that is submitted at once: which buffers it uses, and what became of it.
 *
 * @module
 */

import type { DeviceBuffer } from "./buffer_pool.ts";

/**
 * Commands fail later than they are recorded, and a batch of which one command is invalid does nothing at all. So each
 * batch knows what it reads and writes; when it failed, or read what had failed, all that it was to write has failed.
 */
export class Batch {
  /** Its number. */
  readonly id: number;
  /** Started by the submission. */
  readonly onSubmit: (() => void)[] = [];
  readonly #fresh = new Set<DeviceBuffer>();
  /** Used with what earlier batches left in them, though their contents may begin anew later in this one. */
  readonly #inherited = new Set<DeviceBuffer>();
  readonly #used = new Set<DeviceBuffer>();
  readonly #written = new Set<DeviceBuffer>();
  readonly #made: Promise<void>[] = [];
  readonly #failures: Promise<Error | null>[] = [];

  /** Starts an empty batch. */
  constructor(id: number) {
    this.id = id;
  }

  /** Notes that the contents of a buffer begin here: whatever it held before does not matter. */
  begin(buffer: DeviceBuffer, made: Promise<void> | null = null): void {
    this.#fresh.add(buffer);
    if (made) this.#made.push(made);
  }

  /** Notes that a command uses a buffer, and writes it or not. */
  use(buffer: DeviceBuffer, writes: boolean): void {
    buffer.batch = this.id;
    if (!this.#fresh.has(buffer)) this.#inherited.add(buffer);
    this.#used.add(buffer);
    if (writes) this.#written.add(buffer);
  }

  /** Waits for the outcome of a creation or submission that the batch needs. */
  expect(failure: Promise<Error | null>): void {
    this.#failures.push(failure.catch((error) => error));
  }

  /** Passes the outcome on to the buffers; to be called in the order of the batches. */
  async settle(): Promise<void> {
    await Promise.all(this.#made);
    const failures = await Promise.all(this.#failures);
    const inherited = [...this.#inherited].map(({ failure }) => failure);
    // Memory first: a buffer that does not exist makes the submission invalid, which says less.
    const failure = [...[...this.#used].map(({ dead }) => dead), ...failures, ...inherited].find((error) =>
      error !== null
    );
    for (const buffer of this.#fresh) buffer.failure = null;
    for (const buffer of this.#written) buffer.failure = failure ?? null;
  }
}
