/**
 * The table of backends: every operation's tests run once per row.
 *
 * @module
 */
import { test } from "node:test";
import type { Backend } from "../src/backend.ts";
import { openBackend } from "../src/open.ts";
import { openThreads } from "./threads_support.ts";
import { gpuSkip, openGpu } from "./webgpu_support.ts";

/** One backend to test. */
export interface BackendRow {
  readonly name: string;
  /** Why this engine cannot open it; its tests are then reported as skipped, by name. */
  readonly skip?: string;
  open(): Promise<Backend>;
}

/** (module (func (result v128) (i8x16.relaxed_swizzle (i8x16.splat (i32.const 1)) (i8x16.splat (i32.const 2))))) */
// deno-fmt-ignore
const RELAXED_PROBE = new Uint8Array([
  0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 15, 1, 13, 0, 65, 1, 253, 15, 65, 2, 253, 15,
  253, 128, 2, 11,
]);

function relaxedRow(): BackendRow {
  const row = { name: "wasm relaxed", open: () => openBackend({ prefer: "wasm", variant: "relaxed" }) };
  return WebAssembly.validate(RELAXED_PROBE) ? row : { ...row, skip: "no relaxed SIMD in this engine" };
}

export const BACKENDS: readonly BackendRow[] = [
  relaxedRow(),
  { name: "wasm simd", open: () => openBackend({ prefer: "wasm", variant: "simd" }) },
  { name: "wasm 2 threads", open: () => openThreads({ threads: 2 }) },
  { name: "webgpu", ...await gpuSkip(), open: () => openGpu() },
];

type BackendTest = (backend: Backend) => Promise<void> | void;

/** Registers one test per row of the table; each gets a fresh backend whose free memory is NaN. */
export function forEachBackend(name: string, body: BackendTest): void {
  for (const row of BACKENDS) registerTest(row, name, body);
}

/** The same for the builds of the WebAssembly kernels alone. */
export function forEachBuild(name: string, body: BackendTest): void {
  for (const row of BACKENDS) if (row.name.startsWith("wasm")) registerTest(row, name, body);
}

function registerTest(row: BackendRow, name: string, body: BackendTest): void {
  test(`${name} [${row.name}]`, row.skip === undefined ? {} : { skip: row.skip }, async () => {
    const backend = await row.open();
    try {
      poisonFreeMemory(backend);
      await body(backend);
    } finally {
      backend.dispose();
    }
  });
}

/** Leaves NaN in memory that later tensors get, so that an element never written or read too far shows. */
export function poisonFreeMemory(backend: Backend, floats: number = 1 << 18): void {
  backend.tensor([floats], new Float32Array(floats).fill(NaN)).dispose();
}
