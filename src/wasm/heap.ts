/**
 * The allocator of linear memory: first fit over address-ordered free runs that merge when they touch.
 * A model has few runs (temporaries come and go in the same order), so a list is enough.
 *
 * @module
 */

import { DisposedError, OutOfMemoryError } from "../errors.ts";

const PAGE = 65_536;
/** A cache line: the widest vector load never straddles two blocks. */
const ALIGNMENT = 64;

/** Hands out blocks of one WebAssembly memory. Stores no view of it, so growth cannot detach one. */
export class Heap {
  #memory: WebAssembly.Memory | null;
  readonly #sizes: Map<number, number> = new Map();
  /** Free runs as [start, end), ascending, never touching. */
  readonly #free: [number, number][];
  #used = 0;

  /** Takes all memory from `base` on. */
  constructor(memory: WebAssembly.Memory, base: number) {
    this.#memory = memory;
    const start = roundUp(base, ALIGNMENT);
    this.#free = [[start, memory.buffer.byteLength]];
  }

  /** Bytes in blocks now held. */
  get used(): number {
    return this.#used;
  }

  /**
   * Reserves a block and returns its address, a multiple of 64.
   *
   * @throws {OutOfMemoryError} If the memory cannot grow by as much.
   */
  allocate(bytes: number): number {
    const size = Math.max(roundUp(bytes, ALIGNMENT), ALIGNMENT);
    const run = this.#free.find(([start, end]) => end - start >= size) ?? this.#grow(size);
    const address = run[0];
    run[0] += size;
    if (run[0] === run[1]) this.#free.splice(this.#free.indexOf(run), 1);
    this.#sizes.set(address, size);
    this.#used += size;
    return address;
  }

  /** Forgets the memory, so that handles that outlive the backend do not keep it alive. */
  drop(): void {
    this.#memory = null;
    this.#sizes.clear();
    this.#free.length = 0;
    this.#used = 0;
  }

  /** Gives a block back. */
  release(address: number): void {
    const size = this.#sizes.get(address);
    if (size === undefined) return;
    this.#sizes.delete(address);
    this.#used -= size;
    this.#insert(address, address + size);
  }

  #insert(start: number, end: number): void {
    const free = this.#free;
    let at = free.length;
    while (at > 0 && free[at - 1]![0] > start) at--;
    const before = free[at - 1];
    const after = free[at];
    const joinsBefore = before !== undefined && before[1] === start;
    const joinsAfter = after !== undefined && after[0] === end;
    if (joinsBefore && joinsAfter) {
      before[1] = after[1];
      free.splice(at, 1);
    } else if (joinsBefore) before[1] = end;
    else if (joinsAfter) after[0] = start;
    else free.splice(at, 0, [start, end]);
  }

  #grow(size: number): [number, number] {
    const memory = this.#memory;
    if (!memory) throw new DisposedError("Cannot allocate memory: the backend is disposed");
    const end = memory.buffer.byteLength;
    const last = this.#free.at(-1);
    const tail = last !== undefined && last[1] === end ? end - last[0] : 0;
    const pages = Math.ceil((size - tail) / PAGE);
    try {
      memory.grow(pages);
    } catch (cause) {
      throw new OutOfMemoryError(
        `Cannot allocate ${size} bytes beside ${this.#used} held: WebAssembly memory would not grow`,
        { found: size, expected: this.#used, cause },
      );
    }
    this.#insert(end, end + pages * PAGE);
    return this.#free.at(-1)!;
  }
}

function roundUp(value: number, multiple: number): number {
  return Math.ceil(value / multiple) * multiple;
}
