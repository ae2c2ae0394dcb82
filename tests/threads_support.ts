/** Backends whose threads have started and split every operation that can be split. */
import assert from "node:assert/strict";
import { WasmBackend } from "../src/wasm/backend.ts";
import { loadThreadedKernels, type ThreadOptions } from "../src/wasm/threads.ts";

/** Opens one, and fails where its threads do not start. */
export async function openThreads(options: ThreadOptions): Promise<WasmBackend> {
  const loaded = await loadThreadedKernels({ grain: 1, ...options });
  const backend = new WasmBackend(loaded, "for a test");
  assert.ok(await loaded.pool?.whenReady(), backend.info.reason);
  return backend;
}
