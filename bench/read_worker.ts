/** One more thread of read_bandwidth.ts. */
import { parentPort, workerData } from "node:worker_threads";
import { openPeaks } from "../src/cli/peak.ts";

const { read } = await openPeaks();
parentPort!.on("message", () => {
  for (let pass = 0; pass < workerData; pass++) read.run();
  parentPort!.postMessage("done");
});
parentPort!.postMessage("ready");
