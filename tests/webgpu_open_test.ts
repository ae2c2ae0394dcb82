/** Which backend is opened, on which device. */
import { test } from "node:test";
import assert from "node:assert/strict";
import type { Backend } from "../src/backend.ts";
import { BackendUnavailableError } from "../src/errors.ts";
import { openBackend } from "../src/open.ts";
import { findDevice, gpuSkip, wrapDevice } from "./webgpu_support.ts";

const onGpu = await gpuSkip();

async function assertDoubles(backend: Backend): Promise<void> {
  const x = backend.tensor([3], Float32Array.of(1, 2, 3));
  assert.deepEqual([...await backend.read(backend.add(x, x))], [2, 4, 6]);
}

test("openBackend() computes on the device passed in, which stays the caller's", onGpu, async () => {
  const device = (await findDevice())!;
  for (const prefer of ["auto", "webgpu"] as const) {
    const backend = await openBackend({ prefer, device });
    assert.deepEqual([backend.name, backend.info.reason], ["webgpu", "the device that was passed in"]);
    assert.notEqual(backend.info.variant, "");
    await assertDoubles(backend);
    backend.dispose();
  }
  const wasm = await openBackend({ prefer: "wasm", device });
  assert.equal(wasm.name, "wasm");
  wasm.dispose();
  device.destroy();
});

test("openBackend() refuses a device that is none", async () => {
  const device = { queue: {}, limits: {}, lost: Promise.resolve(), createBuffer: () => ({}) };
  await assert.rejects(async () => await openBackend({ prefer: "webgpu", device }), TypeError);
});

test("openBackend() refuses a preference that is none", async () => {
  await assert.rejects(async () => await openBackend({ prefer: "cuda" as never }), TypeError);
});

/** Runs `body` in a runtime whose WebGPU is `gpu`. */
async function withNavigator(gpu: object | undefined, body: () => Promise<void>): Promise<void> {
  const before = Object.getOwnPropertyDescriptor(globalThis, "navigator");
  Object.defineProperty(globalThis, "navigator", { value: { gpu }, configurable: true, writable: true });
  try {
    await body();
  } finally {
    if (before) Object.defineProperty(globalThis, "navigator", before);
    else delete (globalThis as { navigator?: unknown }).navigator;
  }
}

const adapter = (isFallbackAdapter: boolean, requestDevice: (options: object) => unknown) => ({
  info: { vendor: "acme", architecture: "a1", description: "", isFallbackAdapter },
  limits: { maxBufferSize: 2 ** 28, maxStorageBufferBindingSize: 2 ** 40 },
  requestDevice,
});

const noDevice = () => Promise.reject(new Error("no device"));

/** Runtimes without a GPU to use: [what they are, their WebGPU, whether it serves when asked for by name]. */
const WITHOUT: readonly (readonly [string, object | undefined, RegExp])[] = [
  ["no WebGPU", undefined, /no "navigator.gpu"/],
  ["no adapter", { requestAdapter: () => Promise.resolve(null) }, /no GPU adapter/],
  ["an adapter that fails", { requestAdapter: () => Promise.reject(new Error("driver gone")) }, /driver gone/],
  ["no device", { requestAdapter: () => Promise.resolve(adapter(false, noDevice)) }, /no device/],
];

for (const [what, gpu, why] of WITHOUT) {
  test(`openBackend() refuses "webgpu" with the reason where there is ${what}, and opens wasm unasked`, async () => {
    await withNavigator(gpu, async () => {
      const backend = await openBackend();
      assert.equal(backend.name, "wasm");
      backend.dispose();
      const byName = async () => await openBackend({ prefer: "webgpu" });
      await assert.rejects(byName, (error) => error instanceof BackendUnavailableError && why.test(error.message));
    });
  });
}

/** A runtime with an adapter on the tests' device. */
function runtimeOf(device: GPUDevice, software = false): { gpu: object; asked: () => number } {
  let asked = 0;
  const own = wrapDevice(device, { destroy: () => {} });
  const requestAdapter = () => {
    asked++;
    return Promise.resolve(adapter(software, () => Promise.resolve(own)));
  };
  return { gpu: { requestAdapter }, asked: () => asked };
}

test("openBackend() takes a GPU unasked, and tells which and how fast it answers", onGpu, async () => {
  const device = (await findDevice())!;
  await withNavigator(runtimeOf(device).gpu, async () => {
    const backend = await openBackend();
    assert.equal(backend.name, "webgpu");
    assert.match(backend.info.reason, /^a GPU, read back in \d+\.\d ms$/);
    const { vendor, architecture, software, features } = backend.info.gpu!;
    assert.deepEqual([vendor, architecture, software], ["acme", "a1", false]);
    assert.deepEqual(features, [...device.features].sort());
    await assertDoubles(backend);
    backend.dispose();
  });
  device.destroy();
});

test("openBackend() takes no software adapter unasked", onGpu, async () => {
  const device = (await findDevice())!;
  await withNavigator(runtimeOf(device, true).gpu, async () => {
    const backend = await openBackend();
    assert.deepEqual([backend.name, backend.info.gpu], ["wasm", undefined]);
    assert.match(backend.info.reason, /software/);
    backend.dispose();
  });
  device.destroy();
});

/** Makes buffers that are read back in no less than 5 ms. */
const slowBuffer = (device: GPUDevice) => (descriptor: GPUBufferDescriptor): GPUBuffer => {
  const buffer = device.createBuffer(descriptor);
  const map = buffer.mapAsync.bind(buffer);
  buffer.mapAsync = async (...range) => {
    await new Promise((resolve) => setTimeout(resolve, 5));
    return await map(...range);
  };
  return buffer;
};

test("openBackend() leaves work to wasm that is done before a GPU's answer is read back", onGpu, async () => {
  const device = (await findDevice())!;
  const { gpu, asked } = runtimeOf(wrapDevice(device, { createBuffer: slowBuffer(device) }));
  await withNavigator(gpu, async () => {
    const small = await openBackend({ weightBytes: 1e7 });
    assert.deepEqual([small.name, asked()], ["wasm", 0]);
    // At 20 GB/s: 1 ms and 100 s.
    const middling = await openBackend({ weightBytes: 2e7 });
    assert.deepEqual([middling.name, asked()], ["wasm", 1]);
    assert.match(middling.info.reason, /^a GPU, read back in .* ms: WebAssembly needs 1\.0 ms for these weights$/);
    const large = await openBackend({ weightBytes: 2e12 });
    assert.equal(large.name, "webgpu");
    const named = await openBackend({ prefer: "webgpu", weightBytes: 1 });
    assert.equal(named.name, "webgpu");
    for (const backend of [small, middling, large, named]) backend.dispose();
  });
  device.destroy();
});

function lose(device: GPUDevice): never {
  device.destroy();
  throw new Error("lost");
}

test("openBackend() opens wasm where a GPU is lost while it is measured", onGpu, async () => {
  const device = (await findDevice())!;
  const { gpu } = runtimeOf(
    wrapDevice(device, { createCommandEncoder: () => lose(device) }),
  );
  await withNavigator(gpu, async () => {
    const backend = await openBackend();
    assert.deepEqual([backend.name, backend.info.reason], ["wasm", "lost"]);
    backend.dispose();
  });
});

test("openBackend() by name says what the adapter is, and asks for the limits that it can use", onGpu, async () => {
  const device = (await findDevice())!;
  let asked: { requiredLimits?: object } = {};
  const requestDevice = (options: object) => {
    asked = options;
    return Promise.resolve(wrapDevice(device, { destroy: () => device.destroy() }));
  };
  for (const software of [true, false]) {
    await withNavigator({ requestAdapter: () => Promise.resolve(adapter(software, requestDevice)) }, async () => {
      const backend = await openBackend({ prefer: "webgpu" });
      assert.equal(backend.name, "webgpu");
      assert.equal(backend.info.variant, software ? "acme a1 (software)" : "acme a1");
      assert.deepEqual(asked.requiredLimits, { maxBufferSize: 2 ** 28, maxStorageBufferBindingSize: 2 ** 30 });
      await assertDoubles(backend);
      if (!software) backend.dispose();
    });
  }
  await device.lost; // The device was made by openBackend(), so dispose() destroyed it.
});
