/**
 * GPU buffers and their reuse: a freed buffer waits for the next tensor of its size class.
 *
 * @module
 */

import { OutOfMemoryError } from "../errors.ts";
import { inErrorScopes } from "./error_scopes.ts";

/** A buffer on the device, with what is known about its contents. */
export interface DeviceBuffer {
  /** The buffer. */
  readonly handle: GPUBuffer;
  /** Its number, for keys. */
  readonly id: number;
  /** Its size. */
  readonly bytes: number;
  /** Number of the last batch of commands that uses it. */
  batch: number;
  /** Why it does not exist: the device had no memory for it. */
  dead: Error | null;
  /** Why it holds no result: the commands that were to write it failed. */
  failure: Error | null;
}

/** `GPUBufferUsage` by number, because Node has no such global. */
export const USAGE = { mapRead: 1, copySource: 4, copyTarget: 8, uniform: 64, storage: 128 } as const;

/** Freed buffers kept for reuse; beyond it the oldest are destroyed. */
const MAX_IDLE_BYTES = 256 << 20;
/** Freed buffers of one size that a batch still uses, in number and bytes, before it is submitted for their sake. */
const MAX_WAITING = 16;
const MAX_WAITING_BYTES = 1 << 14;
const SMALLEST = 256;
/** From here on classes are multiples of this instead of powers of two, so that a big weight wastes nothing. */
const LARGE = 1 << 18;

/** Rounds up to the size of a class. */
function classOf(bytes: number): number {
  if (bytes > LARGE) return Math.ceil(bytes / (LARGE / 4)) * (LARGE / 4);
  return Math.max(SMALLEST, 2 ** Math.ceil(Math.log2(Math.max(bytes, 1))));
}

/** Makes, keeps and destroys the buffers of one usage. */
export class BufferPool {
  readonly #device: GPUDevice;
  readonly #usage: number;
  readonly #maxBytes: number;
  readonly #idle = new Map<number, DeviceBuffer[]>();
  readonly #all = new Set<DeviceBuffer>();
  readonly #onDestroy: (buffer: DeviceBuffer) => void;
  #idleBytes = 0;
  #made = 0;

  /** Takes the device, the usage of all buffers, their largest size, and what to do before one is destroyed. */
  constructor(
    device: GPUDevice,
    usage: number,
    maxBytes: number,
    onDestroy: (buffer: DeviceBuffer) => void = () => {},
  ) {
    this.#device = device;
    this.#usage = usage;
    this.#maxBytes = Math.floor(maxBytes / 16) * 16; // Whole vec4s.
    this.#onDestroy = onDestroy;
  }

  /** Buffers that exist, in use or idle. */
  get live(): number {
    return this.#all.size;
  }

  /**
   * A buffer of at least `bytes`, which `batch` does not use yet if `except` names that batch.
   * `made` tells of a new buffer, whose memory is zero, when it is known to exist.
   *
   * @throws {OutOfMemoryError} If the device's limits do not allow the size.
   */
  acquire(bytes: number, except: number | null = null): { buffer: DeviceBuffer; made: Promise<void> | null } {
    if (!(bytes <= this.#maxBytes)) {
      const [found, expected] = [bytes, this.#maxBytes];
      throw new OutOfMemoryError(`Cannot allocate ${bytes} bytes on the GPU: the device allows ${expected} at once`, {
        found,
        expected,
      });
    }
    const size = this.#sizeOf(bytes);
    const idle = this.#idle.get(size) ?? [];
    const at = except === null ? idle.length - 1 : idle.findLastIndex((buffer) => buffer.batch !== except);
    const [buffer] = at < 0 ? [] : idle.splice(at, 1);
    if (!buffer) return this.#create(size);
    this.#idleBytes -= size;
    return { buffer, made: null };
  }

  #sizeOf(bytes: number): number {
    return Math.min(classOf(bytes), this.#maxBytes);
  }

  /** Whether buffers of this size only wait for `batch` to be submitted, and not few. */
  isWaiting(bytes: number, batch: number): boolean {
    const size = this.#sizeOf(bytes);
    const idle = this.#idle.get(size) ?? [];
    const most = Math.max(MAX_WAITING, MAX_WAITING_BYTES / size);
    return idle.length >= most && idle.every((buffer) => buffer.batch === batch);
  }

  #create(size: number): { buffer: DeviceBuffer; made: Promise<void> } {
    const { value: handle, caught } = inErrorScopes(this.#device, () => this.#createHandle(size));
    const buffer: DeviceBuffer = { handle, id: this.#made++, bytes: size, batch: -1, dead: null, failure: null };
    this.#all.add(buffer);
    const made = caught.then((error) => {
      if (error) this.#bury(buffer, noMemory(size, error.message));
    });
    return { buffer, made };
  }

  #bury(buffer: DeviceBuffer, reason: Error): void {
    buffer.dead = reason;
    const idle = this.#idle.get(buffer.bytes) ?? [];
    if (!idle.includes(buffer)) return; // Its user finds it dead, and releases it.
    this.#idle.set(buffer.bytes, idle.filter((other) => other !== buffer));
    this.#idleBytes -= buffer.bytes;
    this.#destroy(buffer);
  }

  #createHandle(size: number): GPUBuffer {
    try {
      return this.#device.createBuffer({ size, usage: this.#usage });
    } catch (cause) {
      throw noMemory(size, String(cause), cause);
    }
  }

  /** Takes a buffer back. */
  release(buffer: DeviceBuffer): void {
    if (!this.#all.has(buffer)) return;
    if (buffer.dead) return this.#destroy(buffer);
    const idle = this.#idle.get(buffer.bytes) ?? [];
    idle.push(buffer);
    this.#idle.set(buffer.bytes, idle);
    this.#idleBytes += buffer.bytes;
  }

  /** Destroys what is idle beyond the bound; to be called when no recorded command waits for submission. */
  trim(): void {
    for (const [size, idle] of this.#idle) {
      while (this.#idleBytes > MAX_IDLE_BYTES && idle.length > 0) {
        this.#idleBytes -= size;
        this.#destroy(idle.shift()!);
      }
    }
  }

  #destroy(buffer: DeviceBuffer): void {
    this.#all.delete(buffer);
    this.#onDestroy(buffer);
    buffer.handle.destroy();
  }

  /** Destroys all. */
  dispose(): void {
    for (const buffer of this.#all) this.#destroy(buffer);
    this.#idle.clear();
    this.#idleBytes = 0;
  }
}

/** The error of a buffer that does not exist. */
export function noMemory(bytes: number, message: string, cause?: unknown): OutOfMemoryError {
  return new OutOfMemoryError(`Cannot allocate ${bytes} bytes on the GPU: ${message}`, { found: bytes, cause });
}
