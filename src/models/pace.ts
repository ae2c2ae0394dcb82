/**
 * Long computations that let timers, aborts and I/O through.
 *
 * @module
 */

const SLICE_MS = 50;
const SLICE_PAUSES = 256;

/** Counts the time since others last ran. One serves all computations of a model, short ones too. */
export class Pace {
  #last = performance.now();
  #pauses = 0;

  /** Waits for the event loop where others have waited long enough; otherwise it goes on at once. */
  async pause(): Promise<void> {
    // Workers may freeze the clock while code runs: a count of pauses then ends the slice.
    if (++this.#pauses < SLICE_PAUSES && performance.now() - this.#last < SLICE_MS) return;
    await new Promise<void>((resolve) => setTimeout(resolve, 0));
    this.#last = performance.now();
    this.#pauses = 0;
  }
}
