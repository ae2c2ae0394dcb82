/**
 * What a worker runs, as text: one data URL works in every runtime and through every bundler, where the path of a file
 * would not. A worker takes one message and then sleeps and computes by the control block alone.
 *
 * The control block is i32 words, then a task as doubles:
 * `[kernel, argument count, counted argument, chunk, total, values…, steps per part…, steps per slot…]`.
 * Argument j of part p in slot s is `value_j + p · step_j + s · slotStep_j`; the counted one is what is left of `total`
 * behind `p · chunk`, `chunk` at most.
 *
 * @module
 */

/** The words of the control block, by their index. */
export const WORD = {
  /** Counts tasks; a worker waits for it to change. */
  generation: 0,
  /** Parts that nobody has taken. */
  left: 1,
  /** Parts that are done. */
  done: 2,
  /** Sum of what the kernel returned. */
  result: 3,
  /** Workers that wait to be notified. */
  sleepers: 4,
  /** Whether the caller waits to be notified. */
  waiting: 5,
  /** Whether the workers shall end. */
  quit: 6,
  /** Whether a kernel threw in a worker. */
  failed: 7,
  /** Address of the floats of the self-test, or 0 when there is none. */
  probe: 8,
  /** The last generation that each worker saw, by its slot; the caller has slot 0. */
  seen: 16,
} as const;

/** Threads that a control block has room for, the caller included. */
export const MOST_THREADS = 32;
/** Arguments that a task has room for. */
export const MOST_ARGUMENTS = 16;
/** Where the task begins in the control block. */
export const TASK_AT = 256;
/** Where the values begin in the task. */
export const VALUES_AT = 5;
/** Bytes of the control block. */
export const CONTROL_BYTES: number = TASK_AT + 8 * (VALUES_AT + 3 * MOST_ARGUMENTS);
/** Bytes of the self-test per slot: a float to read, one to write. */
export const PROBE_BYTES = 16;
/** Looks at a word before a thread sleeps: about the time that passes between two products of a decoding step. */
export const SPINS = 20_000;

const CODE = `
const { load, store, add, sub, wait, notify, compareExchange } = Atomics;
const web = typeof WorkerGlobalScope !== "undefined";
const port = web ? self : process.getBuiltinModule("node:worker_threads").parentPort;

function work({ module, memory, control, slot, stack, names }) {
  const words = new Int32Array(control);
  const task = new Float64Array(control, TASK_AT);
  const kernels = new WebAssembly.Instance(module, { env: { memory } }).exports;
  kernels.__stack_pointer.value = stack;
  const run = (part) => {
    const values = [];
    for (let j = 0, at = VALUES_AT; j < task[1]; j++, at++) {
      values.push(task[at] + part * task[at + MOST_ARGUMENTS] + slot * task[at + 2 * MOST_ARGUMENTS]);
    }
    values[task[2]] = Math.min(task[3], task[4] - part * task[3]);
    return kernels[names[task[0]]](...values);
  };
  for (let last = 0;;) {
    for (let i = 0; i < SPINS && load(words, WORD.generation) === last; i++);
    while (load(words, WORD.generation) === last) {
      add(words, WORD.sleepers, 1);
      wait(words, WORD.generation, last);
      sub(words, WORD.sleepers, 1);
    }
    last = load(words, WORD.generation);
    if (load(words, WORD.quit)) return;
    const probe = load(words, WORD.probe);
    if (probe) kernels.add(probe + slot * PROBE_BYTES + 4, probe + slot * PROBE_BYTES, probe + slot * PROBE_BYTES, 1);
    store(words, WORD.seen + slot, last);
    notify(words, WORD.seen + slot);
    for (let left; (left = load(words, WORD.left)) > 0;) {
      if (compareExchange(words, WORD.left, left, left - 1) !== left) continue;
      try {
        add(words, WORD.result, run(left - 1));
      } catch (error) {
        store(words, WORD.failed, 1);
        throw error;
      } finally {
        add(words, WORD.done, 1);
        if (load(words, WORD.waiting)) notify(words, WORD.done);
      }
    }
  }
}

function start(message) {
  work(message);
  if (web) close();
  else process.exit();
}

if (web) onmessage = ({ data }) => start(data);
else port.once("message", start);
`;

/** The URL of the code. */
export function workerUrl(): URL {
  const constants = { WORD, TASK_AT, VALUES_AT, MOST_ARGUMENTS, PROBE_BYTES, SPINS };
  const head = Object.entries(constants).map(([name, value]) => `const ${name} = ${JSON.stringify(value)};`);
  return new URL(`data:text/javascript,${encodeURIComponent(head.join("\n") + CODE)}`);
}
