/**
 * The WebAssembly backend: one method per operation, in the classes it extends.
 *
 * @module
 */

import type { Backend } from "../backend.ts";
import { WasmRowOperations } from "./row_operations.ts";

/** Runs the operations on the CPU, at once, in the order of the calls. */
export class WasmBackend extends WasmRowOperations implements Backend {
  /** `"wasm"`. */
  readonly name = "wasm" as const;
}
