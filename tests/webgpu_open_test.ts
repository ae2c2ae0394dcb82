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

test("openBackend() asks no GPU for anything unless it is asked to", async () => {
  const requestAdapter = () => assert.fail("requestAdapter() was called");
  await withNavigator({ requestAdapter }, async () => {
    const backend = await openBackend();
    assert.equal(backend.name, "wasm");
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
