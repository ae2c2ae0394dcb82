/**
 * The words through which the caller and its workers speak; `worker_code.ts` has the workers' side and the layout.
 *
 * @module
 */

import type { Kernels } from "./kernels.ts";
import { CONTROL_BYTES, MOST_ARGUMENTS, SPINS, TASK_AT, VALUES_AT, WORD } from "./worker_code.ts";

/** The kernels that threads can share. */
export type SharedKernel = Exclude<keyof Kernels, "memory" | "__heap_base" | "__stack_pointer">;

/** An argument's index, and what is added to it. */
export type Step = readonly [index: number, step: number];

/** A kernel call in parts; see `worker_code.ts` for what each part's arguments are. */
export interface Task {
  /** The kernel. */
  readonly kernel: SharedKernel;
  /** Arguments of the first part in the caller's slot. */
  readonly values: readonly number[];
  /** What each part adds to arguments, by their index. */
  readonly steps: readonly Step[];
  /** What each slot adds to an argument: its scratch. */
  readonly slotStep: Step | undefined;
  /** The argument that counts what is split. */
  readonly counted: number;
  /** What is split: rows, columns, panels, heads. */
  readonly total: number;
  /** How much of it a part has. */
  readonly chunk: number;
}

/** Most time that {@linkcode ControlBlock.changes} waits. */
export const SLICE_MS = 50;

/** The caller's side of the control block. */
export class ControlBlock {
  readonly #words: Int32Array<SharedArrayBuffer> = new Int32Array(new SharedArrayBuffer(CONTROL_BYTES));
  readonly #task: Float64Array = new Float64Array(this.#words.buffer, TASK_AT);
  readonly #workers: number;
  readonly #canBlock: boolean = canBlock(this.#words);

  /** Makes the block for so many workers. */
  constructor(workers: number) {
    this.#workers = workers;
  }

  /** The memory that the workers need. */
  get buffer(): SharedArrayBuffer {
    return this.#words.buffer;
  }

  /** Reads a word. */
  load(word: number): number {
    return Atomics.load(this.#words, word);
  }

  /** Writes a word. */
  store(word: number, value: number): void {
    Atomics.store(this.#words, word, value);
  }

  /** Offers the parts of a task. */
  offer({ kernel, values, steps, slotStep, counted, chunk, total }: Task, names: readonly SharedKernel[]): void {
    const task = this.#task;
    task.fill(0);
    [task[0], task[1], task[2], task[3], task[4]] = [names.indexOf(kernel), values.length, counted, chunk, total];
    values.forEach((value, j) => task[VALUES_AT + j] = value);
    for (const [j, step] of steps) task[VALUES_AT + MOST_ARGUMENTS + j] = step;
    if (slotStep) task[VALUES_AT + 2 * MOST_ARGUMENTS + slotStep[0]] = slotStep[1];
    this.store(WORD.done, 0);
    this.store(WORD.result, 0);
    this.store(WORD.left, Math.ceil(total / chunk));
    this.wake();
  }

  /** Takes a part, or returns -1 when none is left. */
  take(): number {
    for (let left; (left = this.load(WORD.left)) > 0;) {
      if (Atomics.compareExchange(this.#words, WORD.left, left, left - 1) === left) return left - 1;
    }
    return -1;
  }

  /** Begins a generation, which every worker sees in time, and returns it. */
  wake(): number {
    const generation = Atomics.add(this.#words, WORD.generation, 1) + 1 | 0;
    if (this.load(WORD.sleepers) > 0) Atomics.notify(this.#words, WORD.generation);
    return generation;
  }

  /** Tells the workers to end; one that sleeps has to be woken, `terminate()` does not do it in every runtime. */
  quit(): void {
    this.store(WORD.quit, 1);
    Atomics.add(this.#words, WORD.generation, 1);
    Atomics.notify(this.#words, WORD.generation);
  }

  /** Whether all workers have seen the present generation. */
  allSeen(): boolean {
    const generation = this.load(WORD.generation);
    for (let slot = 1; slot <= this.#workers; slot++) if (this.load(WORD.seen + slot) !== generation) return false;
    return true;
  }

  /** Looks at a word for about as long as a wake-up takes, and returns whether it got the value. */
  soon(word: number, value: number): boolean {
    for (let i = 0; i < SPINS; i++) if (this.load(word) === value) return true;
    return false;
  }

  /** Waits for a word to change, one slice at most. Slices, unlike a clock, do not count while the machine sleeps. */
  changes(word: number, value: number): boolean {
    const words = this.#words;
    if (this.#canBlock) return Atomics.wait(words, word, value, SLICE_MS) !== "timed-out";
    for (const end = performance.now() + SLICE_MS; performance.now() < end;) {
      for (let i = 0; i < SPINS; i++) if (this.load(word) !== value) return true;
    }
    return false;
  }
}

/** Whether this thread may sleep: a page's main thread may not, it looks instead. */
function canBlock(words: Int32Array): boolean {
  try {
    Atomics.wait(words, WORD.quit, 1, 0);
    return true;
  } catch {
    return false;
  }
}
