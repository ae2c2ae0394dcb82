/**
 * The GPU devices that tests run on: `navigator.gpu` where the runtime has it, else npm `webgpu` (Dawn), whose place
 * `JSRT_WEBGPU` names if it is not installed. Software adapters serve.
 *
 * @module
 */
import { WebGpuBackend } from "../src/webgpu/backend.ts";
import type { QueueLimits } from "../src/webgpu/commands.ts";

interface Dawn {
  create(flags: string[]): GPU;
}

type Globals = typeof globalThis & { loraTestGpu?: GPU };

async function findGpu(): Promise<GPU | null> {
  const runtimeGpu = (globalThis.navigator as Navigator | undefined)?.gpu;
  if (runtimeGpu) return runtimeGpu;
  const { default: process } = await import("node:process");
  const place = process.env.JSRT_WEBGPU ?? "webgpu";
  // Dawn crashes the process when this object is collected, so it hangs on the global.
  const globals = globalThis as Globals;
  try {
    return globals.loraTestGpu ??= (await import(place) as Dawn).create([]);
  } catch {
    return null;
  }
}

/** A new device, or null where there is no WebGPU. */
export async function findDevice(): Promise<GPUDevice | null> {
  const gpuAdapter = await (await findGpu())?.requestAdapter();
  return await gpuAdapter?.requestDevice() ?? null;
}

/** Why no test can run on a GPU here, as options of `test()`. */
export async function gpuSkip(): Promise<{ skip?: string }> {
  const device = await findDevice();
  device?.destroy();
  return device ? {} : { skip: "no WebGPU in this runtime" };
}

/** The device with some of its members replaced. */
export function wrapDevice(device: GPUDevice, members: Partial<Record<keyof GPUDevice, unknown>>): GPUDevice {
  return new Proxy(device, {
    get(target, key) {
      if (key in members) return members[key as keyof GPUDevice];
      const value = Reflect.get(target, key, target);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
}

/** A device that has no memory for a buffer while `failing` is true; it holds the buffers that live. */
export function failingDevice(device: GPUDevice, failing: () => boolean, live: Set<object> = new Set()): GPUDevice {
  return wrapDevice(device, {
    createBuffer(descriptor: GPUBufferDescriptor) {
      const buffer = device.createBuffer(failing() ? { ...descriptor, size: 2 ** 50 } : descriptor);
      live.add(buffer);
      const destroy = buffer.destroy.bind(buffer);
      buffer.destroy = () => {
        live.delete(buffer);
        destroy();
      };
      return buffer;
    },
  });
}

/** A backend on a device of its own, with the default limits or lower ones. */
export async function openGpu(
  limits: Partial<QueueLimits> = {},
  wrap: (device: GPUDevice) => GPUDevice = (device) => device,
): Promise<WebGpuBackend> {
  const device = wrap((await findDevice())!);
  return new WebGpuBackend({ device, owned: true }, "asked for by a test", limits);
}

/** Runs `body` on such a backend. */
export async function withGpu(
  body: (backend: WebGpuBackend) => Promise<void> | void,
  ...options: Parameters<typeof openGpu>
): Promise<void> {
  const backend = await openGpu(...options);
  try {
    await body(backend);
  } finally {
    backend.dispose();
  }
}

/** What reached a device: submissions, and the bytes of each readback. */
export interface DeviceTraffic {
  submits: number;
  readbacks: number[];
}

/** The device, with what reaches it counted. */
export function countTraffic(device: GPUDevice, traffic: DeviceTraffic): GPUDevice {
  const queue = new Proxy(device.queue, {
    get(target, key) {
      if (key === "submit") traffic.submits++;
      const value = Reflect.get(target, key, target);
      return typeof value === "function" ? value.bind(target) : value;
    },
  });
  return wrapDevice(device, {
    queue,
    createBuffer(descriptor: GPUBufferDescriptor) {
      const buffer = device.createBuffer(descriptor);
      const map = buffer.mapAsync.bind(buffer);
      buffer.mapAsync = (mode, offset, size) => {
        traffic.readbacks.push(size!);
        return map(mode, offset, size);
      };
      return buffer;
    },
  });
}

/** The device, with `at` called before each of its calls that reach the driver, and after each of its answers. */
export function watchDevice(device: GPUDevice, at: () => void): GPUDevice {
  const around = <A extends unknown[], R>(call: (...values: A) => R) => (...values: A): R => {
    at();
    const result = call(...values);
    // A promise of the driver: the fault may come just when it answers.
    return result instanceof Promise ? result.finally(at) as R : result;
  };
  const { queue } = device;
  const watched = { submit: around(queue.submit.bind(queue)), writeBuffer: around(queue.writeBuffer.bind(queue)) };
  return wrapDevice(device, {
    queue: new Proxy(queue, { get: (_, key) => watched[key as keyof typeof watched] }),
    popErrorScope: around(device.popErrorScope.bind(device)),
    createBuffer: around((descriptor: GPUBufferDescriptor) => {
      const buffer = device.createBuffer(descriptor);
      buffer.mapAsync = around(buffer.mapAsync.bind(buffer));
      return buffer;
    }),
  });
}
