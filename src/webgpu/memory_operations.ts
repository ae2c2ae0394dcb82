/**
 * What the WebGPU backend holds: tensors and weights in, out and freed, and how a dispatch fills a tensor.
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
import { WEIGHT_DTYPES } from "../wasm/dtypes.ts";
import type { DeviceBuffer } from "./buffer_pool.ts";
import { CommandQueue, type Dispatch, type GpuCounts, type QueueLimits } from "./commands.ts";
import { describeDevice, type OpenedDevice } from "./device.ts";
import { GpuTensor, type GpuWeight } from "./handles.ts";
import { GpuMemory } from "./memory.ts";
import type { Gpu } from "./product.ts";

/** Invocations of a workgroup in kernels that go element by element. */
export const GROUP = 64;

/** Memory of the GPU; the operations are in the classes that extend it. */
export abstract class WebGpuMemoryOperations {
  /** Which GPU computes, and why. */
  readonly info: BackendInfo;
  readonly #device: OpenedDevice;
  protected readonly queue: CommandQueue;
  #memory: GpuMemory | null;

  /** Takes a device, and limits below its own if wanted. */
  constructor(opened: OpenedDevice, reason: string, limits: Partial<QueueLimits> = {}) {
    const { device } = opened;
    const { maxStorageBufferBindingSize, maxBufferSize, maxComputeWorkgroupsPerDimension } = device.limits;
    this.info = describeDevice(opened, reason);
    this.#device = opened;
    this.queue = new CommandQueue(device, {
      maxBinding: Math.floor(Math.min(maxStorageBufferBindingSize, maxBufferSize) / 16) * 16,
      maxGroups: maxComputeWorkgroupsPerDimension,
      ...limits,
    });
    this.#memory = new GpuMemory(this.queue);
  }

  /** The memory of a backend that can compute. */
  protected get live(): GpuMemory {
    this.queue.check();
    return this.#memory!;
  }

  protected get gpu(): Gpu {
    return { queue: this.queue, memory: this.live };
  }

  /** Bytes of tensors and weights now held. */
  get bytes(): number {
    return this.#memory?.used ?? 0;
  }

  /** Dispatches and submissions so far, and buffers that exist. */
  get counts(): GpuCounts {
    return this.queue.counts;
  }

  protected at(tensor: Tensor): DeviceBuffer {
    return this.live.own(tensor).block.buffer;
  }

  protected packed(weight: Weight): GpuWeight {
    const own = this.live.ownWeight(weight);
    own.live;
    return own;
  }

  /** One invocation per element of the result. */
  protected elements(shape: readonly number[], size: number, dispatch: Omit<Dispatch, "groups">): Tensor {
    return this.run(shape, { ...dispatch, groups: Math.ceil(size / GROUP) });
  }

  /** A tensor that one dispatch writes; its buffer is bound last. */
  protected run(shape: readonly number[], { buffers, ...dispatch }: Dispatch): Tensor {
    return this.live.create(shape, (y) => this.queue.dispatch({ ...dispatch, buffers: [...buffers, y] }));
  }

  /** See `Backend.tensor`. */
  tensor(shape: readonly number[], values?: Float32Array): Tensor {
    const size = sizeOf(shape);
    if (values) check.checkValues(shape, size, values);
    return values ? this.live.fromValues(shape, values) : this.live.zeros(shape);
  }

  /** See `Backend.cache`. */
  cache(shape: CacheShape, dtype: CacheDtype): Cache {
    checkCache(shape, dtype);
    return new PackedCache(shape, dtype, (words) => this.keep(this.tensor(words)));
  }

  /** See `Backend.write`. */
  write(tensor: Tensor, values: Float32Array): void {
    check.checkValues(tensor.shape, tensor.size, values);
    this.live.write(this.live.own(tensor), values);
  }

  /** See `Backend.read`. */
  async read(tensor: Tensor): Promise<Float32Array> {
    return new Float32Array(await this.queue.read(this.at(tensor), tensor.size * 4));
  }

  /** See `Backend.reshape`. */
  reshape(tensor: Tensor, shape: readonly number[]): Tensor {
    check.checkReshape(tensor, shape);
    this.at(tensor);
    return new GpuTensor(this.live.own(tensor).block, shape, false);
  }

  /** See `Backend.weight`. */
  weight(values: MatrixValues, options: WeightOptions = {}): Weight {
    checkMatrixValues(values, options, WEIGHT_DTYPES);
    return this.live.pack(values, options);
  }

  /** See `Backend.readWeight`. */
  async readWeight(weight: Weight): Promise<Float32Array> {
    return await this.live.unpack(this.packed(weight));
  }

  /** See `Backend.scope`. */
  scope<T extends Tensor | readonly Tensor[] | void>(body: () => T): T {
    return this.live.scope(body);
  }

  /** See `Backend.keep`. */
  keep(tensor: Tensor): Tensor {
    return this.live.keep(this.live.own(tensor));
  }

  /** Destroys all buffers, and the device if it was made here. */
  dispose(): void {
    if (!this.#memory) return;
    this.#memory = null;
    this.queue.dispose();
    if (this.#device.owned) this.#device.device.destroy();
  }

  /** The same as `dispose()`. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}
