/**
 * Opening kernels that several threads run, or one with the reason why there are no more.
 *
 * @module
 */

import {
  embeddedKernels,
  hasExactDot,
  hasRelaxedSimd,
  inexactDot,
  type KernelOptions,
  type Kernels,
} from "./kernels.ts";
import { type LoadedKernels, loadKernels } from "./kernels.ts";
import { shareMemory } from "./shared_module.ts";
import { STACK_BYTES, ThreadPool } from "./thread_pool.ts";
import { type SplitOptions, threadedKernels } from "./threaded_kernels.ts";
import { MOST_THREADS } from "./worker_code.ts";
import { findWorkers, type WorkerFactory } from "./worker_host.ts";

/** Which kernels to load, and for how many threads. */
export interface ThreadOptions extends KernelOptions, SplitOptions {
  /** Threads, the caller's included; `"auto"` is one per core, `MOST_AUTO` at most. */
  readonly threads: number | "auto";
  /** Makes workers; the default is what the runtime has. */
  readonly worker?: WorkerFactory;
}

/** More cores than this are rarely a single program's to take. */
const MOST_AUTO = 8;
/** Largest memories to try, in pages: all of wasm32, then what small devices can reserve. */
const RESERVATIONS = [65_536, 32_768, 16_384];
const PAGE = 65_536;

/**
 * Loads kernels for threads; where there can be none, for one, and says why.
 *
 * @throws {BackendUnavailableError} If this runtime cannot run them at all.
 */
export async function loadThreadedKernels(options: ThreadOptions): Promise<LoadedKernels> {
  const threads = Math.min(options.threads === "auto" ? coreCount() : options.threads, MOST_THREADS);
  const worker = options.worker ?? findWorkers();
  const { wasm } = options;
  const why = whyNot(threads, worker) ??
    (wasm instanceof WebAssembly.Module ? "a compiled module has a memory of its own, its bytes can share one" : null);
  if (why !== null || worker === null || wasm instanceof WebAssembly.Module) return await loadSingle(options, why);
  try {
    return await share({ ...options, threads, worker }, wasm);
  } catch (error) {
    return await loadSingle(options, error instanceof Error ? error.message : String(error));
  }
}

async function loadSingle(options: ThreadOptions, why: string | null): Promise<LoadedKernels> {
  return { ...await loadKernels(options), oneThread: why ?? "there are no workers here" };
}

function coreCount(): number {
  const { navigator } = globalThis as { readonly navigator?: { readonly hardwareConcurrency?: number } };
  return Math.min(navigator?.hardwareConcurrency ?? 1, MOST_AUTO);
}

function whyNot(threads: number, worker: WorkerFactory | null): string | null {
  const { crossOriginIsolated } = globalThis as { readonly crossOriginIsolated?: boolean };
  if (typeof SharedArrayBuffer === "undefined") {
    return crossOriginIsolated === false
      ? "the page is not cross-origin isolated"
      : "there is no SharedArrayBuffer here";
  }
  if (!worker) return "there are no workers here";
  return threads === 1 ? "there is one core" : null;
}

interface ShareOptions extends SplitOptions {
  readonly variant?: "relaxed" | "simd";
  readonly threads: number;
  readonly worker: WorkerFactory;
}

async function share(options: ShareOptions, wasm: BufferSource | undefined): Promise<LoadedKernels> {
  const variant = options.variant ?? (hasRelaxedSimd() ? "relaxed" : "simd");
  const shared = await shareMemory(wasm ? bytesOf(wasm) : await embeddedKernels(variant));
  const module = await WebAssembly.compile(shared.bytes);
  const memory = makeMemory(shared.pages + Math.ceil(options.threads * STACK_BYTES / PAGE));
  const { exports } = await WebAssembly.instantiate(module, { env: { memory } });
  const kernels = exports as unknown as Kernels;
  if (!hasExactDot(kernels)) throw inexactDot(variant);
  const stacks = Number(kernels.__heap_base.value);
  const { threads, worker } = options;
  const pool = new ThreadPool({ kernels, module, threads, worker, stacks });
  const heap = new WebAssembly.Global({ value: "i32" }, stacks + (threads - 1) * STACK_BYTES);
  return {
    variant: wasm ? "given" : variant,
    kernels: { ...threadedKernels(kernels, pool, options), __heap_base: heap },
    pool,
  };
}

function bytesOf(source: BufferSource): Uint8Array<ArrayBuffer> {
  return ArrayBuffer.isView(source)
    ? new Uint8Array(source.buffer, source.byteOffset, source.byteLength)
    : new Uint8Array(source);
}

/** A shared memory has to reserve the addresses that it may grow into. */
function makeMemory(initial: number): WebAssembly.Memory {
  for (const maximum of RESERVATIONS.slice(0, -1)) {
    try {
      return new WebAssembly.Memory({ initial, maximum, shared: true });
    } catch {
      continue;
    }
  }
  return new WebAssembly.Memory({ initial, maximum: RESERVATIONS.at(-1)!, shared: true });
}
