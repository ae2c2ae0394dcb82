/**
 * What moves between JavaScript and linear memory: values in and out, scratch, scopes.
 * Views over linear memory are made for one call and never kept, because growth detaches them.
 *
 * @module
 */

import type { MatrixValues, Tensor, Weight, WeightDtype } from "../backend.ts";
import { DisposedError } from "../errors.ts";
import { sizeOf } from "../shape.ts";
import { Block, panelBytes, WasmTensor, WasmWeight } from "./handles.ts";
import { Heap } from "./heap.ts";
import type { Kernels } from "./kernels.ts";

/** Codes of element types in kernel calls. */
export const DTYPE_CODES = { f32: 0, bf16: 1, f16: 2 } as const;

/** Rows are packed in pieces of about this size, so that loading needs little more memory than the weight. */
const STAGING_BYTES = 4 << 20;

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

  /** Packs row-major (rows, columns) values, or their transpose, into panels. */
  pack(values: MatrixValues, dtype: WeightDtype, transposed: boolean): WasmWeight {
    const [rows, columns] = values.shape;
    const [n, k] = transposed ? [columns, rows] as const : [rows, columns] as const;
    const block = new Block(this.#heap, panelBytes(n, k, dtype));
    try {
      const rowBytes = k * (values.dtype === "f32" ? 4 : 2);
      const step = transposed ? n : Math.max(8, Math.floor(STAGING_BYTES / Math.max(rowBytes, 1) / 8) * 8);
      this.scratch(Math.min(step, n) * rowBytes, (staging) => {
        for (let row = 0; row < n; row += step) {
          const count = Math.min(step, n - row);
          const piece = values.bytes.subarray(row * rowBytes, (row + count) * rowBytes);
          this.bytes(staging, piece.length).set(piece);
          const target = block.address + panelBytes(row, k, dtype);
          const codes = [DTYPE_CODES[values.dtype], DTYPE_CODES[dtype]] as const;
          this.#kernels.pack(target, staging, count, k, ...codes, transposed ? 1 : 0);
        }
      });
      return new WasmWeight(block, [n, k], dtype);
    } catch (error) {
      block.release();
      throw error;
    }
  }

  /** The elements of a weight, row-major. */
  unpack(weight: WasmWeight): Float32Array {
    const [n, k] = weight.shape;
    return this.scratch(n * k * 4, (address) => {
      this.#kernels.unpack(address, weight.block.address, n, k, DTYPE_CODES[weight.dtype]);
      return new Float32Array(this.#kernels.memory.buffer as ArrayBuffer, address, n * k).slice();
    });
  }

  /** Reserves a block as large as a weight's panels. */
  likeWeight(weight: WasmWeight): Block {
    return new Block(this.#heap, panelBytes(...weight.shape, weight.dtype));
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
