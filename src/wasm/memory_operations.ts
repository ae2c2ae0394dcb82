/**
 * What the WebAssembly backend holds: tensors and weights in, out and freed.
 *
 * @module
 */

import type {
  BackendInfo,
  Cache,
  CacheDtype,
  CacheShape,
  MatrixValues,
  Tensor,
  Weight,
  WeightOptions,
} from "../backend.ts";
import * as check from "../check.ts";
import { checkCache } from "../check_cache.ts";
import { checkMatrixValues } from "../check_weight.ts";
import { PackedCache } from "../packed_cache.ts";
import { sizeOf } from "../shape.ts";
import { WEIGHT_DTYPES } from "./dtypes.ts";
import { WasmTensor } from "./handles.ts";
import type { Kernels, LoadedKernels, Threads } from "./kernels.ts";
import { disposedBackend, LinearMemory } from "./memory.ts";
import { packWeight, unpackWeight } from "./pack.ts";

/** Memory of the CPU; the operations are in the classes that extend it. */
export abstract class WasmMemoryOperations {
  readonly #variant: string;
  readonly #reason: string;
  readonly #pool: Threads | undefined;
  #loaded: { readonly kernels: Kernels; readonly memory: LinearMemory } | null;

  /** Takes instantiated kernels. */
  constructor({ variant, kernels, pool, oneThread }: LoadedKernels, reason: string) {
    this.#variant = variant;
    this.#reason = oneThread === undefined ? reason : `${reason}; one thread: ${oneThread}`;
    this.#pool = pool;
    this.#loaded = { kernels, memory: new LinearMemory(kernels) };
  }

  /** Which kernels run, on how many threads, and why: that threads cannot be had may show after they were started. */
  get info(): BackendInfo {
    const [variant, pool] = [this.#variant, this.#pool];
    const weightDtypes = WEIGHT_DTYPES;
    if (!pool) return { variant, threads: 1, reason: this.#reason, weightDtypes };
    return { variant, threads: pool.threads, reason: `${this.#reason}; ${pool.reason}`, weightDtypes };
  }

  protected get kernels(): Kernels {
    return this.#live.kernels;
  }

  protected get memory(): LinearMemory {
    return this.#live.memory;
  }

  get #live(): { readonly kernels: Kernels; readonly memory: LinearMemory } {
    if (!this.#loaded) throw disposedBackend();
    this.#pool?.check();
    return this.#loaded;
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

  /** See `Backend.cache`. */
  cache(shape: CacheShape, dtype: CacheDtype): Cache {
    checkCache(shape, dtype);
    return new PackedCache(shape, dtype, (words) => this.keep(this.tensor(words)));
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
    this.#pool?.dispose();
    this.#loaded?.memory.drop();
    this.#loaded = null;
  }

  /** The same as `dispose()`. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}
