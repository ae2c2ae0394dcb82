/**
 * The convolution with low-rank adapters, in one, two or three dimensions.
 *
 * @module
 */

import type { Backend, MergeLoss, Tensor, Weight } from "../backend.ts";
import { ShapeError } from "../errors.ts";
import { type StoredTensor, toFloat32 } from "../formats/dtype.ts";
import { quote } from "../formats/quote.ts";
import { formatShape, sizeOf } from "../shape.ts";
import { type ConvGeometry, findPatches, fold, type PaddingMode, unfold } from "./conv_patches.ts";
import { packKernel, swapInner } from "./conv_weight.ts";
import { type LoraFactors, refuseFactors } from "./factors.ts";
import { addAdapters, type LoraForwardOptions, type LoraLayer, requireUnmerged } from "./layer.ts";
import type { LoraGradients } from "./linear_backward.ts";
import { LoraLinear } from "./lora_linear.ts";
import { putRows } from "./rows.ts";
import { type AdapterChoice, type AdapterSelection, resolveSelection, type RowMix } from "./selection.ts";

/** One adapter of a convolution. A `LoraModule` of kind `"conv"` is one. */
export interface ConvFactors extends Omit<LoraFactors, "loraA" | "loraB"> {
  /** A (rank, in, k…): a convolution of the base's kernel, stride, padding and dilation, over all channels. */
  readonly loraA: StoredTensor;
  /** B (out, rank / groups, 1…). */
  readonly loraB: StoredTensor;
}

/** What a {@linkcode LoraConv} is made of. A number stands for as many as there are dimensions. */
export interface LoraConvOptions {
  /** W (out, in / groups, k…), with one to three k. The layer packs a copy that it owns. */
  readonly weight: StoredTensor;
  /** Bias (out). It stays the caller's to dispose. */
  readonly bias?: Tensor;
  /** Steps of the output; 1 when absent. */
  readonly stride?: number | readonly number[];
  /** Positions added at both ends; 0 when absent. */
  readonly padding?: number | readonly number[];
  /** What they hold; zeros when absent. */
  readonly paddingMode?: PaddingMode;
  /** Steps of the kernel; 1 when absent. */
  readonly dilation?: number | readonly number[];
  /** Groups of channels that do not see each other; 1 when absent. */
  readonly groups?: number;
  /** Adapters by name. */
  readonly adapters?: Readonly<Record<string, ConvFactors>>;
}

/** What {@linkcode LoraConv.backward} adds to; what is absent is not computed. */
export interface ConvBackwardOptions extends LoraForwardOptions {
  /** dx (batch, in, size…) +=. */
  readonly dx?: Tensor;
  /** Gradients by adapter name; make them with {@linkcode LoraConv.gradients}. */
  readonly gradients?: ReadonlyMap<string, LoraGradients>;
  /** dbias (out) +=. */
  readonly dbias?: Tensor;
}

/**
 * y = conv(x, W) + bias + Σ w s B conv(x, A), with the adapters and their weights w chosen per sequence of the batch, and
 * with DoRA g ∘ (conv(x, W) + …) + bias, g = m / ‖W + w s B A‖ per output channel.
 *
 * It is a {@linkcode LoraLinear} over the patches of x: W as (out, k… · in), A as (rank, k… · in), channels innermost.
 * Groups are held as what they mean, zeros between channels that do not see each other: the norms are true ones, at
 * `groups` times the memory and the work.
 *
 * @example
 * ```ts
 * import { fromFloat32, LoraConv, openBackend } from "@lowrank/lora";
 * import assert from "node:assert/strict";
 *
 * const stored = (shape: number[], ...values: number[]) => fromFloat32(Float32Array.from(values), shape);
 * const backend = await openBackend();
 * const edges = { loraA: stored([1, 1, 2], -1, 1), loraB: stored([1, 1, 1], 1), scaling: 10 };
 * const layer = new LoraConv(backend, { weight: stored([1, 1, 2], 1, 1), adapters: { edges } });
 * const x = backend.tensor([1, 1, 3], Float32Array.of(1, 2, 4));
 * assert.deepEqual([...await backend.read(layer.forward(x))], [3, 6]);
 * assert.deepEqual([...await backend.read(layer.forward(x, { adapter: "edges" }))], [13, 26]);
 * backend.dispose();
 * ```
 */
export class LoraConv implements LoraLayer {
  /** The layer over patches. */
  readonly linear: LoraLinear;
  readonly #backend: Backend;
  readonly #weight: Weight;
  readonly #geometry: ConvGeometry;
  readonly #groups: number;
  readonly #channels: number;

  /**
   * Packs the weight, and the adapters that are given.
   *
   * @throws {ShapeError} If shapes, groups or geometry do not fit each other.
   * @throws {TypeError} If the padding mode is none of the four.
   */
  constructor(backend: Backend, options: LoraConvOptions) {
    const { weight, bias, groups = 1 } = options;
    const [out = 0, perGroup = 0, ...kernel] = weight.shape;
    this.#backend = backend;
    this.#groups = groups;
    this.#channels = perGroup * groups;
    this.#geometry = readGeometry(kernel, options);
    if (!Number.isInteger(groups) || groups < 1 || out % groups !== 0) {
      throw new ShapeError(`Cannot make a convolution of ${out} outputs in ${groups} groups: expected a divisor`, {
        field: "groups",
        found: groups,
      });
    }
    this.#weight = backend.weight(packKernel(toFloat32(weight), { out, perGroup, groups, positions: sizeOf(kernel) }));
    this.linear = new LoraLinear(backend, { weight: this.#weight, ...(bias && { bias }) });
    addAdapters(this, options.adapters);
  }

  /** Names of the adapters, in the order in which they came. */
  get adapters(): readonly string[] {
    return this.linear.adapters;
  }

  /** Whether adapters are merged into the weight. */
  get merged(): boolean {
    return this.linear.merged;
  }

  /**
   * Packs the factors of one adapter under a name; one of that name is replaced.
   *
   * @throws {ShapeError} If A is not (rank, in, k…) or B not (out, rank / groups, 1…); nothing changes.
   */
  addAdapter(name: string, factors: ConvFactors): void {
    const { kernel } = this.#geometry;
    const [channels, groups] = [this.#channels, this.#groups];
    const [rank = 0, ...inner] = factors.loraA.shape;
    const [out = 0, columns = 0, ...ones] = factors.loraB.shape;
    const isA = formatShape(inner) === formatShape([channels, ...kernel]);
    const isB = out === this.linear.outFeatures && columns * groups === rank && ones.every((size) => size === 1);
    if (!isA || !isB) {
      const a = formatShape([channels, ...kernel]).slice(1);
      throw refuseFactors(name, factors, `[rank, ${a} and [${this.linear.outFeatures}, rank / ${groups}, 1…]`);
    }
    const whole = { groups: 1, positions: sizeOf(kernel) };
    const loraA = packKernel(toFloat32(factors.loraA), { out: rank, perGroup: channels, ...whole });
    const loraB = packKernel(toFloat32(factors.loraB), { out, perGroup: columns, groups, positions: 1 });
    this.linear.addAdapter(name, { ...factors, loraA, loraB });
  }

  /** Frees the adapter of this name; false when there is none. */
  removeAdapter(name: string): boolean {
    return this.linear.removeAdapter(name);
  }

  /**
   * Computes y (batch, out, size…) for x (batch, in, size…).
   *
   * @throws {ShapeError} If x has other channels or dimensions, or is smaller than the kernel.
   * @throws {MismatchError} If a name is unknown; the message lists the known ones.
   * @throws {RangeError} If an adapter, or the base, is chosen while adapters are merged.
   */
  forward(x: Tensor, options: LoraForwardOptions = {}): Tensor {
    if (options.adapter !== undefined) requireUnmerged(this, "choose an adapter or the base");
    const backend = this.#backend;
    const { batch, flat, patches } = this.#unfolded(x);
    const mixes = this.#resolve(options.adapter, batch, patches.count);
    return backend.scope(() => {
      const y = this.linear.apply(unfold(backend, backend.reshape(x, flat), patches), mixes);
      const out = this.linear.outFeatures;
      const turned = backend.transpose(backend.reshape(y, [batch, patches.count, out]));
      return backend.reshape(turned, [batch, out, ...patches.outputSize]);
    });
  }

  #resolve(selection: AdapterSelection | undefined, rows: number, rowsPer: number): RowMix[] {
    return resolveSelection(selection, { rows, rowsPer, known: new Set(this.adapters) });
  }

  #unfolded(x: Tensor) {
    const [batch = 0, channels = 0, ...size] = x.shape;
    if (channels !== this.#channels || size.length !== this.#geometry.kernel.length) {
      const expected = `[batch, ${this.#channels}, ${this.#geometry.kernel.map(() => "size").join(", ")}]`;
      const message = `Cannot run a convolution on x of shape ${formatShape(x.shape)}: expected ${expected}`;
      throw new ShapeError(message, { field: "x", found: x.shape, expected });
    }
    return { batch, flat: [batch, channels, sizeOf(size)] as const, patches: findPatches(size, this.#geometry) };
  }

  /** Makes gradients of zeros for an adapter: dA (rank, k… · in), channels innermost, and dB (out, rank). */
  gradients(name: string): LoraGradients {
    return this.linear.gradients(name);
  }

  /** Adds the gradients of {@linkcode LoraConv.forward} for dy (batch, out, size…), given the x and selection it had. */
  backward(dy: Tensor, x: Tensor, options: ConvBackwardOptions): void {
    const backend = this.#backend;
    const { batch, flat, patches } = this.#unfolded(x);
    const { adapter, dx, ...wanted } = options;
    const mixes = this.#resolve(adapter, batch, patches.count);
    const perRow = mixes.flatMap(({ start, end, mix }) => new Array(end - start).fill(Object.fromEntries(mix)));
    backend.scope(() => {
      const out = this.linear.outFeatures;
      const rows = backend.transpose(backend.reshape(dy, [batch, out, patches.count]));
      const unfolded = unfold(backend, backend.reshape(x, flat), patches);
      const dPatches = dx && backend.tensor(unfolded.shape);
      const call = { ...wanted, adapter: perRow, ...(dPatches && { dx: dPatches }) };
      this.linear.backward(backend.reshape(rows, [batch * patches.count, out]), unfolded, call);
      if (!dx || !dPatches) return;
      const before = backend.reshape(dx, [flat[0] * flat[1], flat[2]]);
      const own = backend.reshape(fold(backend, dPatches, patches, flat), before.shape);
      putRows(backend, before, backend.add(before, own), 0);
    });
  }

  /**
   * Folds adapters into the weight; the bits that they overwrite are kept. In a grouped convolution adapters join
   * channels that the base keeps apart: the merged weight is one of a single group.
   *
   * @param adapter A name, or a mix `{ name: weight }`.
   * @param options Whether a grouped weight may become one of a single group.
   * @throws {RangeError} If the convolution has groups and `expandGroups` is not set, or adapters are merged already.
   * @throws {NumericError} If a result would not be finite; the weight is as it was.
   */
  async merge(adapter: AdapterChoice, options: { readonly expandGroups?: boolean } = {}): Promise<MergeLoss> {
    if (this.#groups > 1 && options.expandGroups !== true) {
      const message =
        `Cannot merge into a convolution of ${this.#groups} groups: its adapters join channels that the base`;
      throw new RangeError(`${message} keeps apart, expected { expandGroups: true } for a weight of one group`);
    }
    return await this.linear.merge(adapter);
  }

  /** Puts the weight back, bit for bit. */
  unmerge(): void {
    this.linear.unmerge();
  }

  /** The weight in force (out, in, k…), merged adapters included; of groups with the zeros between them. */
  async read(): Promise<{ readonly shape: readonly number[]; readonly values: Float32Array }> {
    const packed = await this.#backend.readWeight(this.#weight);
    const shape = [this.linear.outFeatures, this.#channels, ...this.#geometry.kernel];
    return { shape, values: swapInner(packed, [sizeOf(this.#geometry.kernel), this.#channels]) };
  }

  /** Frees the weight and the adapters; the bias stays with the caller. */
  dispose(): void {
    this.linear.dispose();
    this.#weight.dispose();
  }

  /** The same as `dispose()`. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}

const PADDING_MODES: readonly PaddingMode[] = ["zeros", "reflect", "replicate", "circular"];

function readGeometry(kernel: readonly number[], options: LoraConvOptions): ConvGeometry {
  if (kernel.length < 1 || kernel.length > 3) {
    throw new ShapeError(
      `Cannot make a convolution of a weight ${formatShape(options.weight.shape)}: expected 1 to 3 k`,
      {
        field: "weight",
        found: options.weight.shape,
      },
    );
  }
  const list = (field: "stride" | "padding" | "dilation", absent: number, least: number) => {
    const given = options[field] ?? absent;
    const values = typeof given === "number" ? kernel.map(() => given) : given;
    if (values.length === kernel.length && values.every((value) => Number.isInteger(value) && value >= least)) {
      return values;
    }
    const expected = `${kernel.length} whole numbers from ${least}`;
    throw new ShapeError(`Cannot make a convolution with ${field} ${formatShape(values)}: expected ${expected}`, {
      field,
    });
  };
  const mode = options.paddingMode ?? "zeros";
  if (!PADDING_MODES.includes(mode)) {
    const expected = `expected one of ${PADDING_MODES.join(", ")}`;
    throw new TypeError(`Cannot make a convolution with paddingMode ${quote(String(mode))}: ${expected}`);
  }
  return {
    kernel,
    stride: list("stride", 1, 1),
    padding: list("padding", 0, 0),
    dilation: list("dilation", 1, 1),
    mode,
  };
}
