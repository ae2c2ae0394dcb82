/**
 * What the WebAssembly backend holds: tensors and weights in, out and freed.
 *
 * @module
 */

import type { BackendInfo, MatrixValues, Tensor, Weight, WeightOptions } from "../backend.ts";
import * as check from "../check.ts";
import { checkMatrixValues } from "../check_weight.ts";
import { sizeOf } from "../shape.ts";
import { WEIGHT_DTYPES } from "./dtypes.ts";
import { WasmTensor } from "./handles.ts";
import type { Kernels, LoadedKernels } from "./kernels.ts";
import { disposedBackend, LinearMemory } from "./memory.ts";
import { packWeight, unpackWeight } from "./pack.ts";

/** Memory of the CPU; the operations are in the classes that extend it. */
export abstract class WasmMemoryOperations {
  /** Which kernels run, and why. */
  readonly info: BackendInfo;
  #loaded: { readonly kernels: Kernels; readonly memory: LinearMemory } | null;

  /** Takes instantiated kernels. */
  constructor({ variant, kernels }: LoadedKernels, reason: string) {
    this.info = { variant, threads: 1, reason, weightDtypes: WEIGHT_DTYPES };
    this.#loaded = { kernels, memory: new LinearMemory(kernels) };
  }

  protected get kernels(): Kernels {
    if (!this.#loaded) throw disposedBackend();
    return this.#loaded.kernels;
  }

  protected get memory(): LinearMemory {
    if (!this.#loaded) throw disposedBackend();
    return this.#loaded.memory;
  }

  /** Bytes of tensors and weights now held. */
  get bytes(): number {
    return this.#loaded?.memory.used ?? 0;
  }

  protected at(tensor: Tensor): number {
    return this.memory.own(tensor).block.address;
  }

  protected weightAt(weight: Weight): readonly [address: number, dtype: number] {
    const own = this.memory.ownWeight(weight);
    return [own.block.address, own.code];
  }

  /** See `Backend.tensor`. */
  tensor(shape: readonly number[], values?: Float32Array): Tensor {
    const size = sizeOf(shape);
    if (values) check.checkValues(shape, size, values);
    const tensor = this.memory.create(shape);
    if (values) this.memory.floats(tensor).set(values);
    else this.memory.floats(tensor).fill(0);
    return tensor;
  }

  /** See `Backend.write`. */
  write(tensor: Tensor, values: Float32Array): void {
    check.checkValues(tensor.shape, tensor.size, values);
    this.memory.floats(this.memory.own(tensor)).set(values);
  }

  /** See `Backend.read`. */
  // deno-lint-ignore require-await -- a WebAssembly result is ready; the contract's readers await it
  async read(tensor: Tensor): Promise<Float32Array> {
    return this.memory.floats(this.memory.own(tensor)).slice();
  }

  /** See `Backend.reshape`. */
  reshape(tensor: Tensor, shape: readonly number[]): Tensor {
    check.checkReshape(tensor, shape);
    this.at(tensor);
    return new WasmTensor(this.memory.own(tensor).block, shape, false);
  }

  /** See `Backend.weight`. */
  weight(values: MatrixValues, options: WeightOptions = {}): Weight {
    checkMatrixValues(values, options, WEIGHT_DTYPES);
    return packWeight(this.kernels, this.memory, values, options);
  }

  /** See `Backend.readWeight`. */
  // deno-lint-ignore require-await -- as in read()
  async readWeight(weight: Weight): Promise<Float32Array> {
    return unpackWeight(this.kernels, this.memory, this.memory.ownWeight(weight));
  }

  /** See `Backend.scope`. */
  scope<T extends Tensor | readonly Tensor[] | void>(body: () => T): T {
    return this.memory.scope(body);
  }

  /** See `Backend.keep`. */
  keep(tensor: Tensor): Tensor {
    return this.memory.keep(this.memory.own(tensor));
  }

  /** Drops the instance with all its memory; linear memory never shrinks otherwise. */
  dispose(): void {
    this.#loaded?.memory.drop();
    this.#loaded = null;
  }

  /** The same as `dispose()`. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}
