/**
 * Opening a backend: the only place that chooses one.
 *
 * @module
 */

import type { Backend } from "./backend.ts";
import type { WorkerLike } from "./wasm/worker_host.ts";
import type { OpenedDevice } from "./webgpu/device.ts";

export type { WorkerLike };

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
  /** A backend by name, which is then given or refused; `"auto"`, the default, takes a GPU where there is a real one. */
  readonly prefer?: "auto" | "wasm" | "webgpu";
  /** A GPU device to compute on, which stays the caller's: of npm `webgpu` in Node and Bun, or one that a page has. */
  readonly device?: DeviceLike;
  /** How much `"auto"` has to do: bytes of weights that one result goes through. Below 20 MB it asks for no GPU. */
  readonly weightBytes?: number;
  /** Compiled kernels, or their bytes, for runtimes that cannot compile (workerd) and for code caching (browsers). */
  readonly wasm?: WebAssembly.Module | BufferSource;
  /** The WebAssembly build: relaxed SIMD where the runtime has it, else plain SIMD. */
  readonly variant?: "relaxed" | "simd";
  /**
   * Threads of WebAssembly, the caller's included; `"auto"` is one per core, 8 at most; of a number above
   * 32, 32 are used. The default is 1: a server that answers on all cores already gains nothing. Where there can be none, as in a page that is not cross-origin isolated,
   * one thread computes and `backend.info.reason` says why.
   */
  readonly threads?: number | "auto";
  /** Makes a worker that runs the code of a `data:` URL, for runtimes and policies that need another way. */
  readonly worker?: (code: URL) => WorkerLike;
}

const BY_NAME = "asked for by name";

/**
 * Opens a compute backend, which the caller owns and disposes. Nothing is loaded or compiled before this call.
 *
 * `"auto"` takes the device given, else a GPU of this runtime, else WebAssembly. It takes no software adapter, and no GPU
 * from which results come back later than WebAssembly has computed them (`weightBytes`). Asking costs 0.3 ms where there
 * is no driver, 10 to 100 ms where there is one but no GPU (measured in Deno); `info.reason` tells what came of it. By
 * name, `"webgpu"` is any device that the runtime has, a software one too.
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
  if (prefer === "wasm") return await openWasm(options, BY_NAME);
  if (device) return await openGiven(device);
  if (prefer === "webgpu") return await openWebGpu(await requestAny(), BY_NAME);
  const { opened, reason } = await (await import("./webgpu/choice.ts")).chooseDevice(options.weightBytes);
  return opened ? await openWebGpu(opened, reason) : await openWasm(options, reason);
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

async function openGiven(device: DeviceLike): Promise<Backend> {
  const { takeDevice } = await import("./webgpu/device.ts");
  return await openWebGpu(takeDevice(device), "the device that was passed in");
}

async function requestAny(): Promise<OpenedDevice> {
  return await (await import("./webgpu/device.ts")).requestDevice({ software: true });
}

async function openWebGpu(opened: OpenedDevice, reason: string): Promise<Backend> {
  const { WebGpuBackend } = await import("./webgpu/backend.ts");
  return new WebGpuBackend(opened, reason);
}
