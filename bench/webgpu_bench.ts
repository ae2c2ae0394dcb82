/**
 * The WebGPU backend against what its device can do: `deno run -A bench/webgpu_bench.ts`, or with Node or Bun and npm
 * `webgpu`. Prints the device's name first: figures of a software driver say nothing about any GPU.
 *
 * @module
 */
import assert from "node:assert/strict";
import process from "node:process";
import type { Backend, LoraBranch, Tensor, Weight } from "../src/backend.ts";
import { openBackend } from "../src/open.ts";

/** A row of the table: what ran, its floating-point operations, and the bytes of weights that it has to read. */
interface Case {
  readonly name: string;
  readonly flops: number;
  readonly bytes: number;
  readonly run: () => Tensor;
}

const BATCH_SECONDS = 0.25;
const BATCHES = 5;

const CHAIN = `
@group(0) @binding(0) var<storage, read_write> y: array<vec4f>;
@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3u) {
  var c = array<vec4f, 8>();
  let a = y[id.x];
  for (var i = 0u; i < 256u; i++) {
    for (var j = 0u; j < 8u; j++) { c[j] = fma(a, c[j], a); }
  }
  y[id.x] = c[0] + c[1] + c[2] + c[3] + c[4] + c[5] + c[6] + c[7];
}`;
const CHAIN_GROUPS = 4096;
const CHAIN_FLOPS = CHAIN_GROUPS * 256 * 256 * 8 * 4 * 2;
const COPY_BYTES = 64 << 20;

async function findGpu(): Promise<GPU> {
  const own = (globalThis.navigator as Navigator | undefined)?.gpu;
  if (own) return own;
  const { create } = await import(process.env.JSRT_WEBGPU ?? "webgpu");
  // Dawn crashes the process when this object is collected.
  return (globalThis as { benchGpu?: GPU }).benchGpu = create([]) as GPU;
}

/** Seconds of one `step`, at best, when many are submitted and waited for together. */
async function secondsOf(step: () => void, wait: () => Promise<unknown>): Promise<number> {
  const time = async (count: number) => {
    const start = performance.now();
    for (let i = 0; i < count; i++) step();
    await wait();
    return (performance.now() - start) / 1000;
  };
  await time(1);
  const idle = Math.min(await time(0), await time(0), await time(0));
  let count = 1;
  while (await time(count) < BATCH_SECONDS + idle && count < 1 << 14) count *= 2;
  let best = Infinity;
  for (let i = 0; i < BATCHES; i++) best = Math.min(best, Math.max(await time(count) - idle, 1e-9) / count);
  return best;
}

async function measurePeaks(device: GPUDevice): Promise<{ flops: number; copy: number }> {
  const [storage, copySource, copyTarget] = [128, 4, 8];
  const usage = storage | copySource | copyTarget;
  const [from, to] = [0, 1].map(() => device.createBuffer({ size: COPY_BYTES, usage })) as [GPUBuffer, GPUBuffer];
  const module = device.createShaderModule({ code: CHAIN });
  const pipeline = device.createComputePipeline({ layout: "auto", compute: { module, entryPoint: "main" } });
  const entries = [{ binding: 0, resource: { buffer: from } }];
  const group = device.createBindGroup({ layout: pipeline.getBindGroupLayout(0), entries });
  const submit = (record: (encoder: GPUCommandEncoder) => void) => {
    const encoder = device.createCommandEncoder();
    record(encoder);
    device.queue.submit([encoder.finish()]);
  };
  const chain = () =>
    submit((encoder) => {
      const pass = encoder.beginComputePass();
      pass.setPipeline(pipeline);
      pass.setBindGroup(0, group);
      pass.dispatchWorkgroups(CHAIN_GROUPS);
      pass.end();
    });
  const copy = () => submit((encoder) => encoder.copyBufferToBuffer(from, 0, to, 0, COPY_BYTES));
  const wait = () => device.queue.onSubmittedWorkDone();
  const peaks = {
    flops: CHAIN_FLOPS / await secondsOf(chain, wait),
    copy: 2 * COPY_BYTES / await secondsOf(copy, wait),
  };
  for (const buffer of [from, to]) buffer.destroy();
  return peaks;
}

function randomValues(size: number): Float32Array<ArrayBuffer> {
  return Float32Array.from({ length: size }, (_, i) => (Math.imul(i, 2654435761) >> 16) / 2 ** 16);
}

function weightOf(backend: Backend, n: number, k: number, dtype: "f32" | "bf16"): Weight {
  const bytes = new Uint8Array(randomValues(n * k).buffer);
  return backend.weight({ shape: [n, k], dtype: "f32", bytes }, { dtype });
}

/** Verifies one product against the plain sum before anything is timed. */
async function verify(backend: Backend): Promise<void> {
  const [m, n, k] = [3, 5, 70];
  const [x, w] = [randomValues(m * k), randomValues(n * k)];
  const product = backend.linear(backend.tensor([m, k], x), weightOf(backend, n, k, "f32"));
  (await backend.read(product)).forEach((value, at) => {
    const [row, column] = [Math.floor(at / n), at % n];
    let want = 0;
    for (let i = 0; i < k; i++) want += x[row * k + i]! * w[column * k + i]!;
    assert.ok(Math.abs(value - want) < 1e-4, `element ${at} is ${value}, not ${want}`);
  });
}

function* casesOf(backend: Backend, small: boolean): Generator<Case> {
  for (const size of small ? [256, 512] : [512, 1024, 2048, 4096]) {
    yield linearCase(backend, `GEMM f32 ${size}³`, [size, size, size], "f32");
  }
  const [n, k] = small ? [1024, 1024] : [11008, 4096];
  for (const dtype of ["f32", "bf16"] as const) {
    yield linearCase(backend, `GEMV ${dtype} [${n}, ${k}]`, [1, n, k], dtype);
  }
  const width = small ? 1024 : 4096;
  for (const m of [1, 128]) {
    yield linearCase(backend, `${m} rows, bf16 ${width}²`, [m, width, width], "bf16");
    yield linearCase(backend, `${m} rows, bf16 ${width}², LoRA r = 16`, [m, width, width], "bf16", 16);
  }
}

function linearCase(
  backend: Backend,
  name: string,
  [m, n, k]: readonly [number, number, number],
  dtype: "f32" | "bf16",
  rank = 0,
): Case {
  const [x, weight] = [backend.tensor([m, k], randomValues(m * k)), weightOf(backend, n, k, dtype)];
  const factor = (rows: number, columns: number) => weightOf(backend, rows, columns, "f32");
  const branches: LoraBranch[] = rank === 0 ? [] : [{ a: factor(rank, k), b: factor(n, rank), scaling: 1 }];
  const adapters = [{ start: 0, end: m, branches }];
  return {
    name,
    flops: 2 * m * (n * k + rank * (n + k)),
    bytes: weight.bytes + 4 * rank * (n + k),
    run: () => backend.linear(x, weight, { adapters }),
  };
}

const gpuAdapter = await (await findGpu()).requestAdapter({ powerPreference: "high-performance" });
if (!gpuAdapter) throw new Error("Cannot measure: no GPU adapter in this runtime");
const { isFallbackAdapter: software } = gpuAdapter.info;
const { maxBufferSize, maxStorageBufferBindingSize } = gpuAdapter.limits;
const device = await gpuAdapter.requestDevice({ requiredLimits: { maxBufferSize, maxStorageBufferBindingSize } });
const backend = await openBackend({ prefer: "webgpu", device });
console.log(`device: ${backend.info.variant}${software ? ": not a GPU, these figures say nothing about one" : ""}`);
await verify(backend);
const peaks = await measurePeaks(device);
console.log(`peak: ${(peaks.flops / 1e9).toFixed(1)} GFLOP/s (FMA), ${(peaks.copy / 1e9).toFixed(1)} GB/s (copy)`);
const tick = backend.tensor([1]);
for (const { name, flops, bytes, run } of casesOf(backend, software)) {
  const seconds = await secondsOf(() => run().dispose(), () => backend.read(tick));
  const rate = (amount: number, peak: number, unit: string) =>
    `${(amount / seconds / 1e9).toFixed(1).padStart(9)} ${unit} (${(100 * amount / seconds / peak).toFixed(0)} %)`;
  const figures = [rate(flops, peaks.flops, "GFLOP/s"), rate(bytes, peaks.copy, "GB/s")];
  console.log(`${name.padEnd(36)} ${(seconds * 1e3).toFixed(3).padStart(9)} ms ${figures.join(" ")}`);
}
backend.dispose();
device.destroy();
