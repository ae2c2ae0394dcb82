/** Reading memory on several threads at once: what bounds the decoding of a model. */
import { once } from "node:events";
import { Worker } from "node:worker_threads";
import type { Body } from "../src/cli/bench_timing.ts";
import { openPeaks } from "../src/cli/peak.ts";

/** Passes over 64 MiB in one run, on every thread. */
const PASSES = 4;

/** A body that reads on all threads. */
export interface Reader {
  readonly body: Body;
  /** Bytes that one run reads. */
  readonly work: number;
  close(): Promise<void>;
}

/** Starts the threads besides this one. */
export async function openReader(threads: number): Promise<Reader> {
  const { read } = await openPeaks();
  const script = new URL("./read_worker.ts", import.meta.url);
  const workers = Array.from({ length: threads - 1 }, () => new Worker(script, { workerData: PASSES }));
  await Promise.all(workers.map(async (worker) => await once(worker, "message")));
  const run = async () => {
    const others = workers.map(async (worker) => {
      worker.postMessage("read");
      await once(worker, "message");
    });
    for (let pass = 0; pass < PASSES; pass++) read.run();
    await Promise.all(others);
  };
  return {
    body: { run },
    work: threads * PASSES * read.work,
    close: async () => void await Promise.all(workers.map(async (worker) => await worker.terminate())),
  };
}
