/**
 * Tensors and weights that live on the GPU.
 *
 * @module
 */

import type { Tensor, Weight, WeightDtype } from "../backend.ts";
import { DisposedError } from "../errors.ts";
import { sizeOf } from "../shape.ts";
import type { DeviceBuffer } from "./buffer_pool.ts";
import type { Form } from "./forms.ts";

/** What owns blocks. */
export interface BlockOwner {
  /** Takes a block's buffer back. */
  free(buffer: DeviceBuffer, bytes: number): void;
}

/** A buffer in use, shared by a tensor and its reshaped views. */
export class Block {
  /** Whose block it is. */
  readonly owner: BlockOwner;
  /** Bytes asked for; the buffer may be larger. */
  readonly bytes: number;
  #buffer: DeviceBuffer | null;

  /** Holds a buffer until it is released. */
  constructor(owner: BlockOwner, buffer: DeviceBuffer, bytes: number) {
    this.owner = owner;
    this.#buffer = buffer;
    this.bytes = bytes;
  }

  /**
   * The buffer.
   *
   * @throws {DisposedError} If the block was released.
   */
  get buffer(): DeviceBuffer {
    if (!this.#buffer) throw new DisposedError("Cannot use a tensor or weight: it is disposed");
    return this.#buffer;
  }

  /** Gives the buffer back, once. */
  release(): void {
    const buffer = this.#buffer;
    this.#buffer = null;
    if (buffer) this.owner.free(buffer, this.bytes);
  }
}

/** A tensor on the GPU. */
export class GpuTensor implements Tensor {
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
  adopt(owner: GpuTensor): void {
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

/** Some panels of a matrix in one buffer. */
export interface Chunk {
  /** The first of them. */
  readonly first: number;
  /** How many. */
  readonly count: number;
  /** Where they are. */
  readonly block: Block;
}

/** The panels of a matrix, in as few buffers as the size of a binding allows. */
export class Panels {
  /** The buffers in order. */
  readonly chunks: readonly Chunk[];
  /** Panels in all. */
  readonly count: number;

  /** Takes chunks that follow each other. */
  constructor(chunks: readonly Chunk[]) {
    this.chunks = chunks;
    this.count = chunks.reduce((sum, { count }) => sum + count, 0);
  }

  /** Memory held. */
  get bytes(): number {
    return this.chunks.reduce((sum, { block }) => sum + block.bytes, 0);
  }

  /** Gives all buffers back. */
  release(): void {
    for (const { block } of this.chunks) block.release();
  }
}

/** A run of panels that several matrices each hold in one buffer. */
export interface PanelRun {
  /** The first panel. */
  readonly first: number;
  /** How many. */
  readonly count: number;
  /** Per matrix the buffer, and the number of the first panel inside it. */
  readonly parts: readonly { readonly buffer: DeviceBuffer; readonly panel: number }[];
}

/** Cuts matrices of equally many panels where any of them changes its buffer: into one run if each has one. */
export function cutPanels(...matrices: readonly Panels[]): PanelRun[] {
  const cuts = new Set(matrices.flatMap(({ chunks }) => chunks.map(({ first }) => first)));
  const starts = [...cuts].sort((a, b) => a - b);
  return starts.map((first, i) => {
    const parts = matrices.map(({ chunks }) => {
      const chunk = chunks.findLast((candidate) => candidate.first <= first)!;
      return { buffer: chunk.block.buffer, panel: first - chunk.first };
    });
    return { first, count: (starts[i + 1] ?? matrices[0]!.count) - first, parts };
  });
}

/** A packed matrix on the GPU. */
export class GpuWeight implements Weight {
  /** `[out, in]`. */
  readonly shape: readonly [number, number];
  /** How the elements are stored. */
  readonly dtype: WeightDtype;
  /** What kernels call that: several forms share a dtype. */
  readonly form: Form;
  /** The panels now in force, or those it had when it was disposed. */
  panels: Panels;
  /** The panels that `merge` replaced. */
  original: Panels | null = null;
  /** Whether a merge is under way. */
  merging = false;

  /** Wraps panels. */
  constructor(
    panels: Panels,
    shape: readonly [number, number],
    { dtype, form }: { readonly dtype: WeightDtype; readonly form: Form },
  ) {
    this.panels = panels;
    this.form = form;
    this.shape = Object.freeze([shape[0], shape[1]] as const);
    this.dtype = dtype;
  }

  /**
   * The panels now in force.
   *
   * @throws {DisposedError} If the weight was disposed.
   */
  get live(): Panels {
    this.panels.chunks[0]!.block.buffer;
    return this.panels;
  }

  /** Memory held, the original of a merged weight included. */
  get bytes(): number {
    return this.panels.bytes + (this.original?.bytes ?? 0);
  }

  /** Whether adapters are merged into it. */
  get merged(): boolean {
    return this.original !== null;
  }

  /** Frees the memory. */
  dispose(): void {
    this.panels.release();
    this.original?.release();
  }

  /** The same as `dispose()`. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}
