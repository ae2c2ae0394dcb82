/**
 * Opening a backend: the only place that chooses one.
 *
 * @module
 */

import type { Backend } from "./backend.ts";
import { BackendUnavailableError } from "./errors.ts";

/** Options of {@linkcode openBackend}. */
export interface OpenBackendOptions {
  /** A backend by name, which is then given or refused; `"auto"`, the default, takes the best one that works. */
  readonly prefer?: "auto" | "wasm" | "webgpu";
  /** Compiled kernels, or their bytes, for runtimes that cannot compile (workerd) and for code caching (browsers). */
  readonly wasm?: WebAssembly.Module | BufferSource;
  /** The WebAssembly build: relaxed SIMD where the runtime has it, else plain SIMD. */
  readonly variant?: "relaxed" | "simd";
}

/**
 * Opens a compute backend, which the caller owns and disposes. Nothing is loaded or compiled before this call.
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
  const { prefer = "auto", wasm, variant } = options;
  if (prefer === "webgpu") {
    throw new BackendUnavailableError('Cannot open "webgpu": this version computes on "wasm" only', {
      field: "prefer",
      found: prefer,
      expected: "wasm",
    });
  }
  if (prefer !== "auto" && prefer !== "wasm") {
    throw new TypeError(`Cannot open "${prefer}": prefer must be "auto", "wasm" or "webgpu"`);
  }
  const [{ WasmBackend }, { loadKernels }] = await Promise.all([
    import("./wasm/backend.ts"),
    import("./wasm/kernels.ts"),
  ]);
  const loaded = await loadKernels({ ...(wasm && { wasm }), ...(variant && { variant }) });
  return new WasmBackend(loaded, prefer === "wasm" ? "asked for by name" : "no GPU backend in this version");
}
