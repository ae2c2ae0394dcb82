/**
 * Adapters merged into the weight of a layer, or into a copy where others use that weight too.
 *
 * @module
 */

import type { Backend, MergeLoss, Tensor, Weight } from "../backend.ts";
import type { LinearBase, Term } from "./linear_forward.ts";
import { copyWeight, mergedBias, type MergeOptions, mergeTerms } from "./linear_merge.ts";

/** What {@linkcode MergeState.merge} does beside adding the branches. */
export interface MergeStateOptions extends Pick<MergeOptions, "columns" | "edit"> {
  /** The layer, if adapters may change its bias. */
  readonly base?: LinearBase;
}

/** What merged adapters put in the place of a layer's own. */
interface StandIns {
  /** A copy of a shared weight; null where the weight itself was merged. */
  readonly copy: Weight | null;
  /** The bias, if it is another one. */
  readonly bias: Tensor | null;
}

/** Whether adapters are merged into one layer, and what answers then. */
export class MergeState {
  readonly #backend: Backend;
  readonly #weight: Weight;
  readonly #shared: boolean;
  #standIns: StandIns | null = null;
  #isUnderWay = false;

  /** Takes the layer's weight; `shared` if others use it too. */
  constructor(backend: Backend, weight: Weight, shared: boolean) {
    this.#backend = backend;
    this.#weight = weight;
    this.#shared = shared;
  }

  /** Whether adapters are merged. */
  get merged(): boolean {
    return this.#standIns !== null || this.#weight.merged;
  }

  /** The weight that answers. */
  get weight(): Weight {
    return this.#standIns?.copy ?? this.#weight;
  }

  /** The bias that answers in place of the layer's; null for none. */
  get bias(): Tensor | null {
    return this.#standIns?.bias ?? null;
  }

  /**
   * Merges adapters. The bits that they overwrite are kept.
   *
   * @throws {NumericError} If a result would not be finite; the layer is as it was.
   * @throws {RangeError} If adapters are merged already, or none is given.
   */
  async merge(terms: readonly Term[], { base, ...options }: MergeStateOptions = {}): Promise<MergeLoss> {
    if (terms.length === 0) throw new RangeError("Cannot merge nothing: expected an adapter with a weight but 0");
    if (this.merged || this.#isUnderWay) {
      throw new RangeError("Cannot merge twice: adapters are already merged into this layer");
    }
    const [backend, weight] = [this.#backend, this.#weight];
    let standIns: StandIns = { copy: null, bias: null };
    this.#isUnderWay = true;
    try {
      if (this.#shared) standIns = { ...standIns, copy: await copyWeight(backend, weight) };
      if (base) standIns = { ...standIns, bias: mergedBias(backend, base, terms) };
      const loss = await mergeTerms(backend, terms, { ...options, base: weight, target: standIns.copy ?? weight });
      this.#standIns = standIns;
      return loss;
    } catch (error) {
      dispose(standIns);
      throw error;
    } finally {
      this.#isUnderWay = false;
    }
  }

  /** Puts everything back, bit for bit. */
  unmerge(): void {
    if (!this.#standIns || this.#weight.merged) this.#backend.unmerge(this.#weight);
    this.dispose();
  }

  /** Frees what stands in for the layer's own; a merged weight stays so. */
  dispose(): void {
    if (this.#standIns) dispose(this.#standIns);
    this.#standIns = null;
  }
}

function dispose({ copy, bias }: StandIns): void {
  copy?.dispose();
  bias?.dispose();
}
