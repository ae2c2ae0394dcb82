/**
 * Whether a GPU computes when nobody asked for one by name.
 *
 * @module
 */

import type { OpenedDevice } from "./device.ts";

/** What was chosen: a device, or none and why. */
export interface Choice {
  /** The device; it is the caller's to destroy. */
  readonly opened?: OpenedDevice;
  /** Why. */
  readonly reason: string;
}

/** Bytes of weights that one thread of WebAssembly multiplies by a vector in a millisecond (KERNELS §6: 20 GB/s). */
const WASM_BYTES_PER_MS = 2e7;
/** No GPU's answer is back sooner. */
const LEAST_READBACK_MS = 1;

/**
 * Chooses a GPU where there is a real one, and where a pass over the weights takes WebAssembly longer than it takes to
 * read anything back from that GPU. Only then is the runtime asked for one at all: where drivers are installed but no
 * GPU is, the question alone costs Deno 10 to 100 ms (0.3 ms where there are none).
 *
 * @param weightBytes Bytes of weights that one result goes through; unknown is enough for any GPU.
 */
export async function chooseDevice(weightBytes: number = Infinity): Promise<Choice> {
  if (!(globalThis.navigator as Navigator | undefined)?.gpu) return { reason: "no WebGPU in this runtime" };
  const wasmMs = weightBytes / WASM_BYTES_PER_MS;
  if (wasmMs < LEAST_READBACK_MS) return { reason: "work too small for a GPU" };
  const { measureReadback, requestDevice } = await import("./device.ts");
  let opened: OpenedDevice | undefined;
  try {
    opened = await requestDevice({ software: false });
    const readbackMs = await measureReadback(opened.device);
    const reason = `a GPU, read back in ${readbackMs.toFixed(1)} ms`;
    if (readbackMs <= wasmMs) return { opened, reason };
    opened.device.destroy();
    return { reason: `${reason}: WebAssembly needs ${wasmMs.toFixed(1)} ms for these weights` };
  } catch (error) {
    opened?.device.destroy();
    return { reason: messageOf(error) };
  }
}

/** The end of "Cannot open "webgpu": no GPU adapter in this runtime". */
function messageOf(error: unknown): string {
  return error instanceof Error ? error.message.replace('Cannot open "webgpu": ', "") : String(error);
}
