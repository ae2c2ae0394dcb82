/**
 * Making a worker in any runtime.
 *
 * @module
 */

/** A worker, as far as the thread pool uses it: of the web, or of a runtime's own kind. */
export interface WorkerLike {
  /** Sends the worker its only message. */
  postMessage(message: unknown): void;
  /** Ends it. */
  terminate(): unknown;
  /** Lets the program end while the worker sleeps. */
  unref?(): unknown;
  /** Listens for "error" and "exit". */
  on?(event: string, listener: (detail: unknown) => void): unknown;
  /** Listens for "error". */
  addEventListener?(type: string, listener: (event: Event) => void): void;
}

/** Makes a worker that runs the code of a URL. */
export type WorkerFactory = (code: URL) => WorkerLike;

interface Host {
  readonly Worker?: new (code: URL) => WorkerLike;
  readonly process?: {
    getBuiltinModule?(name: string): { readonly Worker?: new (code: URL) => WorkerLike } | undefined;
  };
}

/**
 * The way to make workers here, or null: the worker threads of Node, which Deno and Bun have too and which alone let a
 * program end that forgot them, else the web's workers. Node has no web workers and its module is not for import where
 * it is absent, so it is looked up as a value.
 */
export function findWorkers(): WorkerFactory | null {
  const host = globalThis as Host;
  const Worker = host.process?.getBuiltinModule?.("node:worker_threads")?.Worker ?? host.Worker;
  return Worker ? (code) => new Worker(code) : null;
}

/** Calls `listener` when the worker fails or ends. */
export function onEnd(worker: WorkerLike, listener: (why: string) => void): void {
  if (worker.on) {
    worker.on("error", (error) => listener(error instanceof Error ? error.message : String(error)));
    worker.on("exit", () => listener("it ended"));
  } else {
    worker.addEventListener?.("error", (event) => {
      event.preventDefault();
      listener((event as Partial<ErrorEvent>).message ?? "it could not start");
    });
  }
}
