/**
 * The kernels without waiting, for a caller that cannot: the GPU's `weight()`.
 *
 * @module
 */

import { BackendUnavailableError } from "../errors.ts";
import type { Kernels } from "./kernels.ts";
import { KERNELS } from "./kernels_simd.ts";

/**
 * Compiles and instantiates the plain SIMD build at once. Chromium allows that on its main thread for modules of up to
 * 8 MB; this one has 0.1 MB.
 *
 * @throws {BackendUnavailableError} If this runtime cannot compile or run it.
 */
export function instantiateNow(): Kernels {
  try {
    const bytes = Uint8Array.from(atob(KERNELS), (character) => character.charCodeAt(0));
    return new WebAssembly.Instance(new WebAssembly.Module(bytes)).exports as unknown as Kernels;
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new BackendUnavailableError(`Cannot quantize a weight without WebAssembly: ${why}`, { cause });
  }
}
