/**
 * Opening a backend: the only place that chooses one.
 *
 * @module
 */

import type { Backend } from "./backend.ts";
import type { WorkerLike } from "./wasm/worker_host.ts";

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
  /**
   * Threads of WebAssembly, the caller's included; `"auto"` is one per core, 8 at most. The default is 1: a server that
   * answers on all cores already gains nothing. Where there can be none, as in a page that is not cross-origin isolated,
   * one thread computes and `backend.info.reason` says why.
   */
  readonly threads?: number | "auto";
  /** Makes a worker that runs the code of a `data:` URL, for runtimes and policies that need another way. */
  readonly worker?: (code: URL) => WorkerLike;
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
  const { prefer = "auto", device, threads = 1 } = options;
  if (prefer !== "auto" && prefer !== "wasm" && prefer !== "webgpu") {
    throw new TypeError(`Cannot open "${prefer}": prefer must be "auto", "wasm" or "webgpu"`);
  }
  if (threads !== "auto" && !(Number.isSafeInteger(threads) && threads >= 1)) {
    throw new RangeError(`Cannot open a backend with threads ${threads}: expected "auto" or a whole number from 1`);
  }
  if (prefer === "webgpu" || (prefer === "auto" && device)) return await openWebGpu(device);
  return await openWasm(options, prefer === "wasm" ? "asked for by name" : "a GPU computes when it is asked for");
}

async function openWasm(options: OpenBackendOptions, reason: string): Promise<Backend> {
  const { wasm, variant, threads = 1, worker } = options;
  const kernels = { ...(wasm && { wasm }), ...(variant && { variant }) };
  const load = threads === 1
    ? import("./wasm/kernels.ts").then(({ loadKernels }) => loadKernels(kernels))
    : import("./wasm/threads.ts").then(({ loadThreadedKernels }) =>
      loadThreadedKernels({ ...kernels, threads, ...(worker && { worker }) })
    );
  const [{ WasmBackend }, loaded] = await Promise.all([import("./wasm/backend.ts"), load]);
  return new WasmBackend(loaded, reason);
}

async function openWebGpu(device: DeviceLike | undefined): Promise<Backend> {
  const [{ WebGpuBackend }, { requestDevice, takeDevice }] = await Promise.all([
    import("./webgpu/backend.ts"),
    import("./webgpu/device.ts"),
  ]);
  if (device) return new WebGpuBackend(takeDevice(device), "the device that was passed in");
  return new WebGpuBackend(await requestDevice(), "asked for by name");
}
