/**
 * Opening a backend: the only place that chooses one.
 *
 * @module
 */

import type { Backend } from "./backend.ts";

/** A `GPUDevice`, described by its shape so that programs without GPU types can name it. */
export interface DeviceLike {
  /** The queue that takes commands. */
  readonly queue: object;
  /** What bindings and dispatches may need. */
  readonly limits: object;
  /** Resolves when the device is lost. */
  readonly lost: Promise<unknown>;
  /** Makes a buffer. */
  createBuffer(descriptor: never): object;
}

/** Options of {@linkcode openBackend}. */
export interface OpenBackendOptions {
  /** A backend by name, which is then given or refused; `"auto"`, the default, takes the best one that works. */
  readonly prefer?: "auto" | "wasm" | "webgpu";
  /** A GPU device to compute on, which stays the caller's: of npm `webgpu` in Node and Bun, or one that a page has. */
  readonly device?: DeviceLike;
  /** Compiled kernels, or their bytes, for runtimes that cannot compile (workerd) and for code caching (browsers). */
  readonly wasm?: WebAssembly.Module | BufferSource;
  /** The WebAssembly build: relaxed SIMD where the runtime has it, else plain SIMD. */
  readonly variant?: "relaxed" | "simd";
}

/**
 * Opens a compute backend, which the caller owns and disposes. Nothing is loaded or compiled before this call.
 *
 * `"auto"` takes the device given, else WebAssembly: asking a runtime for its GPU costs 20 to 100 ms (measured in Deno),
 * and no GPU has been measured against WebAssembly yet. By name, `"webgpu"` is any device that the runtime has, a
 * software one too.
 *
 * @throws {BackendUnavailableError} If the backend asked for cannot run here.
 *
 * @example
 * ```ts
 * import { openBackend } from "@lowrank/lora";
 * import assert from "node:assert/strict";
 *
 * const backend = await openBackend();
 * const x = backend.tensor([1, 2], Float32Array.of(1, 2));
 * assert.deepEqual([...await backend.read(backend.add(x, x))], [2, 4]);
 * backend.dispose();
 * ```
 */
export async function openBackend(options: OpenBackendOptions = {}): Promise<Backend> {
  const { prefer = "auto", device } = options;
  if (prefer !== "auto" && prefer !== "wasm" && prefer !== "webgpu") {
    throw new TypeError(`Cannot open "${prefer}": prefer must be "auto", "wasm" or "webgpu"`);
  }
  if (prefer === "webgpu" || (prefer === "auto" && device)) return await openWebGpu(device);
  return await openWasm(options, prefer === "wasm" ? "asked for by name" : "a GPU computes when it is asked for");
}

async function openWasm({ wasm, variant }: OpenBackendOptions, reason: string): Promise<Backend> {
  const [{ WasmBackend }, { loadKernels }] = await Promise.all([
    import("./wasm/backend.ts"),
    import("./wasm/kernels.ts"),
  ]);
  return new WasmBackend(await loadKernels({ ...(wasm && { wasm }), ...(variant && { variant }) }), reason);
}

async function openWebGpu(device: DeviceLike | undefined): Promise<Backend> {
  const [{ WebGpuBackend }, { requestDevice, takeDevice }] = await Promise.all([
    import("./webgpu/backend.ts"),
    import("./webgpu/device.ts"),
  ]);
  if (device) return new WebGpuBackend(takeDevice(device), "the device that was passed in");
  return new WebGpuBackend(await requestDevice(), "asked for by name");
}
