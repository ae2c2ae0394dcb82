/**
 * The WebAssembly backend: one method per operation, each a check, an output and a kernel call.
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
  Tensor,
  Weight,
  WeightOptions,
} from "../backend.ts";
import { ShapeError } from "../errors.ts";
import * as check from "../check.ts";
import { sizeOf } from "../shape.ts";
import { WasmTensor } from "./handles.ts";
import type { Kernels, LoadedKernels } from "./kernels.ts";
import { addGradients, runLinear } from "./linear.ts";
import { disposedBackend, DTYPE_CODES, LinearMemory } from "./memory.ts";
import { mergePanels } from "./merge.ts";

/** Runs the operations on the CPU, at once, in the order of the calls. */
export class WasmBackend implements Backend {
  /** `"wasm"`. */
  readonly name = "wasm" as const;
  /** Which kernels run, and why. */
  readonly info: BackendInfo;
  #loaded: { readonly kernels: Kernels; readonly memory: LinearMemory } | null;

  /** Takes instantiated kernels. */
  constructor({ variant, kernels }: LoadedKernels, reason: string) {
    this.info = { variant, threads: 1, reason };
    this.#loaded = { kernels, memory: new LinearMemory(kernels) };
  }

  get #kernels(): Kernels {
    if (!this.#loaded) throw disposedBackend();
    return this.#loaded.kernels;
  }

  get #memory(): LinearMemory {
    if (!this.#loaded) throw disposedBackend();
    return this.#loaded.memory;
  }

  /** Bytes of tensors and weights now held. */
  get bytes(): number {
    return this.#loaded?.memory.used ?? 0;
  }

  #at(tensor: Tensor): number {
    return this.#memory.own(tensor).block.address;
  }

  #weightAt(weight: Weight): readonly [address: number, dtype: number] {
    return [this.#memory.ownWeight(weight).block.address, DTYPE_CODES[weight.dtype]];
  }

  /** See {@linkcode Backend.tensor}. */
  tensor(shape: readonly number[], values?: Float32Array): Tensor {
    const size = sizeOf(shape);
    if (values) check.checkValues(shape, size, values);
    const tensor = this.#memory.create(shape);
    if (values) this.#memory.floats(tensor).set(values);
    else this.#memory.floats(tensor).fill(0);
    return tensor;
  }

  /** See {@linkcode Backend.write}. */
  write(tensor: Tensor, values: Float32Array): void {
    check.checkValues(tensor.shape, tensor.size, values);
    this.#memory.floats(this.#memory.own(tensor)).set(values);
  }

  /** See {@linkcode Backend.read}. */
  // deno-lint-ignore require-await -- a WebAssembly result is ready; the contract's readers await it
  async read(tensor: Tensor): Promise<Float32Array> {
    return this.#memory.floats(this.#memory.own(tensor)).slice();
  }

  /** See {@linkcode Backend.reshape}. */
  reshape(tensor: Tensor, shape: readonly number[]): Tensor {
    check.checkReshape(tensor, shape);
    this.#at(tensor);
    return new WasmTensor(this.#memory.own(tensor).block, shape, false);
  }

  /** See {@linkcode Backend.weight}. */
  weight(values: MatrixValues, options: WeightOptions = {}): Weight {
    const { dtype = "f32", transposed = false } = options;
    check.checkMatrixValues(values, dtype);
    return this.#memory.pack(values, dtype, transposed);
  }

  /** See {@linkcode Backend.readWeight}. */
  // deno-lint-ignore require-await -- as in read()
  async readWeight(weight: Weight): Promise<Float32Array> {
    return this.#memory.unpack(this.#memory.ownWeight(weight));
  }

  /** See {@linkcode Backend.scope}. */
  scope<T extends Tensor | readonly Tensor[] | void>(body: () => T): T {
    return this.#memory.scope(body);
  }

  /** See {@linkcode Backend.linear}. */
  linear(x: Tensor, weight: Weight, options: LinearOptions = {}): Tensor {
    const sizes = check.checkLinear(x, weight, options);
    const bias = options.bias ? this.#at(options.bias) : 0;
    const [input, [w, dtype]] = [this.#at(x), this.#weightAt(weight)];
    const ranges = (options.adapters ?? []).map((range) => ({ ...range, branches: this.#branches(range.branches) }));
    return this.#memory.produce([sizes.m, sizes.n], (y) => {
      runLinear(this.#kernels, this.#memory, { y, x: input, w, dtype, bias, ...sizes }, ranges);
    });
  }

  #branches(branches: readonly LoraBranch[]): { a: number; b: number; rank: number; scaling: number }[] {
    return branches.map(({ a, b, scaling }) => {
      return { a: this.#weightAt(a)[0], b: this.#weightAt(b)[0], rank: a.shape[0], scaling };
    });
  }

  /** See {@linkcode Backend.linearBackward}. */
  linearBackward(dy: Tensor, x: Tensor, weight: Weight, options: LinearBackwardOptions): void {
    const sizes = check.checkLinearBackward(dy, x, weight, options);
    const [w, dtype] = this.#weightAt(weight);
    const optional = (tensor: Tensor | undefined) => tensor ? this.#at(tensor) : 0;
    const [dx, dw, dbias] = [options.dx, options.dw, options.dbias].map(optional) as [number, number, number];
    const ranges = (options.adapters ?? []).map(({ start, end, branches }) => {
      const addresses = this.#branches(branches);
      const gradients = branches.map(({ da, db }, i) => ({ ...addresses[i]!, da: optional(da), db: optional(db) }));
      return { start, end, branches: gradients };
    });
    const call = { dy: this.#at(dy), x: this.#at(x), w, dtype, dx, dw, dbias, ...sizes };
    addGradients(this.#kernels, this.#memory, call, ranges);
  }

  /** See {@linkcode Backend.deltaWeight}. */
  deltaWeight(branch: LoraBranch): Tensor {
    const [n, k] = check.checkDelta(branch);
    const [a, b, rank] = [this.#weightAt(branch.a)[0], this.#weightAt(branch.b)[0], branch.a.shape[0]];
    return this.#memory.produce([n, k], (delta) => {
      this.#memory.scratch(this.#kernels.delta_weight_scratch(n, k, rank), (scratch) => {
        this.#kernels.delta_weight(delta, a, b, branch.scaling, n, k, rank, scratch);
      });
    });
  }

  /** See {@linkcode Backend.merge}. */
  // deno-lint-ignore require-await -- as in read()
  async merge(weight: Weight, branches: readonly LoraBranch[]): Promise<void> {
    check.checkMerge(weight, branches);
    mergePanels(this.#kernels, this.#memory, this.#memory.ownWeight(weight), this.#branches(branches));
  }

  /** See {@linkcode Backend.unmerge}. */
  unmerge(weight: Weight): void {
    check.checkUnmerge(weight);
    const own = this.#memory.ownWeight(weight);
    this.#weightAt(own);
    own.block.release();
    own.block = own.original!;
    own.original = null;
  }

  /** See {@linkcode Backend.embedding}. */
  embedding(ids: Uint32Array, table: Weight): Tensor {
    const [n, k] = table.shape;
    check.checkIndices("embedding", "ids", ids, n);
    const [w, dtype] = this.#weightAt(table);
    return this.#memory.produce([ids.length, k], (y) => {
      this.#memory.indices(ids, (at) => this.#kernels.embedding(y, at, w, dtype, ids.length, n, k));
    });
  }

  /** See {@linkcode Backend.takeRows}. */
  takeRows(x: Tensor, rows: Uint32Array): Tensor {
    const [, dim] = check.checkTakeRows(x, rows);
    const input = this.#at(x);
    return this.#memory.produce([rows.length, dim], (y) => {
      this.#memory.indices(rows, (at) => this.#kernels.take_rows(y, input, at, rows.length, dim));
    });
  }

  /** See {@linkcode Backend.rmsNorm}. */
  rmsNorm(x: Tensor, gain: Tensor, eps: number): Tensor {
    const [rows, dim] = check.checkRmsNorm(x, gain, eps);
    const [input, gains] = [this.#at(x), this.#at(gain)];
    return this.#memory.produce(x.shape, (y) => this.#kernels.rms_norm(y, input, gains, rows, dim, eps));
  }

  /** See {@linkcode Backend.rope}. */
  rope(x: Tensor, cos: Tensor, sin: Tensor): Tensor {
    const { rows, heads, half } = check.checkRope(x, cos, sin);
    const [input, cosines, sines] = [this.#at(x), this.#at(cos), this.#at(sin)];
    return this.#memory.produce(x.shape, (y) => this.#kernels.rope(y, input, cosines, sines, rows, heads, half));
  }

  /** See {@linkcode Backend.append}. */
  append(cache: Tensor, x: Tensor, past: number): void {
    const { batch, capacity, dim, length } = check.checkAppend(cache, x, past);
    this.#kernels.append(this.#at(cache), this.#at(x), batch, length, capacity, dim, past);
  }

  /** See {@linkcode Backend.attention}. */
  attention(q: Tensor, keys: Tensor, values: Tensor, options: AttentionOptions): Tensor {
    const { length, capacity, dim } = check.checkAttention(q, keys, values, options);
    const { heads, kvHeads, batch, past, window = 0 } = options;
    const inputs = [this.#at(q), this.#at(keys), this.#at(values)] as const;
    return this.#memory.produce(q.shape, (y) => {
      this.#memory.scratch(this.#kernels.attention_scratch(length, past, heads, kvHeads, dim), (scratch) => {
        const sizes = [length, capacity, heads, kvHeads, dim, past, window] as const;
        this.#kernels.attention(y, ...inputs, ...sizes, 0, batch * heads, scratch);
      });
    });
  }

  /** See {@linkcode Backend.siluMul}. */
  siluMul(gate: Tensor, up: Tensor): Tensor {
    check.checkSame("siluMul", ["gate", gate], ["up", up]);
    const inputs = [this.#at(gate), this.#at(up)] as const;
    return this.#memory.produce(gate.shape, (y) => this.#kernels.silu_mul(y, ...inputs, gate.size));
  }

  /** See {@linkcode Backend.add}. */
  add(x: Tensor, y: Tensor): Tensor {
    check.checkSame("add", ["x", x], ["y", y]);
    const inputs = [this.#at(x), this.#at(y)] as const;
    return this.#memory.produce(x.shape, (sum) => this.#kernels.add(sum, ...inputs, x.size));
  }

  /** See {@linkcode Backend.crossEntropy}. */
  crossEntropy(logits: Tensor, targets: Uint32Array): Tensor {
    const [rows, classes] = check.checkCrossEntropy(logits, targets);
    if (rows > 0 && classes === 0) throw new ShapeError("Cannot run crossEntropy with 0 classes: expected at least 1");
    const input = this.#at(logits);
    return this.#memory.produce([rows], (loss) => {
      this.#memory.indices(targets, (at) => this.#kernels.cross_entropy(loss, input, at, rows, classes));
    });
  }

  /** Drops the instance with all its memory; linear memory never shrinks otherwise. */
  dispose(): void {
    this.#loaded?.memory.drop();
    this.#loaded = null;
  }

  /** The same as `dispose()`. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}
