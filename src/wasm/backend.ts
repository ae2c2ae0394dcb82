/**
 * The WebAssembly backend: one method per operation, in the classes it extends.
 *
 * @module
 */

import type { Backend } from "../backend.ts";
import { WasmSamplingOperations } from "./sampling_operations.ts";

/** Runs the operations on the CPU, at once, in the order of the calls. */
export class WasmBackend extends WasmSamplingOperations implements Backend {
  /** `"wasm"`. */
  readonly name = "wasm" as const;
}
