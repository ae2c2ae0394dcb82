/** Opening this package's backend with a number of threads. */
import type { Backend } from "../src/backend.ts";
import { openBackend } from "../src/open.ts";

/**
 * Opens the WebAssembly backend with exactly so many threads.
 *
 * @throws {Error} If it has another number: its own reason is told.
 */
export async function openThreads(threads: number): Promise<Backend> {
  const backend = await openBackend({ prefer: "wasm", threads });
  if (backend.info.threads === threads) return backend;
  const { info } = backend;
  backend.dispose();
  throw new Error(`Cannot compute on ${threads} threads: the backend has ${info.threads} (${info.reason})`);
}
