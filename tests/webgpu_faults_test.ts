/** Losses and failed allocations by the hundred, at random: every one is typed or recovered, and no result is wrong. */
import { test } from "node:test";
import assert from "node:assert/strict";
import type { Backend, Tensor } from "../src/backend.ts";
import { DeviceLostError, OutOfMemoryError } from "../src/errors.ts";
import type { LanguageModel } from "../src/models/mod.ts";
import { WebGpuBackend } from "../src/webgpu/backend.ts";
import { fixture, generate, loadBase, logitsOf } from "./models_support.ts";
import { branchOf, random, randomBranch, randomMatrix, tensorOf, weightOf } from "./values.ts";
import { failingDevice, findDevice, gpuSkip, watchDevice } from "./webgpu_support.ts";

/** One engine runs them all, the others some: most of the time goes into opening devices. */
const FAULTS = "Deno" in globalThis ? 100 : 3;
const options = { timeout: 300_000, ...await gpuSkip() };

const HANG_MS = 30_000;

/** What `promise` gives or rejects with; a hang fails the test. */
async function outcomeOf<T>(promise: Promise<T>): Promise<{ value: T } | { error: unknown }> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const hang = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new assert.AssertionError({ message: "it hangs" })), HANG_MS);
  });
  try {
    return { value: await Promise.race([promise, hang]) };
  } catch (error) {
    if (error instanceof assert.AssertionError) throw error;
    return { error };
  } finally {
    clearTimeout(timer);
  }
}

const X = randomMatrix(random(1), 4, 16);
const W = randomMatrix(random(2), 16, 16);
const BRANCH = randomBranch(random(3), { inFeatures: 16, outFeatures: 16, rank: 4 });

/** Operations of every kind, with awaits between them. */
async function compute(backend: Backend): Promise<Float32Array[]> {
  const held: Disposable[] = [];
  const hold = <T extends Disposable>(handle: T): T => {
    held.push(handle);
    return handle;
  };
  const read = (tensor: Tensor) => backend.read(hold(tensor));
  try {
    const [weight, { a, b, scaling }] = [hold(weightOf(backend, W)), branchOf(backend, BRANCH)];
    const branch = { a: hold(a), b: hold(b), scaling };
    const [x, rows] = [hold(tensorOf(backend, X)), Uint32Array.of(3, 1)];
    const adapters = [{ start: 1, end: 4, branches: [branch] }];
    const [dx, da] = [hold(backend.tensor([4, 16])), hold(backend.tensor([4, 16]))];
    const results = [await read(backend.linear(x, weight, { adapters }))];
    backend.linearBackward(x, x, weight, { dx, adapters: [{ ...adapters[0]!, branches: [{ ...branch, da }] }] });
    results.push(...await Promise.all([backend.takeRows(x, rows), backend.embedding(rows, weight)].map(read)));
    await backend.merge(weight, [branch]);
    results.push(await backend.readWeight(weight));
    backend.unmerge(weight);
    const cache = hold(backend.tensor([1, 9, 16]));
    backend.append(cache, x, 2);
    results.push(await read(backend.attention(x, cache, cache, { heads: 2, kvHeads: 2, batch: 1, past: 2 })));
    results.push(await read(backend.scope(() => backend.siluMul(backend.add(x, x), x))));
    const words = Uint32Array.of(1, 2 ** 31, 7e8, 4e9);
    const chosen = [backend.argmax(x), backend.sample(x, { temperature: 1, topK: 8, random: words })];
    results.push(...await Promise.all(chosen.map(read)));
    results.push(...await Promise.all([dx, da].map((tensor) => backend.read(tensor))));
    return results;
  } finally {
    for (const handle of held) handle[Symbol.dispose]();
  }
}

interface Answer {
  readonly logits: Float32Array;
  readonly tokens: readonly number[];
}

async function open(backend: Backend): Promise<LanguageModel> {
  const model = await loadBase(backend, "llama");
  await model.loadAdapter("a", fixture("llama-rslora/adapter"));
  return model;
}

async function ask(model: LanguageModel): Promise<Answer> {
  const logits = await logitsOf(model, [[5, 17, 99]], { adapter: "a" });
  const { tokens } = await generate(model, [5, 17, 99], { adapter: "a", maxNewTokens: 3, temperature: 1, seed: 1 });
  return { logits, tokens };
}

/** A backend on a device of its own, which `lose` destroys when its `point`-th call or answer comes. */
async function openMortal(point: number): Promise<{ backend: WebGpuBackend; points: () => number }> {
  const device = (await findDevice())!;
  let points = 0;
  const watched = watchDevice(device, () => {
    if (++points === point) device.destroy();
  });
  return { backend: new WebGpuBackend({ device: watched, owned: true }, ""), points: () => points };
}

/** Numbers from 1 to `count`, each as likely. */
function picker(seed: number): (count: number) => number {
  const next = random(seed);
  return (count) => 1 + Math.floor((next() + 1) / 2 * count);
}

/** Points of one run without a fault, and its results. */
async function cleanRun<T>(body: (backend: Backend) => Promise<T>): Promise<{ points: number; want: T }> {
  const { backend, points } = await openMortal(Infinity);
  const want = await body(backend);
  backend.dispose();
  return { points: points(), want };
}

test("operations on a device lost at a random moment give DeviceLostError, or all their results", options, async () => {
  const { points, want } = await cleanRun(compute);
  const pick = picker(1);
  let lost = 0;
  for (let fault = 0; fault < FAULTS; fault++) {
    const point = pick(points);
    const { backend } = await openMortal(point);
    const outcome = await outcomeOf(compute(backend));
    if ("value" in outcome) assert.deepEqual(outcome.value, want, `point ${point}`);
    else assert.ok(outcome.error instanceof DeviceLostError, `point ${point}: ${outcome.error}`);
    lost += "error" in outcome ? 1 : 0;
    backend.dispose();
    assert.deepEqual([backend.bytes, backend.counts.buffers], [0, 0], `point ${point}`);
  }
  assert.ok(lost > FAULTS / 2, `${lost} of ${FAULTS} were noticed`);
});

test("a model whose GPU is lost at a random moment answers as before once it is reloaded", options, async () => {
  const { points, want } = await cleanRun(async (backend) => ask(await open(backend)));
  const pick = picker(2);
  let { backend } = await openMortal(Infinity);
  const model = await open(backend);
  let reloads = 0;
  for (let fault = 0; fault < FAULTS; fault++) {
    // Lost while it reloads, or while it answers afterwards.
    const point = pick(points);
    const next = await openMortal(point);
    const reloaded = await outcomeOf(model.reload({ backend: next.backend }));
    const spare = "error" in reloaded ? next.backend : backend;
    spare.dispose();
    assert.deepEqual([spare.bytes, spare.counts.buffers], [0, 0], `point ${point}`);
    const outcome = "error" in reloaded ? reloaded : await outcomeOf(ask(model));
    if ("value" in outcome) assert.deepEqual(outcome.value, want, `point ${point}`);
    else assert.ok(outcome.error instanceof DeviceLostError, `point ${point}: ${outcome.error}`);
    if (spare === backend) backend = next.backend;
    reloads += "error" in reloaded ? 0 : 1;
  }
  assert.ok(reloads >= Math.floor(FAULTS / 8), `${reloads} of ${FAULTS} reloads`);
  const { backend: last } = await openMortal(Infinity);
  await model.reload({ backend: last });
  assert.deepEqual(await ask(model), want);
  model.dispose();
  assert.equal(last.bytes, 0);
  for (const each of [backend, last]) each.dispose();
});

/** A backend on `device` with memory for all buffers but one, and what it holds. */
function openPoor(
  device: GPUDevice,
  failing: number,
): { backend: WebGpuBackend; made: () => number; live: Set<object> } {
  let made = 0;
  const live = new Set<object>();
  const poor = failingDevice(device, () => ++made === failing, live);
  return { backend: new WebGpuBackend({ device: poor, owned: false }, ""), made: () => made, live };
}

test("operations whose random allocation fails give OutOfMemoryError, and go on right", options, async () => {
  const device = (await findDevice())!;
  const { want } = await cleanRun(compute);
  const clean = openPoor(device, Infinity);
  await compute(clean.backend);
  const pick = picker(3);
  for (let fault = 0; fault < FAULTS; fault++) {
    const failing = pick(clean.made());
    const { backend, live } = openPoor(device, failing);
    const outcome = await outcomeOf(compute(backend));
    assert.ok("error" in outcome && outcome.error instanceof OutOfMemoryError, `buffer ${failing}: ${outcome}`);
    // The first buffer is the one for parameters, without which nothing runs.
    if (failing > 1) assert.deepEqual(await compute(backend), want, `after buffer ${failing}`);
    else await assert.rejects(compute(backend), OutOfMemoryError);
    assert.equal(backend.bytes, 0);
    backend.dispose();
    assert.equal(live.size, 0, `buffer ${failing}`);
  }
  device.destroy();
});

test("a model whose random allocation fails is refused or refuses, and answers when tried again", options, async () => {
  const device = (await findDevice())!;
  const { want } = await cleanRun(async (backend) => ask(await open(backend)));
  const clean = openPoor(device, Infinity);
  await ask(await open(clean.backend));
  const pick = picker(4);
  for (let fault = 0; fault < FAULTS; fault++) {
    const failing = 1 + pick(clean.made() - 1);
    const { backend, live } = openPoor(device, failing);
    const run = async () => {
      const model = await open(backend);
      return await ask(model).finally(() => model.dispose());
    };
    const outcome = await outcomeOf(run());
    assert.ok("error" in outcome && outcome.error instanceof OutOfMemoryError, `buffer ${failing}: ${outcome}`);
    assert.equal(backend.bytes, 0, `buffer ${failing}`);
    assert.deepEqual(await run(), want, `after buffer ${failing}`);
    backend.dispose();
    assert.equal(live.size, 0, `buffer ${failing}`);
  }
  device.destroy();
});
