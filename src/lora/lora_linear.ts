/**
 * The linear layer with low-rank adapters (Hu et al. 2021).
 *
 * @module
 */

import type { Backend, MergeLoss, Tensor, Weight } from "../backend.ts";
import { DisposedError } from "../errors.ts";
import type { LoraFactors } from "./factors.ts";
import { addAdapters, type LoraForwardOptions, type LoraLayer, requireUnmerged } from "./layer.ts";
import { MergeState } from "./merge_state.ts";
import { LinearAdapter, type Replacements } from "./linear_adapter.ts";
import { backwardLinear, type LoraGradients } from "./linear_backward.ts";
import { forwardLinear, type Term, type TermRange } from "./linear_forward.ts";
import {
  type AdapterChoice,
  type AdapterSelection,
  requireOrder,
  resolveChoice,
  resolveSelection,
  type RowMix,
} from "./selection.ts";

/** What a {@linkcode LoraLinear} is made of. */
export interface LoraLinearOptions {
  /** W (out, in). It stays the caller's to dispose. */
  readonly weight: Weight;
  /** Bias (out). It stays the caller's to dispose. */
  readonly bias?: Tensor;
  /** Adapters by name. */
  readonly adapters?: Readonly<Record<string, LoraFactors>>;
  /**
   * Others use the weight too, as a tied head does: a merge works on a copy, and they keep what they had. The copy of a
   * quantized weight is f32, so that such a merge loses nothing.
   */
  readonly shared?: boolean;
}

/** What a backward pass adds to; what is absent is not computed. */
export interface LoraBackwardOptions extends LoraForwardOptions {
  /** dx (n, in) += dy W + s (dy B) A. */
  readonly dx?: Tensor;
  /** Gradients by adapter name; make them with {@linkcode LoraLinear.gradients}. */
  readonly gradients?: ReadonlyMap<string, LoraGradients>;
  /** dW (out, in) += dyᵀ x, for the weight that answered: the base's or, where an adapter has its own, that. */
  readonly dw?: Tensor;
  /** dbias (out) += column sums of dy. */
  readonly dbias?: Tensor;
}

/**
 * y = x Wᵀ + bias + Σ wᵢ sᵢ (x Aᵢᵀ) Bᵢᵀ, with the adapters i and their weights wᵢ chosen per row. An adapter with a
 * magnitude (DoRA) scales what is before it: y = g ∘ (x (W + w s B A)ᵀ) + bias, g = m / ‖W + w s B A‖ per output feature,
 * so that a weight of 0 leaves it out altogether.
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
export class LoraLinear implements LoraLayer {
  /** W (out, in). */
  readonly weight: Weight;
  /** Bias (out). */
  readonly bias: Tensor | undefined;
  readonly #backend: Backend;
  readonly #state: MergeState;
  readonly #adapters: Map<string, LinearAdapter> = new Map();
  #disposed = false;

  /** Packs the adapters that are given. */
  constructor(backend: Backend, options: LoraLinearOptions) {
    this.#backend = backend;
    this.weight = options.weight;
    this.bias = options.bias;
    this.#state = new MergeState(backend, options.weight, options.shared ?? false);
    addAdapters(this, options.adapters);
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
    return [...this.#adapters.keys()];
  }

  /** Whether adapters are merged into the layer. */
  get merged(): boolean {
    return this.#state.merged;
  }

  /**
   * Packs the factors of one adapter under a name; one of that name is replaced. The base is not touched.
   *
   * @throws {ShapeError} If A is not (rank, in), B not (out, rank), or a vector not (out); nothing changes.
   * @throws {NumericError} If the scaling is not finite.
   */
  addAdapter(name: string, factors: LoraFactors): void {
    const adapter = new LinearAdapter(this.#backend);
    adapter.setFactors(name, factors, this.weight.shape);
    this.takeAdapter(name, adapter);
  }

  /**
   * Holds an adapter that was packed for this layer; one of that name is replaced.
   *
   * @internal
   */
  takeAdapter(name: string, adapter: LinearAdapter): void {
    this.removeAdapter(name);
    this.#adapters.set(name, adapter);
  }

  /**
   * Gives an adapter a weight or a bias of its own: they stand in for the base's while it answers, whatever its weight
   * in a mix. Of several, the last in the mix counts.
   *
   * @throws {ShapeError} If the weight is not (out, in), or the bias not (out); nothing changes.
   */
  replaceFor(name: string, replacements: Replacements): void {
    const adapter = this.#adapters.get(name) ?? new LinearAdapter(this.#backend);
    adapter.setReplacements(name, replacements, this.weight);
    this.#adapters.set(name, adapter);
  }

  /** Frees the adapter of this name; false when there is none. */
  removeAdapter(name: string): boolean {
    this.#adapters.get(name)?.dispose();
    return this.#adapters.delete(name);
  }

  /**
   * Computes y (n, out) for x (n, in). While adapters are merged, only a call without `adapter` is answered, by the
   * merged weight: nothing then stands in for the base or for another adapter.
   *
   * @throws {MismatchError} If a name is unknown; the message lists the known ones.
   * @throws {RangeError} If an adapter, or the base, is chosen while adapters are merged.
   */
  forward(x: Tensor, options: LoraForwardOptions = {}): Tensor {
    if (options.adapter !== undefined) requireUnmerged(this, "choose an adapter or the base");
    return this.apply(x, this.#resolve(x, options.adapter));
  }

  #resolve(x: Tensor, selection: AdapterSelection | undefined): RowMix[] {
    return resolveSelection(selection, { rows: x.shape[0] ?? 0, known: this.#adapters });
  }

  /** The forward of a model: rows are resolved once for all layers, and names that this layer lacks are skipped. */
  apply(x: Tensor, mixes: readonly RowMix[]): Tensor {
    if (this.#disposed) throw new DisposedError("Cannot run a layer: it is disposed");
    const ranges = this.#ranges(mixes);
    if (ranges.length > 0) requireUnmerged(this, "apply an adapter");
    const { weight, bias } = this.#state;
    return forwardLinear(this.#backend, { weight, bias: bias ?? this.bias }, x, ranges);
  }

  #ranges(mixes: readonly RowMix[]): TermRange[] {
    return mixes.map(({ start, end, mix }) => ({ start, end, terms: this.#terms(mix) }))
      .filter(({ terms }) => terms.length > 0);
  }

  #terms(mix: RowMix["mix"]): Term[] {
    const own = mix.filter(([name]) => this.#adapters.has(name));
    const terms = own.map(([name, weight]) => ({ adapter: this.#adapters.get(name)!, weight }));
    if (terms.some(({ adapter }) => adapter.magnitude)) requireOrder(own);
    return terms;
  }

  /**
   * Makes gradients of zeros for the factors of an adapter, which the caller owns.
   *
   * @throws {RangeError} If the adapter has full tensors alone.
   */
  gradients(name: string): LoraGradients {
    resolveChoice(name, this.#adapters);
    const { branch, loraBias, magnitude } = this.#adapters.get(name)!;
    if (!branch) throw new RangeError(`Cannot make gradients for adapter "${name}": it has no factors in this layer`);
    const zeros = (shape: readonly number[]) => this.#backend.tensor(shape);
    return {
      da: zeros(branch.a.shape),
      db: zeros(branch.b.shape),
      ...(loraBias && { dLoraBias: zeros(loraBias.shape) }),
      ...(magnitude && { dMagnitude: zeros(magnitude.shape) }),
    };
  }

  /**
   * Adds the gradients of {@linkcode LoraLinear.forward} for dy (n, out), given the x (n, in) and the selection that
   * it had. DoRA's norms are constants, as in PEFT.
   *
   * @throws {MismatchError} If gradients are wanted for an adapter that this layer lacks.
   */
  backward(dy: Tensor, x: Tensor, options: LoraBackwardOptions): void {
    requireUnmerged(this, "run backward");
    const { adapter, gradients = new Map<string, LoraGradients>(), dx, dw, dbias } = options;
    for (const name of gradients.keys()) resolveChoice(name, this.#adapters);
    const own = new Map([...gradients].map(([name, each]) => [this.#adapters.get(name)!, each]));
    const call = { dy, x, dx, dw, dbias, gradients: own };
    backwardLinear(this.#backend, this, call, this.#ranges(this.#resolve(x, adapter)));
  }

  /**
   * Folds adapters into the weight: W += Σ wᵢ sᵢ Bᵢ Aᵢ, with DoRA g ∘ (W + w s B A), and into the bias. The bits it
   * overwrites are kept, as many bytes as the weight.
   * Quantized weights lose some of it: see {@linkcode MergeLoss}.
   *
   * @throws {NumericError} If a result would not be finite; the weight is as it was.
   * @throws {RangeError} If adapters are merged already, or none is named.
   */
  async merge(adapter: AdapterChoice): Promise<MergeLoss> {
    return await this.#state.merge(this.#terms(resolveChoice(adapter, this.#adapters)), { base: this });
  }

  /** Puts weight and bias back, bit for bit. */
  unmerge(): void {
    this.#state.unmerge();
  }

  /** Frees the adapters; weight and bias stay with the caller. */
  dispose(): void {
    for (const name of this.adapters) this.removeAdapter(name);
    this.#state.dispose();
    this.#disposed = true;
  }

  /** The same as `dispose()`. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}
