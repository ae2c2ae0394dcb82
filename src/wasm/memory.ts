/**
 * What moves between JavaScript and linear memory: values in and out, scratch, scopes.
 * Views over linear memory are made for one call and never kept, because growth detaches them.
 *
 * @module
 */

import type { Tensor, Weight } from "../backend.ts";
import { DisposedError } from "../errors.ts";
import { sizeOf } from "../shape.ts";
import { Block, WasmTensor, WasmWeight } from "./handles.ts";
import { Heap } from "./heap.ts";
import type { Kernels } from "./kernels.ts";

/** Linear memory with the handles that live in it. */
export class LinearMemory {
  readonly #kernels: Kernels;
  readonly #heap: Heap;
  #scope: WasmTensor[] | null = null;

  /** Takes the memory of instantiated kernels. */
  constructor(kernels: Kernels) {
    this.#kernels = kernels;
    this.#heap = new Heap(kernels.memory, Number(kernels.__heap_base.value));
  }

  /** Bytes now held. */
  get used(): number {
    return this.#heap.used;
  }

  /** Makes an uninitialised tensor, which the current scope owns. */
  create(shape: readonly number[]): WasmTensor {
    const tensor = new WasmTensor(new Block(this.#heap, sizeOf(shape) * 4), shape, true);
    this.#scope?.push(tensor);
    return tensor;
  }

  /** Makes a tensor and runs what fills it; nothing stays held when that throws. */
  produce(shape: readonly number[], fill: (address: number) => void): WasmTensor {
    const tensor = this.create(shape);
    try {
      fill(tensor.block.address);
      return tensor;
    } catch (error) {
      tensor.dispose();
      throw error;
    }
  }

  /** The elements of a tensor, to be used before anything is allocated. */
  floats(tensor: WasmTensor): Float32Array<ArrayBuffer> {
    return new Float32Array(this.#kernels.memory.buffer as ArrayBuffer, tensor.block.address, tensor.size);
  }

  /** Bytes from an address on, to be used before anything is allocated. */
  bytes(address: number, length: number): Uint8Array<ArrayBuffer> {
    return new Uint8Array(this.#kernels.memory.buffer as ArrayBuffer, address, length);
  }

  /** Runs `body` with the address of `bytes` bytes of scratch. */
  scratch<T>(bytes: number, body: (address: number) => T): T {
    const address = this.#heap.allocate(bytes);
    try {
      return body(address);
    } finally {
      this.#heap.release(address);
    }
  }

  /** Runs `body` with the address of a copy of `indices`. */
  indices<T>(indices: Uint32Array, body: (address: number) => T): T {
    return this.scratch(indices.byteLength, (address) => {
      const memory = this.#kernels.memory.buffer as ArrayBuffer;
      new Uint32Array(memory, address, indices.length).set(indices);
      return body(address);
    });
  }

  /** See `Backend.scope`. A returned view takes its block over from the temporary that it is a view of. */
  scope<T extends Tensor | readonly Tensor[] | void>(body: () => T): T {
    const outer = this.#scope;
    const inner: WasmTensor[] = this.#scope = [];
    let kept: readonly WasmTensor[] = [];
    try {
      const result = body();
      kept = tensorsOf(result);
      return result;
    } finally {
      this.#scope = outer;
      for (const tensor of inner) {
        const heir = kept.includes(tensor) ? tensor : kept.find(({ block }) => block === tensor.block);
        if (!heir) tensor.dispose();
        else if (heir !== tensor) heir.adopt(tensor);
        if (heir) outer?.push(heir);
      }
    }
  }

  /** See `Backend.keep`. */
  keep(tensor: WasmTensor): WasmTensor {
    const at = this.#scope?.indexOf(tensor) ?? -1;
    if (at >= 0) this.#scope!.splice(at, 1);
    return tensor;
  }

  /** Lets go of the memory. */
  drop(): void {
    this.#heap.drop();
  }

  /** The tensor as one of this memory's. */
  own(tensor: Tensor): WasmTensor {
    if (tensor instanceof WasmTensor && tensor.block.heap === this.#heap) return tensor;
    throw foreign("tensor");
  }

  /** The weight as one of this memory's. */
  ownWeight(weight: Weight): WasmWeight {
    if (weight instanceof WasmWeight && weight.block.heap === this.#heap) return weight;
    throw foreign("weight");
  }

  /** Reserves a block. */
  block(bytes: number): Block {
    return new Block(this.#heap, bytes);
  }
}

function tensorsOf(result: Tensor | readonly Tensor[] | void): WasmTensor[] {
  const tensors = result === undefined ? [] : Array.isArray(result) ? result : [result];
  return tensors.filter((tensor) => tensor instanceof WasmTensor);
}

function foreign(kind: string): Error {
  return new TypeError(`Cannot use a ${kind} of another backend: expected one that this backend made`);
}

/** The error of every call after `dispose()`. */
export function disposedBackend(): DisposedError {
  return new DisposedError("Cannot use the backend: it is disposed");
}
