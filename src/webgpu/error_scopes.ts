/**
 * Error scopes: WebGPU answers a bad creation with an object that does nothing, and only a scope says why.
 *
 * @module
 */

/** What a scope caught. */
export interface Caught {
  /** Which scope: memory, a mistake in a call, or the driver. */
  readonly filter: GPUErrorFilter;
  /** The runtime's words. */
  readonly message: string;
}

const FILTERS: readonly GPUErrorFilter[] = ["validation", "out-of-memory", "internal"];

/** Runs `body` in error scopes; `caught` is the first error, or null when there is none or the device is lost. */
export function inErrorScopes<T>(device: GPUDevice, body: () => T): { value: T; caught: Promise<Caught | null> } {
  for (const filter of FILTERS) device.pushErrorScope(filter);
  let popped: Promise<Caught | null>[] = [];
  const pop = () => {
    popped = FILTERS.toReversed().map((filter) => popScope(device, filter));
  };
  try {
    const value = body();
    pop();
    return { value, caught: Promise.all(popped).then((all) => all.find((one) => one !== null) ?? null) };
  } catch (error) {
    pop();
    throw error;
  }
}

async function popScope(device: GPUDevice, filter: GPUErrorFilter): Promise<Caught | null> {
  try {
    const error = await device.popErrorScope();
    return error && { filter, message: error.message };
  } catch {
    return null; // A lost device has no scopes; the loss itself is reported.
  }
}
