/**
 * Tensors and weights that live in linear memory.
 *
 * @module
 */

import type { Tensor, Weight, WeightDtype } from "../backend.ts";
import { DisposedError } from "../errors.ts";
import { sizeOf } from "../shape.ts";
import type { Heap } from "./heap.ts";

/** A block of linear memory, shared by a tensor and its reshaped views. */
export class Block {
  /** How long it is. */
  readonly bytes: number;
  readonly #heap: Heap;
  readonly #address: number;
  #live = true;

  /** Reserves the block. */
  constructor(heap: Heap, bytes: number) {
    this.bytes = bytes;
    this.#heap = heap;
    this.#address = heap.allocate(bytes);
  }

  /** The heap that the block is in. */
  get heap(): Heap {
    return this.#heap;
  }

  /**
   * The address of the first byte.
   *
   * @throws {DisposedError} If the block was released.
   */
  get address(): number {
    if (!this.#live) throw new DisposedError("Cannot use a tensor or weight: it is disposed");
    return this.#address;
  }

  /** Gives the block back, once. */
  release(): void {
    if (this.#live) this.#heap.release(this.#address);
    this.#live = false;
  }
}

/** A tensor in linear memory. */
export class WasmTensor implements Tensor {
  /** Lengths of the dimensions. */
  readonly shape: readonly number[];
  /** Product of the shape. */
  readonly size: number;
  /** Where the elements are. */
  readonly block: Block;
  #owns: boolean;

  /** Wraps a block; a view does not own it. */
  constructor(block: Block, shape: readonly number[], owns: boolean) {
    this.block = block;
    this.shape = Object.freeze([...shape]);
    this.size = sizeOf(shape);
    this.#owns = owns;
  }

  /** Takes the block over from the tensor that this is a view of. */
  adopt(owner: WasmTensor): void {
    [owner.#owns, this.#owns] = [false, true];
  }

  /** Frees the memory, unless this is a view. */
  dispose(): void {
    if (this.#owns) this.block.release();
  }

  /** The same as `dispose()`. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** A packed matrix in linear memory. */
export class WasmWeight implements Weight {
  /** `[out, in]`. */
  readonly shape: readonly [number, number];
  /** How the elements are stored. */
  readonly dtype: WeightDtype;
  /** What kernels call that: several forms share a dtype. */
  readonly code: number;
  /** The panels now in force. */
  block: Block;
  /** The panels that `merge` replaced. */
  original: Block | null = null;

  /** Wraps a block of panels. */
  constructor(block: Block, shape: readonly [number, number], { dtype, code }: { dtype: WeightDtype; code: number }) {
    this.block = block;
    this.shape = Object.freeze([shape[0], shape[1]] as const);
    this.dtype = dtype;
    this.code = code;
  }

  /** Memory held, the original of a merged weight included. */
  get bytes(): number {
    return this.block.bytes + (this.original?.bytes ?? 0);
  }

  /** Whether adapters are merged into it. */
  get merged(): boolean {
    return this.original !== null;
  }

  /** Frees the memory. */
  dispose(): void {
    this.block.release();
    this.original?.release();
  }

  /** The same as `dispose()`. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}
