/** Figures of a software driver must not pass for a GPU's. */
import { test } from "node:test";
import assert from "node:assert/strict";
import { fileURLToPath } from "node:url";
import { startScript } from "./cli_support.ts";
import { findDevice } from "./webgpu_support.ts";

const BENCH = fileURLToPath(new URL("../bench/webgpu_bench.ts", import.meta.url));

async function softwareSkip(): Promise<{ skip?: string }> {
  const device = await findDevice();
  device?.destroy();
  if (!device) return { skip: "no WebGPU in this runtime" };
  return device.adapterInfo?.isFallbackAdapter ? {} : { skip: "no software driver here" };
}

test("webgpu_bench.ts keeps no figures of a software driver", await softwareSkip(), async () => {
  const { status, stdout, stderr } = await startScript(BENCH, ["--save"]).ended;
  assert.deepEqual([status, stdout], [1, ""]);
  assert.match(stderr, /Cannot keep figures of .*: it is a software driver, not a GPU/);
});
