/**
 * The linear layer with low-rank adapters (Hu et al. 2021).
 *
 * @module
 */

import type { Backend, LoraBranch, LoraGradientBranch, MatrixValues, MergeLoss } from "../backend.ts";
import type { RowBranches, Tensor, Weight } from "../backend.ts";
import { DisposedError, MismatchError, NumericError, ShapeError } from "../errors.ts";
import type { StoredTensor } from "../formats/dtype.ts";
import { formatShape } from "../shape.ts";
import {
  type AdapterChoice,
  type AdapterSelection,
  resolveChoice,
  resolveSelection,
  type RowMix,
} from "./selection.ts";

/** One module of an adapter: the factors and their scale. A `LoraModule` of a loaded adapter is one. */
export interface LoraFactors {
  /** A (rank, in). */
  readonly loraA: MatrixValues | StoredTensor;
  /** B (out, rank). */
  readonly loraB: MatrixValues | StoredTensor;
  /** s = alpha / rank, or alpha / sqrt(rank) with rsLoRA. */
  readonly scaling: number;
}

/** Where a backward pass adds the gradients of one adapter. */
export interface LoraGradients {
  /** dA (rank, in). */
  readonly da: Tensor;
  /** dB (out, rank). */
  readonly db: Tensor;
}

/** What a {@linkcode LoraLinear} is made of. */
export interface LoraLinearOptions {
  /** W (out, in). It stays the caller's to dispose. */
  readonly weight: Weight;
  /** Bias (out). It stays the caller's to dispose. */
  readonly bias?: Tensor;
  /** Adapters by name. */
  readonly adapters?: Readonly<Record<string, LoraFactors>>;
}

/** Which adapters answer. */
export interface LoraForwardOptions {
  /** A name, a mix `{ name: weight }`, `null` for the base, or an array with one of these per row of x. */
  readonly adapter?: AdapterSelection | undefined;
}

/** What a backward pass adds to; what is absent is not computed. */
export interface LoraBackwardOptions extends LoraForwardOptions {
  /** dx (n, in) += dy W + s (dy B) A. */
  readonly dx?: Tensor;
  /** Gradients by adapter name; make them with {@linkcode LoraLinear.gradients}. */
  readonly gradients?: ReadonlyMap<string, LoraGradients>;
  /** dW (out, in) += dyᵀ x. */
  readonly dw?: Tensor;
  /** dbias (out) += column sums of dy. */
  readonly dbias?: Tensor;
}

/**
 * y = x Wᵀ + bias + Σ wᵢ sᵢ (x Aᵢᵀ) Bᵢᵀ, with the adapters i and their weights wᵢ chosen per row.
 *
 * @example
 * ```ts
 * import { LoraLinear, openBackend } from "@lowrank/lora";
 * import assert from "node:assert/strict";
 *
 * const matrix = (rows: number, columns: number, ...values: number[]) => ({
 *   shape: [rows, columns] as const,
 *   dtype: "f32" as const,
 *   bytes: new Uint8Array(Float32Array.from(values).buffer),
 * });
 * const backend = await openBackend();
 * const weight = backend.weight(matrix(2, 2, 1, 0, 0, 1));
 * const shout = { loraA: matrix(1, 2, 1, 1), loraB: matrix(2, 1, 1, 0), scaling: 2 };
 * const layer = new LoraLinear(backend, { weight, adapters: { shout } });
 * const x = backend.tensor([1, 2], Float32Array.of(3, 4));
 * assert.deepEqual([...await backend.read(layer.forward(x))], [3, 4]);
 * assert.deepEqual([...await backend.read(layer.forward(x, { adapter: "shout" }))], [17, 4]);
 * backend.dispose();
 * ```
 */
export class LoraLinear implements Disposable {
  /** W (out, in). */
  readonly weight: Weight;
  /** Bias (out). */
  readonly bias: Tensor | undefined;
  readonly #backend: Backend;
  readonly #branches: Map<string, LoraBranch> = new Map();
  #disposed = false;

  /** Packs the adapters that are given. */
  constructor(backend: Backend, options: LoraLinearOptions) {
    this.#backend = backend;
    this.weight = options.weight;
    this.bias = options.bias;
    try {
      for (const [name, factors] of Object.entries(options.adapters ?? {})) this.addAdapter(name, factors);
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  /** Input features. */
  get inFeatures(): number {
    return this.weight.shape[1];
  }

  /** Output features. */
  get outFeatures(): number {
    return this.weight.shape[0];
  }

  /** Names of the adapters, in the order in which they came. */
  get adapters(): readonly string[] {
    return [...this.#branches.keys()];
  }

  /** Whether adapters are merged into the weight. */
  get merged(): boolean {
    return this.weight.merged;
  }

  /**
   * Packs the factors of one adapter under a name; one of that name is replaced. The base is not touched.
   *
   * @throws {ShapeError} If A is not (rank, in) or B not (out, rank); nothing changes.
   * @throws {NumericError} If the scaling is not finite.
   */
  addAdapter(name: string, factors: LoraFactors): void {
    const [loraA, loraB] = [matrixValues(name, "A", factors.loraA), matrixValues(name, "B", factors.loraB)];
    const [rank, inFeatures] = loraA.shape;
    if (inFeatures !== this.inFeatures || loraB.shape[0] !== this.outFeatures || loraB.shape[1] !== rank) {
      const found = `A ${formatShape(loraA.shape)} and B ${formatShape(loraB.shape)}`;
      const wanted = `[rank, ${this.inFeatures}] and [${this.outFeatures}, rank]`;
      throw new ShapeError(`Cannot add adapter "${name}" with ${found}: expected ${wanted}`, { field: name, found });
    }
    if (!Number.isFinite(factors.scaling)) {
      const message = `Cannot add adapter "${name}" with scaling ${factors.scaling}: expected a finite number`;
      throw new NumericError(message, { field: "scaling", found: factors.scaling });
    }
    const a = this.#backend.weight(loraA);
    try {
      const branch = { a, b: this.#backend.weight(loraB), scaling: factors.scaling };
      this.removeAdapter(name);
      this.#branches.set(name, branch);
    } catch (error) {
      a.dispose();
      throw error;
    }
  }

  /** Frees the adapter of this name; false when there is none. */
  removeAdapter(name: string): boolean {
    const branch = this.#branches.get(name);
    branch?.a.dispose();
    branch?.b.dispose();
    return this.#branches.delete(name);
  }

  /**
   * Computes y (n, out) for x (n, in). While adapters are merged, only a call without `adapter` is answered, by the
   * merged weight: nothing then stands in for the base or for another adapter.
   *
   * @throws {MismatchError} If a name is unknown; the message lists the known ones.
   * @throws {RangeError} If an adapter, or the base, is chosen while adapters are merged.
   */
  forward(x: Tensor, options: LoraForwardOptions = {}): Tensor {
    if (options.adapter !== undefined) this.#requireUnmerged("choose an adapter or the base");
    return this.apply(x, this.#resolve(x, options.adapter));
  }

  #resolve(x: Tensor, selection: AdapterSelection | undefined): RowMix[] {
    return resolveSelection(selection, { rows: x.shape[0] ?? 0, known: this.#branches });
  }

  /** The forward of a model: rows are resolved once for all layers, and names that this layer lacks are skipped. */
  apply(x: Tensor, mixes: readonly RowMix[]): Tensor {
    if (this.#disposed) throw new DisposedError("Cannot run a layer: it is disposed");
    const adapters = this.#ranges(mixes);
    if (adapters.length > 0) this.#requireUnmerged("apply an adapter");
    return this.#backend.linear(x, this.weight, { ...(this.bias && { bias: this.bias }), adapters });
  }

  #ranges(mixes: readonly RowMix[]): RowBranches[] {
    return mixes.map(({ start, end, mix }) => ({ start, end, branches: this.#mix(mix) }))
      .filter(({ branches }) => branches.length > 0);
  }

  #mix(mix: RowMix["mix"]): LoraBranch[] {
    return mix.flatMap(([name, weight]) => {
      const branch = this.#branches.get(name);
      return branch ? [{ ...branch, scaling: branch.scaling * weight }] : [];
    });
  }

  #requireUnmerged(action: string): void {
    if (this.merged) throw new RangeError(`Cannot ${action}: adapters are merged into the weight, unmerge them first`);
  }

  /** Makes gradients of zeros for an adapter, which the caller owns. */
  gradients(name: string): LoraGradients {
    resolveChoice(name, this.#branches);
    const { a, b } = this.#branches.get(name)!;
    return { da: this.#backend.tensor(a.shape), db: this.#backend.tensor(b.shape) };
  }

  /**
   * Adds the gradients of {@linkcode LoraLinear.forward} for dy (n, out), given the x (n, in) and the selection that
   * it had.
   *
   * @throws {MismatchError} If gradients are wanted for an adapter that this layer lacks.
   */
  backward(dy: Tensor, x: Tensor, options: LoraBackwardOptions): void {
    this.#requireUnmerged("run backward");
    const { adapter, gradients = new Map<string, LoraGradients>(), dx, dw, dbias } = options;
    for (const name of gradients.keys()) resolveChoice(name, this.#branches);
    const adapters = this.#resolve(x, adapter).map(({ start, end, mix }) => {
      const branches = mix.map(([name, weight]): LoraGradientBranch => {
        const branch = this.#branches.get(name)!;
        return { ...branch, scaling: branch.scaling * weight, ...gradients.get(name) };
      });
      return { start, end, branches };
    });
    this.#backend.linearBackward(dy, x, this.weight, {
      adapters,
      ...(dx && { dx }),
      ...(dw && { dw }),
      ...(dbias && { dbias }),
    });
  }

  /**
   * Folds adapters into the weight: W += Σ wᵢ sᵢ Bᵢ Aᵢ. The bits it overwrites are kept, as many bytes as the weight.
   * Quantized weights lose some of it: see {@linkcode MergeLoss}.
   *
   * @throws {NumericError} If a result would not be finite; the weight is as it was.
   * @throws {RangeError} If adapters are merged already, or none is named.
   */
  async merge(adapter: AdapterChoice): Promise<MergeLoss> {
    const branches = this.#mix(resolveChoice(adapter, this.#branches));
    if (branches.length === 0) throw new RangeError("Cannot merge nothing: expected an adapter with a weight but 0");
    return await this.#backend.merge(this.weight, branches);
  }

  /** Puts the weight back, bit for bit. */
  unmerge(): void {
    this.#backend.unmerge(this.weight);
  }

  /** Frees the adapters; weight and bias stay with the caller. */
  dispose(): void {
    for (const name of this.adapters) this.removeAdapter(name);
    this.#disposed = true;
  }

  /** The same as `dispose()`. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}

const MATRIX_DTYPES: Readonly<Record<string, MatrixValues["dtype"]>> = {
  f32: "f32",
  f16: "f16",
  bf16: "bf16",
  F32: "f32",
  F16: "f16",
  BF16: "bf16",
};

function matrixValues(name: string, factor: string, values: MatrixValues | StoredTensor): MatrixValues {
  const dtype = MATRIX_DTYPES[values.dtype];
  const [rows, columns] = values.shape;
  if (dtype === undefined || rows === undefined || columns === undefined || values.shape.length !== 2) {
    const found = `${values.dtype} ${formatShape(values.shape)}`;
    throw new MismatchError(`Cannot add adapter "${name}" with ${factor} as ${found}: expected a matrix of floats`, {
      field: name,
      found,
    });
  }
  return { shape: [rows, columns], dtype, bytes: values.bytes };
}
