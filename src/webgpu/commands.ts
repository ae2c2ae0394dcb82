/**
 * Recording and submitting: dispatches gather in one compute pass and are submitted at the next read, or when something
 * must reach the queue before them. Everything reaches the device in the order of the calls.
 *
 * @module
 */

import { DeviceLostError, DisposedError } from "../errors.ts";
import { Batch } from "./batch.ts";
import { BufferPool, type DeviceBuffer, noMemory, USAGE } from "./buffer_pool.ts";
import { inErrorScopes } from "./error_scopes.ts";
import { type Constants, type Kernel, PARAMETER_BYTES, Pipelines } from "./pipelines.ts";
import type { ShaderName } from "./shaders.ts";

/** One dispatch of a kernel. */
export interface Dispatch {
  /** Which kernel. */
  readonly shader: ShaderName;
  /** Its override constants. */
  readonly constants?: Constants;
  /** Its storage buffers, in the order of the bindings. */
  readonly buffers: readonly DeviceBuffer[];
  /** Workgroups, the kernel's first parameter; none is no dispatch. */
  readonly groups: number;
  /** Its other whole numbers, in order. */
  readonly integers: readonly number[];
  /** Its floating-point numbers, which follow. */
  readonly floats?: readonly number[];
}

/** What limits a queue. */
export interface QueueLimits {
  /** Bytes of a buffer that one binding holds. */
  readonly maxBinding: number;
  /** Workgroups in one dimension of a dispatch. */
  readonly maxGroups: number;
}

/** What a queue did and holds, for tests and measurements. */
export interface GpuCounts {
  /** Kernels dispatched. */
  readonly dispatches: number;
  /** Submissions to the queue. */
  readonly submits: number;
  /** Buffers that exist on the device, idle ones included. */
  readonly buffers: number;
}

/** Dispatches in one batch: a forward pass of 80 layers. The parameters of all of them are one buffer of 512 KiB. */
const MAX_DISPATCHES = 2048;
const MAX_BIND_GROUPS = 8192;
const MAP_READ = 1;

/** The commands of one device, and the buffers that they use. */
export class CommandQueue {
  /** Limits of the device. */
  readonly limits: QueueLimits;
  readonly #device: GPUDevice;
  readonly #storage: BufferPool;
  readonly #staging: BufferPool;
  readonly #uniform: GPUBuffer;
  readonly #parameters = new Uint32Array(MAX_DISPATCHES * PARAMETER_BYTES / 4);
  readonly #pipelines: Pipelines;
  readonly #bindGroups = new Map<string, GPUBindGroup>();
  readonly #waiting = new Set<(reason: Error) => void>();
  #batch = new Batch(0);
  #settled: Promise<void> = Promise.resolve();
  #encoder: GPUCommandEncoder | null = null;
  #pass: GPUComputePassEncoder | null = null;
  #recorded = 0;
  #dispatches = 0;
  #submits = 0;
  #end: Error | null = null;

  /** Takes a device and the limits to keep to. */
  constructor(device: GPUDevice, limits: QueueLimits) {
    this.#device = device;
    this.limits = limits;
    this.#storage = new BufferPool(
      device,
      USAGE.storage | USAGE.copySource | USAGE.copyTarget,
      limits.maxBinding,
      (buffer) => {
        // What is recorded with it would fail, and all that is recorded from now on with that.
        if (buffer.batch === this.#batch.id) this.flush();
        this.#bindGroups.clear();
      },
    );
    this.#staging = new BufferPool(device, USAGE.mapRead | USAGE.copyTarget, device.limits.maxBufferSize);
    const size = MAX_DISPATCHES * PARAMETER_BYTES;
    const expect = (failure: Promise<Error | null>) => this.#batch.expect(failure);
    const { value, caught } = inErrorScopes(device, () => {
      return device.createBuffer({ size, usage: USAGE.uniform | USAGE.copyTarget });
    });
    this.#uniform = value;
    expect(caught.then((error) => error && this.#finish(noMemory(size, error.message))));
    this.#pipelines = new Pipelines(device, expect);
    device.lost.then(({ reason, message }) => this.#finish(lost(reason, message)));
  }

  /** Dispatches and submissions so far, and buffers that exist. */
  get counts(): GpuCounts {
    const parameters = this.#end instanceof DisposedError ? 0 : 1;
    const buffers = this.#storage.live + this.#staging.live + parameters;
    return { dispatches: this.#dispatches, submits: this.#submits, buffers };
  }

  /**
   * Refuses to go on without a device.
   *
   * @throws {DisposedError | DeviceLostError} If the queue was disposed, or the device is lost.
   */
  check(): void {
    if (this.#end) throw this.#end;
  }

  /** A buffer for results, zero if it is `made` just now. With `idle`, one that no recorded command uses. */
  acquire(bytes: number, idle = false): { buffer: DeviceBuffer; zero: boolean } {
    this.check();
    if (idle && this.#storage.isWaiting(bytes, this.#batch.id)) this.flush();
    const { buffer, made } = this.#storage.acquire(bytes, idle ? this.#batch.id : null);
    this.#batch.begin(buffer, made);
    return { buffer, zero: made !== null };
  }

  /** Takes a buffer back; commands recorded before may still use it. */
  release(buffer: DeviceBuffer): void {
    this.#storage.release(buffer);
  }

  /** Writes bytes, a multiple of four, before all commands that are recorded from now on. */
  upload(buffer: DeviceBuffer, offset: number, bytes: Uint8Array<ArrayBuffer>): void {
    this.check();
    if (bytes.length === 0) return; // Deno 2.9 aborts the process on an empty write.
    if (buffer.batch === this.#batch.id) this.flush();
    // What is caught is not needed: only a buffer that does not exist refuses, and that is known from its creation.
    inErrorScopes(this.#device, () => this.#device.queue.writeBuffer(buffer.handle, offset, bytes));
  }

  /** Notes that all of a buffer is overwritten, after {@linkcode upload}. */
  renew(buffer: DeviceBuffer): void {
    this.#batch.begin(buffer);
  }

  /** Fills a buffer with zeros. */
  clear(buffer: DeviceBuffer): void {
    this.#encode(buffer, buffer).clearBuffer(buffer.handle);
  }

  /** Copies the first bytes of one buffer to another. */
  copy(source: DeviceBuffer, target: DeviceBuffer, bytes: number): void {
    this.#encode(source, target).copyBufferToBuffer(source.handle, 0, target.handle, 0, bytes);
  }

  #encode(source: DeviceBuffer, target: DeviceBuffer): GPUCommandEncoder {
    this.check();
    this.#pass?.end();
    this.#pass = null;
    this.#batch.use(source, false);
    this.#batch.use(target, true);
    return this.#encoder ??= this.#device.createCommandEncoder();
  }

  /** Records a dispatch. */
  dispatch({ shader, constants = {}, buffers, groups, integers, floats = [] }: Dispatch): void {
    this.check();
    if (groups === 0) return;
    for (const { dead } of buffers) if (dead) throw dead;
    if (this.#recorded === MAX_DISPATCHES) this.flush();
    const kernel = this.#pipelines.get(shader, constants);
    const apart = this.#separate(kernel, buffers);
    const group = this.#bindGroup(kernel, apart);
    const at = this.#recorded++ * PARAMETER_BYTES / 4;
    this.#parameters.set([groups, ...integers], at);
    new Float32Array(this.#parameters.buffer).set(floats, at + 1 + integers.length);
    this.#encoder ??= this.#device.createCommandEncoder();
    this.#pass ??= this.#encoder.beginComputePass();
    this.#pass.setPipeline(kernel.pipeline);
    this.#pass.setBindGroup(0, group, [at * 4]);
    const width = Math.min(groups, this.limits.maxGroups);
    this.#pass.dispatchWorkgroups(width, Math.ceil(groups / width));
    apart.forEach((buffer, i) => this.#batch.use(buffer, kernel.access[i] === "w"));
    for (const buffer of apart) if (!buffers.includes(buffer)) this.release(buffer);
    this.#dispatches++;
  }

  /** Copies what a dispatch both reads and writes: WebGPU forbids a buffer in two such bindings. */
  #separate({ access }: Kernel, buffers: readonly DeviceBuffer[]): readonly DeviceBuffer[] {
    const written = buffers.filter((_, i) => access[i] === "w");
    return buffers.map((buffer, i) => {
      if (access[i] === "w" || !written.includes(buffer)) return buffer;
      const { buffer: twin } = this.acquire(buffer.bytes);
      this.copy(buffer, twin, buffer.bytes);
      return twin;
    });
  }

  #bindGroup({ layout, access }: Kernel, buffers: readonly DeviceBuffer[]): GPUBindGroup {
    const key = `${access} ${buffers.map(({ id }) => id).join(" ")}`;
    const known = this.#bindGroups.get(key);
    if (known) return known;
    const resources = [
      { buffer: this.#uniform, size: PARAMETER_BYTES },
      ...buffers.map(({ handle }) => ({
        buffer: handle,
      })),
    ];
    const { value, caught } = inErrorScopes(this.#device, () =>
      this.#device.createBindGroup({
        layout,
        entries: resources.map((resource, binding) => ({ binding, resource })),
      }));
    this.#batch.expect(caught.then((error) => error && new Error(`Cannot bind buffers: ${error.message}`)));
    if (this.#bindGroups.size >= MAX_BIND_GROUPS) this.#bindGroups.clear();
    this.#bindGroups.set(key, value);
    return value;
  }

  /** Submits what is recorded. */
  flush(): void {
    const encoder = this.#encoder;
    if (!encoder || this.#end) return;
    this.#pass?.end();
    this.#pass = this.#encoder = null;
    const batch = this.#batch;
    const used = this.#parameters.subarray(0, this.#recorded * PARAMETER_BYTES / 4);
    this.#recorded = 0;
    const { caught } = inErrorScopes(this.#device, () => {
      if (used.length > 0) this.#device.queue.writeBuffer(this.#uniform, 0, used);
      this.#device.queue.submit([encoder.finish()]);
    });
    batch.expect(caught.then((error) => error && new Error(`Cannot run commands on the GPU: ${error.message}`)));
    this.#submits++;
    this.#batch = new Batch(batch.id + 1);
    this.#settled = this.#settled.then(() => batch.settle());
    for (const start of batch.onSubmit) start();
    this.#storage.trim();
    this.#staging.trim();
  }

  /** Copies out the first bytes of a buffer, as they are after all commands recorded before. */
  read(buffer: DeviceBuffer, bytes: number): Promise<ArrayBuffer> {
    this.check();
    if (bytes === 0) return Promise.resolve(new ArrayBuffer(0));
    const { buffer: staging, made } = this.#staging.acquire(bytes);
    this.#batch.begin(staging, made);
    this.copy(buffer, staging, bytes);
    const result = new Promise<ArrayBuffer>((resolve, reject) => {
      this.#waiting.add(reject);
      const done = () => this.#waiting.delete(reject);
      this.#batch.onSubmit.push(() => this.#map(staging, bytes).then(resolve, reject).finally(done));
    });
    // Later, so that all reads of one turn share a submission.
    queueMicrotask(() => this.flush());
    return result;
  }

  async #map(staging: DeviceBuffer, bytes: number): Promise<ArrayBuffer> {
    const settled = this.#settled;
    try {
      await inErrorScopes(this.#device, () => staging.handle.mapAsync(MAP_READ, 0, bytes)).value;
      const values = staging.handle.getMappedRange(0, bytes).slice(0);
      staging.handle.unmap();
      await settled;
      // Mapping succeeds even when the submission failed: what is mapped is then no result.
      if (staging.failure) throw staging.failure;
      return values;
    } catch (cause) {
      await settled;
      throw staging.failure ?? this.#end ?? lost("unknown", "a buffer could not be read", cause);
    } finally {
      this.#staging.release(staging);
    }
  }

  /** Destroys all buffers; every later call throws, and so does every read that waits. */
  dispose(): void {
    const disposed = new DisposedError("Cannot use the backend: it is disposed");
    this.#finish(disposed);
    this.#end = disposed;
    this.#storage.dispose();
    this.#staging.dispose();
    this.#uniform.destroy();
  }

  #finish(reason: Error): Error {
    this.#end ??= reason;
    this.#encoder = this.#pass = null;
    for (const reject of this.#waiting) reject(this.#end);
    this.#waiting.clear();
    return this.#end;
  }
}

function lost(reason: string, message: string, cause?: unknown): DeviceLostError {
  return new DeviceLostError(`Cannot use the GPU: the device is lost (${message || reason})`, { reason, cause });
}
