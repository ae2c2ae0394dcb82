/**
 * Getting a GPU device: one that the caller passes in, or one of this runtime's `navigator.gpu`.
 *
 * @module
 */

import { BackendUnavailableError } from "../errors.ts";

/** A device, and what is known about it. */
export interface OpenedDevice {
  /** The device. */
  readonly device: GPUDevice;
  /** Whether it was made here, and is destroyed with the backend. */
  readonly owned: boolean;
  /** Vendor, architecture and description of the GPU, as far as the runtime tells. */
  readonly label: string;
}

/** More than any binding that the package makes; a device is asked for this much, or for what its adapter has. */
const WANTED_BYTES = 2 ** 30;

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
  return { device: given, owned: false, label: describe(given.adapterInfo) };
}

/**
 * Makes a device of this runtime's GPU; a software adapter serves too, and its label says so.
 *
 * @throws {BackendUnavailableError} If this runtime has no WebGPU, no adapter, or gives no device.
 */
export async function requestDevice(): Promise<OpenedDevice> {
  const gpu = (globalThis.navigator as Navigator | undefined)?.gpu;
  if (!gpu) throw unavailable('no "navigator.gpu" in this runtime; Node and Bun can pass a device of npm "webgpu"');
  const gpuAdapter = await gpu.requestAdapter({ powerPreference: "high-performance" }).catch(refuse);
  if (!gpuAdapter) throw unavailable("no GPU adapter in this runtime");
  const least = ({ maxBufferSize, maxStorageBufferBindingSize }: GPUSupportedLimits) => ({
    maxBufferSize: Math.min(maxBufferSize, WANTED_BYTES),
    maxStorageBufferBindingSize: Math.min(maxStorageBufferBindingSize, WANTED_BYTES),
  });
  const requiredLimits = least(gpuAdapter.limits);
  const device = await gpuAdapter.requestDevice({ label: "@lowrank/lora", requiredLimits }).catch(refuse);
  return { device, owned: true, label: describe(gpuAdapter.info) };
}

function describe(info: GPUAdapterInfo | undefined): string {
  const words = [info?.vendor, info?.architecture, info?.description].filter(Boolean).join(" ");
  return (words || "unknown GPU") + (info?.isFallbackAdapter ? " (software)" : "");
}

function refuse(cause: unknown): never {
  throw unavailable(cause instanceof Error ? cause.message : String(cause), cause);
}

function unavailable(why: string, cause?: unknown): BackendUnavailableError {
  return new BackendUnavailableError(`Cannot open "webgpu": ${why}`, { field: "prefer", found: "webgpu", cause });
}
