/**
 * The WebGPU backend against what its device can do: GEMM, GEMV, a LoRA layer, and decoding with SmolLM2 where
 * `scripts/setup_models.sh` has put it. `deno run -A bench/webgpu_bench.ts [--save]`, or with Node or Bun and npm
 * `webgpu`. Prints the device's name first; `--save` keeps the figures in `bench/results`, but not those of a software
 * driver, which say nothing about any GPU.
 *
 * @module
 */
import assert from "node:assert/strict";
import { existsSync, mkdirSync, writeFileSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import type { Backend, LoraBranch, Tensor, Weight } from "../src/backend.ts";
import { file } from "../src/fs/mod.ts";
import { loadModel } from "../src/models/mod.ts";
import { openBackend } from "../src/open.ts";
import { openTimer, openWallTimer, type Timer } from "./webgpu_timer.ts";

/** A row of the table: what ran, its floating-point operations, and the bytes of weights that it has to read. */
interface Case {
  readonly name: string;
  readonly flops: number;
  readonly bytes: number;
  readonly run: () => Tensor;
}

/** One figure. */
interface Figure {
  readonly name: string;
  readonly ms: number;
  readonly gflops: number;
  readonly gbs: number;
}

interface Peaks {
  readonly gflops: number;
  readonly gbs: number;
}

const BATCH_SECONDS = 0.25;
const BATCHES = 5;
/** 16,384 dispatches: as many passes as the timer holds. */
const MAX_STEPS = 1 << 14;

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
async function secondsOf(timer: Timer, step: () => void, settle: () => Promise<unknown>): Promise<number> {
  await timer.time(1, step, settle);
  let count = 1;
  while (count < MAX_STEPS && await timer.time(count, step, settle) < BATCH_SECONDS) count *= 2;
  let best = Infinity;
  for (let i = 0; i < BATCHES; i++) best = Math.min(best, await timer.time(count, step, settle) / count);
  return best;
}

/** Multiply-adds in registers on the timer's clock; copying a buffer, which is in no pass, on the wall. */
async function measurePeaks(timer: Timer, wall: Timer): Promise<Peaks> {
  const { device } = timer;
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
  const settle = () => device.queue.onSubmittedWorkDone();
  const gflops = CHAIN_FLOPS / await secondsOf(timer, chain, settle) / 1e9;
  const gbs = 2 * COPY_BYTES / await secondsOf(wall, copy, settle) / 1e9;
  for (const buffer of [from, to]) buffer.destroy();
  return { gflops, gbs };
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

const MODELS = process.env.LORA_MODELS ??
  join(process.env.LOWRANK_HOME ?? join(homedir(), ".cache", "lowrank"), "models");
const GGUF = join(MODELS, "SmolLM2-135M-Instruct.gguf");

/** One token after the other: each reads all weights once. On the wall, since the choice of a token waits for it. */
async function measureDecode(backend: Backend, tokens: number): Promise<Figure> {
  const before = backend.bytes;
  const model = await loadModel(file(GGUF), { backend });
  const bytes = backend.bytes - before;
  const times: number[] = [];
  const onToken = () => times.push(performance.now());
  const prompt = [1, 2, 3, 4];
  for await (const _ of model.generate(prompt, { maxNewTokens: tokens, temperature: 1, seed: 1, onToken }));
  model.dispose();
  const steps = times.slice(1).map((time, i) => time - times[i]!).sort((a, b) => a - b);
  const ms = steps[steps.length >> 1]!;
  return { name: "decode SmolLM2-135M bf16, a token", ms, gflops: bytes / ms / 1e6, gbs: bytes / ms / 1e6 };
}

function print({ name, ms, gflops, gbs }: Figure, peaks: Peaks): void {
  const rate = (value: number, peak: number, unit: string) =>
    `${value.toFixed(1).padStart(9)} ${unit} (${(100 * value / peak).toFixed(0)} %)`;
  const rates = `${rate(gflops, peaks.gflops, "GFLOP/s")} ${rate(gbs, peaks.gbs, "GB/s")}`;
  console.log(`${name.padEnd(36)} ${ms.toFixed(3).padStart(9)} ms ${rates}`);
}

async function measureAll(backend: Backend, timer: Timer, peaks: Peaks, small: boolean): Promise<Figure[]> {
  const figures: Figure[] = [];
  const tick = backend.tensor([1]);
  for (const { name, flops, bytes, run } of casesOf(backend, small)) {
    const seconds = await secondsOf(timer, () => run().dispose(), () => backend.read(tick));
    figures.push({ name, ms: seconds * 1e3, gflops: flops / seconds / 1e9, gbs: bytes / seconds / 1e9 });
    print(figures.at(-1)!, peaks);
  }
  if (!existsSync(GGUF)) console.log(`decode: ${GGUF} is absent`);
  else {
    figures.push(await measureDecode(backend, small ? 4 : 128));
    print(figures.at(-1)!, peaks);
  }
  return figures;
}

function save(name: string, results: object): void {
  const folder = new URL("./results/", import.meta.url);
  const path = new URL(`webgpu-${name.toLowerCase().replaceAll(/[^a-z0-9]+/g, "-")}.json`, folder);
  mkdirSync(folder, { recursive: true });
  writeFileSync(path, `${JSON.stringify(results, null, 2)}\n`);
  console.log(`kept in ${path.pathname}`);
}

async function main(args: readonly string[]): Promise<void> {
  const gpuAdapter = await (await findGpu()).requestAdapter({ powerPreference: "high-performance" });
  if (!gpuAdapter) throw new Error("Cannot measure: no GPU adapter in this runtime");
  const { isFallbackAdapter: software = false } = gpuAdapter.info;
  if (software && args.includes("--save")) {
    throw new Error(`Cannot keep figures of ${gpuAdapter.info.description}: it is a software driver, not a GPU`);
  }
  const { maxBufferSize, maxStorageBufferBindingSize } = gpuAdapter.limits;
  const device = await gpuAdapter.requestDevice({
    requiredLimits: { maxBufferSize, maxStorageBufferBindingSize },
    requiredFeatures: gpuAdapter.features.has("timestamp-query") ? ["timestamp-query"] : [],
  });
  const timer = await openTimer(device);
  const backend = await openBackend({ prefer: "webgpu", device: timer.device });
  const { variant, gpu } = backend.info;
  console.log(`device: ${variant}${software ? ": not a GPU, these figures say nothing about one" : ""}`);
  await verify(backend);
  const peaks = await measurePeaks(timer, await openWallTimer(device));
  const { clock } = timer;
  console.log(`peak: ${peaks.gflops.toFixed(1)} GFLOP/s (FMA, ${clock}), ${peaks.gbs.toFixed(1)} GB/s (copy)`);
  const figures = await measureAll(backend, timer, peaks, software);
  if (args.includes("--save")) save(variant, { device: variant, gpu, clock, peaks, figures });
  backend.dispose();
  device.destroy();
}

await main(process.argv.slice(2));
