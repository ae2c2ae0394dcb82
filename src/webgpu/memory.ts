/**
 * What moves between JavaScript and the GPU: values in and out, packed weights, scopes.
 *
 * @module
 */

import type { MatrixValues, Tensor, Weight, WeightDtype } from "../backend.ts";
import { OutOfMemoryError } from "../errors.ts";
import { sizeOf } from "../shape.ts";
import type { DeviceBuffer } from "./buffer_pool.ts";
import type { CommandQueue } from "./commands.ts";
import { type Form, formOf, isPlain, panelBytes } from "./forms.ts";
import { Block, type BlockOwner, type Chunk, GpuTensor, GpuWeight, Panels } from "./handles.ts";
import { HostKernels } from "./host_kernels.ts";
import { cutValues, packPanels, unpackPanels } from "./panels.ts";

/** Panels are packed in pieces of about this size, so that loading needs little more memory than the weight. */
const STAGING_BYTES = 4 << 20;

/** The memory of one device with the handles that live in it. */
export class GpuMemory implements BlockOwner {
  /** Packs and merges what the GPU cannot. */
  readonly host: HostKernels = new HostKernels();
  readonly #queue: CommandQueue;
  #scope: GpuTensor[] | null = null;
  #used = 0;

  /** Takes the queue whose buffers it hands out. */
  constructor(queue: CommandQueue) {
    this.#queue = queue;
  }

  /** Bytes now held. */
  get used(): number {
    return this.#used;
  }

  /** See {@linkcode BlockOwner.free}. */
  free(buffer: DeviceBuffer, bytes: number): void {
    this.#used -= bytes;
    this.#queue.release(buffer);
  }

  #allocate(bytes: number, idle = false): { block: Block; zero: boolean } {
    const { buffer, zero } = this.#queue.acquire(bytes, idle);
    this.#used += bytes;
    return { block: new Block(this, buffer, bytes), zero };
  }

  #own(block: Block, shape: readonly number[]): GpuTensor {
    const tensor = new GpuTensor(block, shape, true);
    this.#scope?.push(tensor);
    return tensor;
  }

  /** Makes a tensor that `fill` is to write; if it throws, there is none. */
  create(shape: readonly number[], fill: (buffer: DeviceBuffer) => void): GpuTensor {
    const { block } = this.#allocate(sizeOf(shape) * 4);
    try {
      fill(block.buffer);
    } catch (error) {
      block.release();
      throw error;
    }
    return this.#own(block, shape);
  }

  /** Makes a tensor of zeros. */
  zeros(shape: readonly number[]): GpuTensor {
    const { block, zero } = this.#allocate(sizeOf(shape) * 4);
    if (!zero) this.#queue.clear(block.buffer);
    return this.#own(block, shape);
  }

  /** Makes a tensor of values. */
  fromValues(shape: readonly number[], values: Float32Array): GpuTensor {
    const { block } = this.#allocate(values.byteLength, true);
    this.#queue.upload(block.buffer, 0, bytesOf(values));
    return this.#own(block, shape);
  }

  /** Overwrites all elements of a tensor. */
  write(tensor: GpuTensor, values: Float32Array): void {
    const { buffer } = tensor.block;
    this.#queue.upload(buffer, 0, bytesOf(values));
    this.#queue.renew(buffer);
  }

  /** Runs `body` with a buffer of `bytes` bytes that is free again after it. */
  scratch<T>(bytes: number, body: (buffer: DeviceBuffer) => T): T {
    return this.#lend(this.#allocate(bytes).block, body);
  }

  /** Runs `body` with a copy of `indices`. */
  indices<T>(indices: Uint32Array, body: (buffer: DeviceBuffer) => T): T {
    const { block } = this.#allocate(indices.byteLength, true);
    return this.#lend(block, (buffer) => {
      this.#queue.upload(buffer, 0, bytesOf(indices));
      return body(buffer);
    });
  }

  #lend<T>(block: Block, body: (buffer: DeviceBuffer) => T): T {
    try {
      return body(block.buffer);
    } finally {
      block.release();
    }
  }

  /** A word that is zero, until it is released. */
  flag(): Block {
    const { block } = this.#allocate(4, true);
    this.#queue.upload(block.buffer, 0, new Uint8Array(4));
    return block;
  }

  /** See `Backend.scope`. */
  scope<T extends Tensor | readonly Tensor[] | void>(body: () => T): T {
    const outer = this.#scope;
    const inner: GpuTensor[] = this.#scope = [];
    let kept: readonly GpuTensor[] = [];
    try {
      const result = body();
      kept = tensorsOf(result);
      return result;
    } finally {
      this.#scope = outer;
      for (const tensor of inner) {
        const heir = kept.includes(tensor) ? tensor : kept.find(({ block }) => block === tensor.block);
        if (!heir) tensor.dispose();
        else if (heir !== tensor) heir.adopt(tensor);
        if (heir) outer?.push(heir);
      }
    }
  }

  /** See `Backend.keep`. */
  keep(tensor: GpuTensor): GpuTensor {
    const at = this.#scope?.indexOf(tensor) ?? -1;
    if (at >= 0) this.#scope!.splice(at, 1);
    return tensor;
  }

  /** The tensor as one of this memory's. */
  own(tensor: Tensor): GpuTensor {
    if (tensor instanceof GpuTensor && tensor.block.owner === this) return tensor;
    throw foreign("tensor");
  }

  /** The weight as one of this memory's. */
  ownWeight(weight: Weight): GpuWeight {
    if (weight instanceof GpuWeight && weight.panels.chunks[0]!.block.owner === this) {
      return weight;
    }
    throw foreign("weight");
  }

  /** Reserves panels for an (n, k) matrix, whole panels in each buffer. */
  panels([n, k]: readonly [number, number], form: Form): Panels {
    const { maxBinding } = this.#queue.limits;
    const count = Math.ceil(n / 8);
    const each = panelBytes(k, form);
    if (each > maxBinding) {
      const details = { found: each, expected: maxBinding };
      throw new OutOfMemoryError(
        `Cannot bind ${each} bytes of 8 rows of a weight: the device allows ${maxBinding}`,
        details,
      );
    }
    const step = Math.max(1, Math.min(count, Math.floor(maxBinding / Math.max(each, 1))));
    const chunks: Chunk[] = [];
    try {
      for (let first = 0; first === 0 || first < count; first += step) {
        const held = Math.min(step, count - first);
        chunks.push({ first, count: held, block: this.#allocate(held * each, true).block });
      }
      return new Panels(chunks);
    } catch (error) {
      for (const { block } of chunks) block.release();
      throw error;
    }
  }

  /** Packs row-major (rows, columns) values, or their transpose, into panels. */
  pack(
    values: MatrixValues,
    { dtype = "f32", form = formOf(values, dtype), transposed = false }: {
      readonly dtype?: WeightDtype;
      readonly form?: Form;
      readonly transposed?: boolean;
    },
  ): GpuWeight {
    const [rows, columns] = values.shape;
    const shape = transposed ? [columns, rows] as const : [rows, columns] as const;
    const panels = this.panels(shape, form);
    const each = panelBytes(shape[1], form);
    try {
      for (const { block, offset, first, count } of pieces(panels, each)) {
        const piece = { first: first + offset, count, transposed };
        const bytes = isPlain(form)
          ? packPanels(values, { ...piece, form })
          : this.host.pack(cutValues(values, piece), { k: shape[1], form, transposed });
        this.#queue.upload(block.buffer, offset * each, bytes);
      }
    } catch (error) {
      panels.release();
      throw error;
    }
    return new GpuWeight(panels, shape, { dtype, form });
  }

  /** The elements of a weight, row-major. */
  async unpack({ panels, shape: [n, k], form }: GpuWeight): Promise<Float32Array> {
    const values = new Float32Array(n * k);
    const read = await this.readPanels(panels);
    if (isPlain(form)) {
      read.forEach((bytes, i) => unpackPanels(bytes, values, { first: panels.chunks[i]!.first, n, k, form }));
      return values;
    }
    const each = panelBytes(k, form);
    for (const { chunk, offset, first, count } of pieces(panels, each)) {
      const bytes = new Uint8Array(read[chunk]!, offset * each, count * each);
      const row = (first + offset) * 8;
      this.host.unpack(bytes, values.subarray(row * k, Math.min(n, row + count * 8) * k), { k, form });
    }
    return values;
  }

  /** The bytes of each chunk. */
  readPanels({ chunks }: Panels): Promise<ArrayBuffer[]> {
    return Promise.all(chunks.map(({ block }) => this.#queue.read(block.buffer, block.bytes)));
  }
}

/** Some panels of one chunk: about as many as {@linkcode STAGING_BYTES} holds. */
interface Piece extends Chunk {
  /** The number of the chunk. */
  readonly chunk: number;
  /** The first panel, counted from the chunk's. */
  readonly offset: number;
}

/** Cuts panels of `each` bytes into pieces. */
export function pieces(panels: Panels, each: number): Piece[] {
  const step = Math.max(1, Math.floor(STAGING_BYTES / Math.max(each, 1)));
  return panels.chunks.flatMap(({ first, count, block }, chunk) =>
    Array.from({ length: Math.ceil(count / step) }, (_, i) => {
      const offset = i * step;
      return { chunk, first, block, offset, count: Math.min(step, count - offset) };
    })
  );
}

/** A view of the bytes, or a copy where the memory is one that WebGPU does not take: shared or resizable. */
function bytesOf(values: Float32Array | Uint32Array): Uint8Array<ArrayBuffer> {
  const { buffer } = values;
  const plain = buffer instanceof ArrayBuffer && !buffer.resizable;
  const taken = (plain ? values : values.slice()) as Float32Array<ArrayBuffer>;
  return new Uint8Array(taken.buffer, taken.byteOffset, taken.byteLength);
}

function tensorsOf(result: Tensor | readonly Tensor[] | void): readonly GpuTensor[] {
  const tensors = result === undefined ? [] : Array.isArray(result) ? result : [result];
  return tensors.filter((tensor) => tensor instanceof GpuTensor);
}

function foreign(kind: string): Error {
  return new TypeError(`Cannot use a ${kind} of another backend: expected one that this backend made`);
}
