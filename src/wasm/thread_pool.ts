/**
 * Threads that share the memory of the kernels. The caller hands out the parts of one kernel call, takes parts itself
 * until none is left, and waits for those that a worker still has: a slow worker delays nobody, and no lock is held.
 *
 * @module
 */

import { BackendUnavailableError } from "../errors.ts";
import { ControlBlock, type SharedKernel, SLICE_MS, type Task } from "./control_block.ts";
import type { Kernels } from "./kernels.ts";
import { PROBE_BYTES, WORD, workerUrl } from "./worker_code.ts";
import { onEnd, type WorkerFactory, type WorkerLike } from "./worker_host.ts";

/** What a pool works with. */
export interface PoolOptions {
  /** The caller's instance. */
  readonly kernels: Kernels;
  /** The module that the workers instantiate. */
  readonly module: WebAssembly.Module;
  /** Threads, the caller's included. */
  readonly threads: number;
  /** Makes workers. */
  readonly worker: WorkerFactory;
  /** Where the workers' stacks are, `STACK_BYTES` each. */
  readonly stacks: number;
}

/** Stack of a worker: the kernels keep a few hundred bytes there. */
export const STACK_BYTES = 65_536;

/**
 * After so long without a sign a worker is lost. A part takes 10 ms; the rest is for machines where many programs want
 * each core. Half of it is its last chance.
 */
const LOST_MS = 2000;
const START_MS = 10_000;
const PAGE = 65_536;

type State = "asleep" | "probing" | "probing grown memory" | "ready" | "refused" | "lost" | "closed";

/** Starts its workers when they are first wanted, and never waits for their start. */
export class ThreadPool {
  readonly #options: PoolOptions;
  readonly #control: ControlBlock;
  readonly #names: SharedKernel[];
  #workers: WorkerLike[] = [];
  #state: State = "asleep";
  #why = "";
  #probeAt = 0;
  #since = 0;

  /** Starts nothing yet. */
  constructor(options: PoolOptions) {
    this.#options = options;
    this.#control = new ControlBlock(options.threads - 1);
    this.#names = Object.keys(options.kernels) as SharedKernel[];
  }

  /** Threads that large operations run on. */
  get threads(): number {
    return this.#state === "refused" ? 1 : this.#options.threads;
  }

  /** What there is to say about the threads. */
  get reason(): string {
    if (this.#state === "refused") return `one thread: ${this.#why}`;
    const { threads } = this.#options;
    return this.#state === "ready" ? `${threads} threads` : `${threads} threads from the first large operation on`;
  }

  /**
   * Throws once a worker is lost: it may still write where something else is by now.
   *
   * @throws {BackendUnavailableError} Then, and ever after.
   */
  check(): void {
    if (this.#state !== "lost") return;
    const message = `Cannot compute with ${this.#options.threads} threads: a worker was lost (${this.#why})`;
    throw new BackendUnavailableError(`${message}, open another backend`, { code: "worker-lost" });
  }

  /** Whether tasks can run. The first call starts the workers; until they have passed their test the answer is no. */
  ready(): boolean {
    this.check();
    if (this.#state === "ready") return true;
    if (this.#state === "asleep") this.#start();
    else if (this.#state.startsWith("probing")) this.#probe();
    return this.#isReady();
  }

  #isReady(): boolean {
    return this.#state === "ready";
  }

  /** Starts the workers and resolves when it is known whether they work. */
  async whenReady(): Promise<boolean> {
    while (!this.ready() && this.#state.startsWith("probing")) await new Promise((done) => setTimeout(done, 1));
    return this.#isReady();
  }

  #start(): void {
    const { threads, worker, module, stacks, kernels } = this.#options;
    this.#state = "probing";
    this.#since = performance.now();
    this.#setProbe(stacks);
    try {
      const url = workerUrl();
      for (let slot = 1; slot < threads; slot++) {
        const one = worker(url);
        this.#workers.push(one);
        onEnd(one, (why) => this.#ended(why));
        one.unref?.();
        const stack = stacks + slot * STACK_BYTES;
        const control = this.#control.buffer;
        one.postMessage({ module, memory: kernels.memory, control, slot, stack, names: this.#names });
      }
    } catch (error) {
      this.#refuse(error instanceof Error ? error.message : String(error));
    }
  }

  /** A worker that ends before it was ever used costs its speed; later, it may have left a part half done. */
  #ended(why: string): void {
    if (this.#state.startsWith("probing")) this.#refuse(`a worker could not start (${why})`);
    else if (this.#state === "ready") this.#lose(why);
  }

  #refuse(why: string): void {
    this.#end("refused", why);
  }

  #lose(why: string): void {
    this.#end("lost", why);
  }

  /** Workers read what WebAssembly wrote and write what it reads, before and after the memory has grown (KERNELS §11). */
  #setProbe(at: number): void {
    const { kernels, threads } = this.#options;
    for (let slot = 1; slot < threads; slot++) {
      const probe = at + slot * PROBE_BYTES;
      new Float32Array(kernels.memory.buffer, probe, 3).set([0, 0, slot]);
      kernels.add(probe, probe + 8, probe + 8, 1);
    }
    this.#probeAt = at;
    this.#control.store(WORD.probe, at);
    this.#control.wake();
  }

  #probe(): void {
    if (!this.#control.allSeen()) {
      if (performance.now() - this.#since > START_MS) this.#refuse("the workers did not start");
    } else if (!this.#probeHolds()) this.#refuse("workers do not see what WebAssembly writes");
    else if (this.#state === "probing") {
      this.#state = "probing grown memory";
      this.#setProbe(growByPage(this.#options.kernels.memory) ?? this.#probeAt);
    } else {
      this.#state = "ready";
      this.#control.store(WORD.probe, 0);
    }
  }

  #probeHolds(): boolean {
    const { kernels, threads } = this.#options;
    for (let slot = 1; slot < threads; slot++) {
      const probe = this.#probeAt + slot * PROBE_BYTES;
      kernels.add(probe + 8, probe + 4, probe + 4, 1);
      if (new Float32Array(kernels.memory.buffer, probe + 8, 1)[0] !== 8 * slot) return false;
    }
    return true;
  }

  /**
   * Runs a task and returns the sum of what the kernel returned. Call it only when `ready()`.
   *
   * @throws {BackendUnavailableError} If a worker is lost.
   */
  run(task: Task): number {
    this.#requireAlive();
    const control = this.#control;
    const parts = Math.ceil(task.total / task.chunk);
    control.offer(task, this.#names);
    let result = 0;
    let own = 0;
    try {
      for (let part; (part = control.take()) >= 0; own++) result += this.#runPart(task, part);
    } catch (error) {
      this.#lose("a kernel threw beside it");
      throw error;
    }
    this.#await(parts - own);
    return result + control.load(WORD.result);
  }

  #runPart({ kernel, values, steps, counted, chunk, total }: Task, part: number): number {
    const own = values.slice();
    for (const [j, step] of steps) own[j]! += part * step;
    own[counted] = Math.min(chunk, total - part * chunk);
    return Number(this.#options.kernels[kernel](...own) ?? 0);
  }

  /** Waits for the workers' parts: by looking for as long as a wake-up takes, then asleep where that is allowed. */
  #await(parts: number): void {
    const control = this.#control;
    if (!control.soon(WORD.done, parts)) {
      control.store(WORD.waiting, 1);
      this.#awaitWord(WORD.done, parts, LOST_MS);
      control.store(WORD.waiting, 0);
    }
    if (control.load(WORD.failed) !== 0) this.#lose("a kernel threw in it");
    this.check();
  }

  #awaitWord(word: number, wanted: number, most: number): void {
    let silent = 0;
    for (let value; (value = this.#control.load(word)) !== wanted;) {
      silent = this.#control.changes(word, value) ? 0 : silent + SLICE_MS;
      if (silent >= most) this.#lose(`no sign of it for ${LOST_MS} ms`);
      this.check();
    }
  }

  /** A worker that takes no parts delays nothing, so its end would pass unseen but for its generation. */
  #requireAlive(): void {
    if (!this.#control.allSeen()) {
      if (performance.now() - this.#since < LOST_MS) return;
      const generation = this.#control.wake();
      for (let slot = 1; slot < this.#options.threads; slot++) {
        this.#awaitWord(WORD.seen + slot, generation, LOST_MS / 2);
      }
    }
    this.#since = performance.now();
  }

  /** Ends the workers. */
  dispose(): void {
    this.#end("closed", "");
  }

  #end(state: State, why: string): void {
    if (this.#state === "refused" || this.#state === "lost" || this.#state === "closed") return;
    this.#state = state;
    this.#why = why;
    this.#control.quit();
    for (const worker of this.#workers) worker.terminate();
    this.#workers = [];
  }
}

/** The address of a new page, or null where there is no memory left. */
function growByPage(memory: WebAssembly.Memory): number | null {
  try {
    return memory.grow(1) * PAGE;
  } catch {
    return null;
  }
}
