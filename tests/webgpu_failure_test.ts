/** Lost devices, devices without memory, broken kernels: typed errors, never a made-up result. */
import { test } from "node:test";
import assert from "node:assert/strict";
import type { Backend, Tensor } from "../src/backend.ts";
import { DeviceLostError, DisposedError, OutOfMemoryError } from "../src/errors.ts";
import * as reference from "./reference.ts";
import { branchOf, random, randomBranch, randomMatrix, tensorOf, weightOf } from "./values.ts";
import { WebGpuBackend } from "../src/webgpu/backend.ts";
import { failingDevice, findDevice, gpuSkip, openGpu, withGpu, wrapDevice } from "./webgpu_support.ts";

const onGpu = await gpuSkip();

const X = randomMatrix(random(1), 5, 24);
const W = randomMatrix(random(2), 17, 24);
const BRANCH = randomBranch(random(3), { inFeatures: 24, outFeatures: 17, rank: 4 });
const ADAPTERS = [{ start: 0, end: 5, branches: [BRANCH] }];
const WANT = reference.linear(X, W, { adapters: ADAPTERS }).values;
const MERGED = reference.merge(W, [BRANCH]).values;

function assertValues(got: Float32Array, want: ArrayLike<number>, label: string): void {
  assert.equal(got.length, want.length, label);
  got.forEach((value, i) => assert.ok(Math.abs(value - want[i]!) <= 1e-4, `${label}: ${value} at ${i}`));
}

/** All that a layer does, one await after the other; `at` is called before each. */
async function work(backend: Backend, at: (point: number) => void): Promise<void> {
  at(0);
  const weight = weightOf(backend, W);
  const branch = branchOf(backend, BRANCH);
  at(1);
  const y = backend.linear(tensorOf(backend, X), weight, { adapters: [{ start: 0, end: 5, branches: [branch] }] });
  at(2);
  const reading = backend.read(y);
  at(3);
  assertValues(await reading, WANT, "linear");
  at(4);
  const merging = backend.merge(weight, [branch]);
  at(5);
  await merging;
  at(6);
  assertValues(await backend.readWeight(weight), MERGED, "merged weight");
  at(7);
  assertValues(await backend.read(y), WANT, "linear, read again");
}

test("a device lost at any point gives a DeviceLostError, or a result that was ready", onGpu, async () => {
  for (let point = 0; point <= 7; point++) {
    for (const later of [false, true]) {
      const device = (await findDevice())!;
      const backend = new WebGpuBackend({ device, owned: true }, "");
      const lose = () => device.destroy();
      const label = `lost at ${point}${later ? ", later" : ""}`;
      const at = (now: number) => {
        if (now === point) later ? setTimeout(lose) : lose();
      };
      await work(backend, at).catch((error) => assert.ok(error instanceof DeviceLostError, `${label}: ${error}`));
      await device.lost;
      await Promise.resolve();
      assert.throws(() => backend.tensor([1]), DeviceLostError, label);
      await assert.rejects(async () => await work(backend, () => {}), { code: "device-lost" }, label);
      backend.dispose();
      assert.throws(() => backend.tensor([1]), DisposedError, label);
    }
  }
});

test("reads and merges that wait when the backend is disposed reject with DisposedError", onGpu, async () => {
  const backend = await openGpu();
  const [weight, branch] = [weightOf(backend, W), branchOf(backend, BRANCH)];
  const waiting = [backend.read(tensorOf(backend, X)), backend.readWeight(weight), backend.merge(weight, [branch])];
  backend.dispose();
  for (const promise of waiting) await assert.rejects(promise, DisposedError);
});

test("an allocation that fails gives an OutOfMemoryError, and the backend lives on", onGpu, async () => {
  const device = (await findDevice())!;
  let failures = 0;
  // The first buffer of a backend is the one for parameters; without it nothing runs.
  for (let failing = 2, made = failing; failing <= made; failing++) {
    let armed = true;
    made = 0;
    const failsNow = () => armed && ++made === failing;
    const backend = new WebGpuBackend({ device: failingDevice(device, failsNow), owned: false }, "");
    const outcome = await work(backend, () => {}).catch((error) => error);
    if (made >= failing) {
      failures++;
      assert.ok(outcome instanceof OutOfMemoryError, `buffer ${failing}: ${outcome}`);
    } else assert.equal(outcome, undefined);
    armed = false;
    await work(backend, () => {});
    backend.dispose();
  }
  assert.ok(failures >= 6, `${failures} failures`);
  device.destroy();
});

test("what was computed before a failed allocation stays, and what reads a failed tensor fails", onGpu, async () => {
  const device = (await findDevice())!;
  let fail = false;
  const backend = new WebGpuBackend({ device: failingDevice(device, () => fail), owned: true }, "");
  const good = backend.tensor([3], Float32Array.of(1, 2, 3));
  const sum = backend.add(good, good);
  assert.deepEqual([...await backend.read(sum)], [2, 4, 6]);
  fail = true;
  const bad: Tensor = backend.tensor([70_000]);
  fail = false;
  const worse = backend.add(bad, bad);
  await assert.rejects(backend.read(worse), OutOfMemoryError);
  await assert.rejects(backend.read(worse), OutOfMemoryError);
  assert.deepEqual([...await backend.read(backend.add(sum, good))], [3, 6, 9]);
  for (const tensor of [bad, worse]) tensor.dispose();
  const zeros = backend.tensor([70_000]);
  assert.ok((await backend.read(backend.add(zeros, zeros))).every((value) => value === 0));
  backend.dispose();
});

test(
  "what reads a failed tensor fails, also when the tensor's buffer is used anew in the same batch",
  onGpu,
  async () => {
    const device = (await findDevice())!;
    let fail = false;
    const backend = new WebGpuBackend({ device: failingDevice(device, () => fail), owned: true }, "");
    const good = backend.tensor([70_000]);
    fail = true;
    const bad = backend.tensor([70_000]);
    fail = false;
    const failed = backend.add(good, backend.add(bad, good));
    await assert.rejects(backend.read(failed), OutOfMemoryError);
    const worse = backend.add(failed, good);
    failed.dispose();
    const better = backend.add(good, good); // in the buffer that was `failed`
    await assert.rejects(backend.read(worse), OutOfMemoryError);
    await assert.rejects(backend.read(better), OutOfMemoryError); // of one submission with `worse`
    assert.ok((await backend.read(backend.add(good, good))).every((value) => value === 0));
    backend.dispose();
  },
);

test("1,000 cycles of create and dispose leave no buffer, and no bytes", onGpu, async () => {
  const live = new Set<object>();
  const device = (await findDevice())!;
  const opened = { device: failingDevice(device, () => false, live), owned: true };
  const backend = new WebGpuBackend(opened, "");
  const next = random(1);
  for (let i = 0; i < 1000; i++) {
    const size = 1 + Math.floor(Math.abs(next()) * 3000);
    const [x, w] = [
      backend.tensor([1, size]),
      weightOf(backend, { shape: [3, size], values: new Float64Array(3 * size) }),
    ];
    const y = backend.linear(x, w);
    for (const handle of [x, w, y]) handle.dispose();
  }
  assert.equal(backend.bytes, 0);
  assert.ok(live.size < 100, `${live.size} buffers for handles that are gone`);
  assert.equal(backend.counts.buffers, live.size);
  backend.dispose();
  assert.deepEqual([live.size, backend.counts.buffers], [0, 0]);
});

test("a kernel that does not compile is named with the compiler's words and line", onGpu, async () => {
  const wrap = (device: GPUDevice) =>
    wrapDevice(device, {
      createShaderModule: ({ code, label }: GPUShaderModuleDescriptor) =>
        device.createShaderModule({
          label: label!,
          code: code.replace("fn element(i: u32) {", "fn element(i: u32) { !"),
        }),
    });
  await withGpu(
    async (backend) => {
      const x = backend.tensor([3], Float32Array.of(1, 2, 3));
      await assert.rejects(backend.read(backend.add(x, x)), /^Error: Cannot compile shader "add": .* in line \d+$/);
      assert.deepEqual([...await backend.read(x)], [1, 2, 3]);
    },
    {},
    wrap,
  );
});
