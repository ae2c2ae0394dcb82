/**
 * Long computations that let timers, aborts and I/O through.
 *
 * @module
 */

const SLICE_MS = 50;
const SLICE_CALLS = 256;

/**
 * Makes a pause for loops: it runs `check`, and now and then it waits for the event loop and runs it again.
 *
 * @param check What must still hold; it throws when it does not.
 */
export function pace(check: () => void): () => Promise<void> {
  let last = performance.now();
  let calls = 0;
  return async () => {
    check();
    // Workers may freeze the clock while code runs: a count of calls then ends the slice.
    if (++calls < SLICE_CALLS && performance.now() - last < SLICE_MS) return;
    await new Promise<void>((resolve) => setTimeout(resolve, 0));
    last = performance.now();
    calls = 0;
    check();
  };
}
