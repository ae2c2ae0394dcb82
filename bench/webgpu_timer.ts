/**
 * Time on the GPU's own clock, where it has the feature `timestamp-query`; else on the wall.
 *
 * @module
 */

/** Passes between two readings. */
const MAX_PASSES = 512;
const USAGE = { mapRead: 1, copySource: 4, copyTarget: 8, queryResolve: 512 } as const;

/** A stopwatch for what runs on a device. */
export interface Timer {
  /** The device to compute on. */
  readonly device: GPUDevice;
  /** Where its time comes from. */
  readonly clock: "timestamp-query" | "wall";
  /** Seconds that `count` steps take; `settle` waits for all of them. */
  time(count: number, step: () => void, settle: () => Promise<unknown>): Promise<number>;
}

/** The best timer that the device allows. */
export async function openTimer(device: GPUDevice): Promise<Timer> {
  return device.features.has("timestamp-query") ? new PassTimer(device) : await openWallTimer(device);
}

/** On the wall, less what an empty wait takes. */
export async function openWallTimer(device: GPUDevice): Promise<Timer> {
  const time = async (count: number, step: () => void, settle: () => Promise<unknown>) => {
    const start = performance.now();
    for (let i = 0; i < count; i++) step();
    await settle();
    return (performance.now() - start) / 1000;
  };
  const empty = () => device.queue.onSubmittedWorkDone();
  await empty();
  const idle = Math.min(await time(0, empty, empty), await time(0, empty, empty), await time(0, empty, empty));
  return {
    device,
    clock: "wall",
    time: async (...run) => Math.max(await time(...run) - idle, 1e-9),
  };
}

/** Has every compute pass write when it begins and ends, and sums the differences. */
class PassTimer implements Timer {
  readonly device: GPUDevice;
  readonly clock = "timestamp-query" as const;
  readonly #real: GPUDevice;
  readonly #queries: GPUQuerySet;
  readonly #resolved: GPUBuffer;
  readonly #readable: GPUBuffer;
  #passes = 0;

  constructor(device: GPUDevice) {
    const size = MAX_PASSES * 16;
    this.#real = device;
    this.#queries = device.createQuerySet({ type: "timestamp", count: 2 * MAX_PASSES });
    this.#resolved = device.createBuffer({ size, usage: USAGE.queryResolve | USAGE.copySource });
    this.#readable = device.createBuffer({ size, usage: USAGE.mapRead | USAGE.copyTarget });
    this.device = new Proxy(device, {
      get: (target, key) => {
        if (key === "createCommandEncoder") return () => this.#createEncoder();
        const value = Reflect.get(target, key, target);
        return typeof value === "function" ? value.bind(target) : value;
      },
    });
  }

  #createEncoder(): GPUCommandEncoder {
    const encoder = this.#real.createCommandEncoder();
    const begin = encoder.beginComputePass.bind(encoder);
    encoder.beginComputePass = () => {
      if (this.#passes === MAX_PASSES) throw new Error(`Cannot time more than ${MAX_PASSES} passes at once`);
      const first = 2 * this.#passes++;
      const writes = { querySet: this.#queries, beginningOfPassWriteIndex: first, endOfPassWriteIndex: first + 1 };
      return begin({ timestampWrites: writes });
    };
    return encoder;
  }

  async time(count: number, step: () => void, settle: () => Promise<unknown>): Promise<number> {
    this.#passes = 0;
    for (let i = 0; i < count; i++) step();
    await settle();
    const stamps = 2 * this.#passes;
    const encoder = this.#real.createCommandEncoder();
    encoder.resolveQuerySet(this.#queries, 0, stamps, this.#resolved, 0);
    encoder.copyBufferToBuffer(this.#resolved, 0, this.#readable, 0, stamps * 8);
    this.#real.queue.submit([encoder.finish()]);
    await this.#readable.mapAsync(1, 0, stamps * 8);
    const times = new BigUint64Array(this.#readable.getMappedRange(0, stamps * 8).slice(0));
    this.#readable.unmap();
    let nanoseconds = 0;
    for (let i = 0; i < stamps; i += 2) nanoseconds += Number(times[i + 1]! - times[i]!);
    return Math.max(nanoseconds, 1) / 1e9;
  }
}
