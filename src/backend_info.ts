/**
 * What backends tell about themselves.
 *
 * @module
 */

import type { WeightDtype } from "./weight.ts";

/** What a runtime tells about its GPU; it may keep names to itself. */
export interface GpuInfo {
  /** Who made it, in the runtime's word, or "". */
  readonly vendor: string;
  /** Its family, or "". */
  readonly architecture: string;
  /** Whether it is none: a driver that computes on the CPU. */
  readonly software: boolean;
  /** Optional features of WebGPU that the device has. */
  readonly features: readonly string[];
}

/** What a backend is and runs on. */
export interface BackendInfo {
  /** `"wasm"`: relaxed or plain SIMD; `"webgpu"`: the GPU's vendor and architecture. */
  readonly variant: string;
  /** Threads that large operations run on. */
  readonly threads: number;
  /** Why this backend was chosen. */
  readonly reason: string;
  /** What `weight()` can store. */
  readonly weightDtypes: readonly WeightDtype[];
  /** The GPU, of `"webgpu"`. */
  readonly gpu?: GpuInfo;
}
