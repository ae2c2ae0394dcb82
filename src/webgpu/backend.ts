/**
 * The WebGPU backend: one method per operation, each a check, an output and its dispatches.
 *
 * @module
 */

import type {
  AttentionOptions,
  Backend,
  BackendInfo,
  LinearBackwardOptions,
  LinearOptions,
  LoraBranch,
  MatrixValues,
  MergeLoss,
  Tensor,
  Weight,
  WeightOptions,
} from "../backend.ts";
import { ShapeError } from "../errors.ts";
import * as check from "../check.ts";
import { sizeOf } from "../shape.ts";
import type { DeviceBuffer } from "./buffer_pool.ts";
import { CommandQueue, type Dispatch, type GpuCounts, type QueueLimits } from "./commands.ts";
import type { OpenedDevice } from "./device.ts";
import { cutPanels, GpuTensor, type GpuWeight, WEIGHT_DTYPES } from "./handles.ts";
import { addGradients, addLinear, type PackedBranch, writeDelta } from "./linear.ts";
import { GpuMemory } from "./memory.ts";
import { mergePanels } from "./merge.ts";
import type { Gpu } from "./product.ts";

/** Invocations of a workgroup in kernels that go element by element. */
const GROUP = 64;

/** Records operations in the order of the calls, and runs them on the GPU when a result is read. */
export class WebGpuBackend implements Backend {
  /** `"webgpu"`. */
  readonly name = "webgpu" as const;
  /** Which GPU computes, and why. */
  readonly info: BackendInfo;
  readonly #device: OpenedDevice;
  readonly #queue: CommandQueue;
  #memory: GpuMemory | null;

  /** Takes a device, and limits below its own if wanted. */
  constructor(opened: OpenedDevice, reason: string, limits: Partial<QueueLimits> = {}) {
    const { device, label } = opened;
    const { maxStorageBufferBindingSize, maxBufferSize, maxComputeWorkgroupsPerDimension } = device.limits;
    this.info = { variant: label, threads: 1, reason, weightDtypes: WEIGHT_DTYPES };
    this.#device = opened;
    this.#queue = new CommandQueue(device, {
      maxBinding: Math.floor(Math.min(maxStorageBufferBindingSize, maxBufferSize) / 16) * 16,
      maxGroups: maxComputeWorkgroupsPerDimension,
      ...limits,
    });
    this.#memory = new GpuMemory(this.#queue);
  }

  /** The memory of a backend that can compute. */
  get #live(): GpuMemory {
    this.#queue.check();
    return this.#memory!;
  }

  get #gpu(): Gpu {
    return { queue: this.#queue, memory: this.#live };
  }

  /** Bytes of tensors and weights now held. */
  get bytes(): number {
    return this.#memory?.used ?? 0;
  }

  /** Dispatches and submissions so far, and buffers that exist. */
  get counts(): GpuCounts {
    return this.#queue.counts;
  }

  #at(tensor: Tensor): DeviceBuffer {
    return this.#live.own(tensor).block.buffer;
  }

  #weight(weight: Weight): GpuWeight {
    const own = this.#live.ownWeight(weight);
    own.live;
    return own;
  }

  #branch({ a, b, scaling }: LoraBranch): PackedBranch {
    return { a: this.#weight(a).live, b: this.#weight(b).live, rank: a.shape[0], scaling };
  }

  #branches(branches: readonly LoraBranch[]): PackedBranch[] {
    return branches.map((branch) => this.#branch(branch));
  }

  /** One invocation per element of the result. */
  #elements(shape: readonly number[], size: number, dispatch: Omit<Dispatch, "groups">): Tensor {
    return this.#run(shape, { ...dispatch, groups: Math.ceil(size / GROUP) });
  }

  /** A tensor that one dispatch writes; its buffer is bound last. */
  #run(shape: readonly number[], { buffers, ...dispatch }: Dispatch): Tensor {
    return this.#live.create(shape, (y) => this.#queue.dispatch({ ...dispatch, buffers: [...buffers, y] }));
  }

  /** See {@linkcode Backend.tensor}. */
  tensor(shape: readonly number[], values?: Float32Array): Tensor {
    const size = sizeOf(shape);
    if (values) check.checkValues(shape, size, values);
    return values ? this.#live.fromValues(shape, values) : this.#live.zeros(shape);
  }

  /** See {@linkcode Backend.write}. */
  write(tensor: Tensor, values: Float32Array): void {
    check.checkValues(tensor.shape, tensor.size, values);
    this.#live.write(this.#live.own(tensor), values);
  }

  /** See {@linkcode Backend.read}. */
  async read(tensor: Tensor): Promise<Float32Array> {
    return new Float32Array(await this.#queue.read(this.#at(tensor), tensor.size * 4));
  }

  /** See {@linkcode Backend.reshape}. */
  reshape(tensor: Tensor, shape: readonly number[]): Tensor {
    check.checkReshape(tensor, shape);
    this.#at(tensor);
    return new GpuTensor(this.#live.own(tensor).block, shape, false);
  }

  /** See {@linkcode Backend.weight}. */
  weight(values: MatrixValues, options: WeightOptions = {}): Weight {
    check.checkMatrixValues(values, options, WEIGHT_DTYPES);
    return this.#live.pack(values, options);
  }

  /** See {@linkcode Backend.readWeight}. */
  async readWeight(weight: Weight): Promise<Float32Array> {
    return await this.#live.unpack(this.#weight(weight));
  }

  /** See {@linkcode Backend.scope}. */
  scope<T extends Tensor | readonly Tensor[] | void>(body: () => T): T {
    return this.#live.scope(body);
  }

  /** See {@linkcode Backend.linear}. */
  linear(x: Tensor, weight: Weight, options: LinearOptions = {}): Tensor {
    const sizes = check.checkLinear(x, weight, options);
    const bias = options.bias ? this.#at(options.bias) : null;
    const call = { x: this.#at(x), w: this.#weight(weight), bias, ...sizes };
    const adapters = options.adapters ?? [];
    const ranges = adapters.map(({ branches, ...rows }) => ({ ...rows, branches: this.#branches(branches) }));
    return this.#live.create([sizes.m, sizes.n], (y) => addLinear(this.#gpu, { ...call, y }, ranges));
  }

  /** See {@linkcode Backend.linearBackward}. */
  linearBackward(dy: Tensor, x: Tensor, weight: Weight, options: LinearBackwardOptions): void {
    const sizes = check.checkLinearBackward(dy, x, weight, options);
    const optional = (tensor: Tensor | undefined) => tensor ? this.#at(tensor) : null;
    const [dx, dw, dbias] = [options.dx, options.dw, options.dbias].map(optional);
    const ranges = (options.adapters ?? []).map((range) => ({
      ...range,
      branches: range.branches.map((branch) => ({
        ...this.#branch(branch),
        da: optional(branch.da),
        db: optional(branch.db),
      })),
    }));
    const operands = { dy: this.#at(dy), x: this.#at(x), w: this.#weight(weight) };
    addGradients(this.#gpu, { ...operands, dx: dx!, dw: dw!, dbias: dbias!, ...sizes }, ranges);
  }

  /** See {@linkcode Backend.deltaWeight}. */
  deltaWeight(branch: LoraBranch): Tensor {
    const shape = check.checkDelta(branch);
    const packed = this.#branch(branch);
    return this.#live.create(shape, (delta) => writeDelta(this.#gpu, delta, packed, shape));
  }

  /** See {@linkcode Backend.merge}. */
  async merge(weight: Weight, branches: readonly LoraBranch[]): Promise<MergeLoss> {
    check.checkMerge(weight, branches);
    return await mergePanels(this.#gpu, this.#weight(weight), this.#branches(branches));
  }

  /** See {@linkcode Backend.unmerge}. */
  unmerge(weight: Weight): void {
    check.checkUnmerge(weight);
    const own = this.#weight(weight);
    own.panels.release();
    own.panels = own.original!;
    own.original = null;
  }

  /** See {@linkcode Backend.embedding}. */
  embedding(ids: Uint32Array, table: Weight): Tensor {
    const [n, k] = table.shape;
    check.checkIndices("embedding", "ids", ids, n);
    const { live, dtype } = this.#weight(table);
    return this.#live.create([ids.length, k], (y) =>
      this.#live.indices(ids, (rows) => {
        for (const { first, count, parts } of cutPanels(live)) {
          this.#queue.dispatch({
            shader: "embedding",
            constants: { BF16: dtype === "bf16" ? 1 : 0 },
            buffers: [rows, parts[0]!.buffer, y],
            groups: Math.ceil(ids.length * k / GROUP),
            integers: [ids.length, k, first, count],
          });
        }
      }));
  }

  /** See {@linkcode Backend.takeRows}. */
  takeRows(x: Tensor, rows: Uint32Array): Tensor {
    const [, dim] = check.checkTakeRows(x, rows);
    const input = this.#at(x);
    const shape = [rows.length, dim];
    return this.#live.indices(rows, (at) => {
      return this.#elements(shape, rows.length * dim, { shader: "take_rows", buffers: [input, at], integers: shape });
    });
  }

  /** See {@linkcode Backend.rmsNorm}. */
  rmsNorm(x: Tensor, gain: Tensor, eps: number): Tensor {
    const [rows, dim] = check.checkRmsNorm(x, gain, eps);
    const buffers = [this.#at(x), this.#at(gain)];
    return this.#run(x.shape, { shader: "rms_norm", buffers, groups: rows, integers: [dim], floats: [eps] });
  }

  /** See {@linkcode Backend.rope}. */
  rope(x: Tensor, cos: Tensor, sin: Tensor): Tensor {
    const { rows, heads, half } = check.checkRope(x, cos, sin);
    const pairs = rows * heads * half;
    const buffers = [this.#at(x), this.#at(cos), this.#at(sin)];
    return this.#elements(x.shape, pairs, { shader: "rope", buffers, integers: [pairs, heads, half] });
  }

  /** See {@linkcode Backend.append}. */
  append(cache: Tensor, x: Tensor, past: number): void {
    const { capacity, dim, length } = check.checkAppend(cache, x, past);
    const buffers = [this.#at(x), this.#at(cache)];
    const integers = [x.size, length, capacity, dim, past];
    this.#queue.dispatch({ shader: "append", buffers, groups: Math.ceil(x.size / GROUP), integers });
  }

  /** See {@linkcode Backend.attention}. */
  attention(q: Tensor, keys: Tensor, values: Tensor, options: AttentionOptions): Tensor {
    const { length, capacity, dim } = check.checkAttention(q, keys, values, options);
    const { heads, kvHeads, batch, past, window = 0 } = options;
    const slabs = Math.ceil(dim / 256);
    return this.#run(q.shape, {
      shader: "attention",
      buffers: [this.#at(q), this.#at(keys), this.#at(values)],
      groups: batch * length * heads * slabs,
      integers: [length, capacity, heads, kvHeads, dim, past, Math.min(window, 2 ** 32 - 1), slabs],
      floats: [1 / Math.sqrt(dim)],
    });
  }

  /** See {@linkcode Backend.siluMul}. */
  siluMul(gate: Tensor, up: Tensor): Tensor {
    check.checkSame("siluMul", ["gate", gate], ["up", up]);
    const buffers = [this.#at(gate), this.#at(up)];
    return this.#elements(gate.shape, gate.size, { shader: "silu_mul", buffers, integers: [gate.size] });
  }

  /** See {@linkcode Backend.add}. */
  add(x: Tensor, y: Tensor): Tensor {
    check.checkSame("add", ["x", x], ["y", y]);
    const buffers = [this.#at(x), this.#at(y)];
    return this.#elements(x.shape, x.size, { shader: "add", buffers, integers: [x.size] });
  }

  /** See {@linkcode Backend.crossEntropy}. */
  crossEntropy(logits: Tensor, targets: Uint32Array): Tensor {
    const [rows, classes] = check.checkCrossEntropy(logits, targets);
    if (rows > 0 && classes === 0) throw new ShapeError("Cannot run crossEntropy with 0 classes: expected at least 1");
    const input = this.#at(logits);
    return this.#live.indices(
      targets,
      (at) => this.#run([rows], { shader: "cross_entropy", buffers: [input, at], groups: rows, integers: [classes] }),
    );
  }

  /** Destroys all buffers, and the device if it was made here. */
  dispose(): void {
    if (!this.#memory) return;
    this.#memory = null;
    this.#queue.dispose();
    if (this.#device.owned) this.#device.device.destroy();
  }

  /** The same as `dispose()`. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}
