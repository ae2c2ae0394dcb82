/**
 * The WebGPU backend: one method per operation, in the classes it extends.
 *
 * @module
 */

import type { Backend } from "../backend.ts";
import { WebGpuSamplingOperations } from "./sampling_operations.ts";

/** Records operations in the order of the calls, and runs them on the GPU when a result is read. */
export class WebGpuBackend extends WebGpuSamplingOperations implements Backend {
  /** `"webgpu"`. */
  readonly name = "webgpu" as const;
}
