/**
 * Getting a GPU device: one that the caller passes in, or one of this runtime's `navigator.gpu`.
 *
 * @module
 */

import type { BackendInfo } from "../backend.ts";
import { BackendUnavailableError } from "../errors.ts";
import { WEIGHT_DTYPES } from "../wasm/dtypes.ts";
import { USAGE } from "./buffer_pool.ts";

/** A device, and what is known about it. */
export interface OpenedDevice {
  /** The device. */
  readonly device: GPUDevice;
  /** Whether it was made here, and is destroyed with the backend. */
  readonly owned: boolean;
  /** Vendor and architecture of the GPU, as far as the runtime tells. */
  readonly adapterInfo?: GPUAdapterInfo | undefined;
}

/** More than any binding that the package makes; a device is asked for this much, or for what its adapter has. */
const WANTED_BYTES = 2 ** 30;
/** Round trips of which the shortest counts. */
const READBACKS = 3;
const MAP_READ = 1;

/**
 * Takes the caller's device as it is.
 *
 * @throws {TypeError} If it is no GPU device.
 */
export function takeDevice(device: object): OpenedDevice {
  const given = device as GPUDevice;
  if (typeof given.createComputePipeline !== "function" || !given.queue || !given.limits) {
    throw new TypeError(`Cannot open "webgpu" with a device of type ${typeof device}: expected a GPUDevice`);
  }
  return { device: given, owned: false, adapterInfo: given.adapterInfo };
}

/**
 * Makes a device of this runtime's GPU. A software adapter is taken only if `software` allows it, and is told as one.
 *
 * @throws {BackendUnavailableError} If this runtime has no WebGPU, no adapter, or gives no device.
 */
export async function requestDevice({ software }: { readonly software: boolean }): Promise<OpenedDevice> {
  const gpu = (globalThis.navigator as Navigator | undefined)?.gpu;
  if (!gpu) throw unavailable('no "navigator.gpu" in this runtime; Node and Bun can pass a device of npm "webgpu"');
  const gpuAdapter = await gpu.requestAdapter({ powerPreference: "high-performance" }).catch(refuse);
  if (!gpuAdapter) throw unavailable("no GPU adapter in this runtime");
  if (!software && gpuAdapter.info.isFallbackAdapter) throw unavailable("the GPU adapter of this runtime is software");
  const least = ({ maxBufferSize, maxStorageBufferBindingSize }: GPUSupportedLimits) => ({
    maxBufferSize: Math.min(maxBufferSize, WANTED_BYTES),
    maxStorageBufferBindingSize: Math.min(maxStorageBufferBindingSize, WANTED_BYTES),
  });
  const requiredLimits = least(gpuAdapter.limits);
  const device = await gpuAdapter.requestDevice({ label: "@lowrank/lora", requiredLimits }).catch(refuse);
  return { device, owned: true, adapterInfo: gpuAdapter.info };
}

/** What a backend on the device says of itself. */
export function describeDevice({ device, adapterInfo }: OpenedDevice, reason: string): BackendInfo {
  const { vendor = "", architecture = "", description = "", isFallbackAdapter: software = false } = adapterInfo ?? {};
  const words = [vendor, architecture, description].filter(Boolean).join(" ") || "unknown GPU";
  const gpu = { vendor, architecture, software, features: [...device.features].sort() };
  const variant = words + (software ? " (software)" : "");
  return { variant, threads: 1, reason, weightDtypes: WEIGHT_DTYPES, gpu };
}

/** Milliseconds from a submission to its result in JavaScript, at best; Deno 2.9 takes 11 whatever the GPU. */
export async function measureReadback(device: GPUDevice): Promise<number> {
  const buffer = device.createBuffer({ size: 4, usage: USAGE.mapRead | USAGE.copyTarget });
  let best = Infinity;
  try {
    for (let i = 0; i < READBACKS; i++) {
      const start = performance.now();
      const encoder = device.createCommandEncoder();
      encoder.clearBuffer(buffer);
      device.queue.submit([encoder.finish()]);
      await buffer.mapAsync(MAP_READ);
      buffer.unmap();
      best = Math.min(best, performance.now() - start);
    }
    return best;
  } finally {
    buffer.destroy();
  }
}

function refuse(cause: unknown): never {
  throw unavailable(cause instanceof Error ? cause.message : String(cause), cause);
}

function unavailable(why: string, cause?: unknown): BackendUnavailableError {
  return new BackendUnavailableError(`Cannot open "webgpu": ${why}`, { field: "prefer", found: "webgpu", cause });
}
