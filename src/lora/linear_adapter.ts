/**
 * What one adapter is inside one linear layer: a branch, a bias, a magnitude, or full tensors.
 *
 * @module
 */

import type { Backend, LoraBranch, Tensor, Weight } from "../backend.ts";
import { ShapeError } from "../errors.ts";
import type { StoredTensor } from "../formats/dtype.ts";
import { formatShape } from "../shape.ts";
import { checkFactors, keptVector, type LoraFactors, matrixValues, vectorValues } from "./factors.ts";

/** Full tensors that stand in for those of the base while an adapter answers; at least one. */
export interface Replacements {
  /** W (out, in). */
  readonly weight?: StoredTensor;
  /** Bias (out). */
  readonly bias?: StoredTensor;
}

/** DoRA's gain for one weight of the adapter. */
export interface DoraGain {
  /** m / ‖W + ΔW‖ (out). */
  readonly gain: Tensor;
  /** 1 / ‖W + ΔW‖ (out). */
  readonly inverse: Tensor;
}

/** Gains of other weights than 1 that are kept: as many mixes as a server alternates between. */
const MAX_GAINS = 8;

/** One adapter, packed. */
export class LinearAdapter {
  /** A, B and s; null where only full tensors are trained. */
  branch: LoraBranch | null = null;
  /** b_B (out). */
  loraBias: Tensor | null = null;
  /** DoRA's m (out). */
  magnitude: Tensor | null = null;
  /** W (out, in) in the base's place. */
  weight: Weight | null = null;
  /** The bias (out) in the base's place. */
  bias: Tensor | null = null;
  readonly #backend: Backend;
  readonly #gains: Map<number, DoraGain> = new Map();
  #isUnweighted = false;

  /** Holds nothing yet. */
  constructor(backend: Backend) {
    this.#backend = backend;
  }

  /**
   * Packs factors for a base (out, in); those it had are freed once all is packed.
   *
   * @param name Name of the adapter, for messages.
   * @param factors The factors.
   * @param shape `[out, in]`.
   * @param width Length of the bias and the magnitude: out, or in where the norms are those of columns.
   * @throws {ShapeError} If a shape does not fit; nothing changes.
   */
  setFactors(name: string, factors: LoraFactors, shape: readonly [number, number], width: number = shape[0]): void {
    const { loraA, loraB } = checkFactors(name, factors, shape);
    const vector = (field: string, values: StoredTensor | undefined) => {
      return values ? vectorValues(name, field, values, width) : null;
    };
    const [loraBias, magnitude] = [vector("b_B", factors.loraBias), vector("m", factors.magnitude)];
    const backend = this.#backend;
    const a = backend.weight(loraA);
    try {
      const branch = { a, b: backend.weight(loraB), scaling: factors.scaling };
      this.#freeFactors();
      this.branch = branch;
      this.#isUnweighted = factors.isUnweighted ?? false;
      this.loraBias = loraBias && keptVector(backend, loraBias);
      this.magnitude = magnitude && keptVector(backend, magnitude);
    } catch (error) {
      a.dispose();
      throw error;
    }
  }

  /**
   * Takes full tensors for a base (out, in).
   *
   * @throws {ShapeError} If a shape does not fit; nothing changes.
   */
  setReplacements(name: string, { weight, bias }: Replacements, base: Weight): void {
    const values = bias ? vectorValues(name, "bias", bias, base.shape[0]) : null;
    if (weight && formatShape(weight.shape) !== formatShape(base.shape)) {
      const found = formatShape(weight.shape);
      const message = `Cannot add adapter "${name}" with weight of shape ${found}: expected ${formatShape(base.shape)}`;
      throw new ShapeError(message, { field: name, found, expected: base.shape });
    }
    if (weight) {
      // What was trained in full is not quantized because its base is.
      const dtype = base.dtype === "bf16" ? "bf16" : "f32";
      const packed = this.#backend.weight(matrixValues(name, "weight", weight), { dtype });
      this.weight?.dispose();
      this.weight = packed;
    }
    if (values) {
      const packed = keptVector(this.#backend, values);
      this.bias?.dispose();
      this.bias = packed;
    }
  }

  /** Whether it is a branch and nothing else, which one product with the base computes. */
  get isPlain(): boolean {
    return !this.magnitude && !this.loraBias && !this.weight && !this.bias;
  }

  /** The branch at a weight of the adapter; none where it has no factors, or nothing of them is wanted. */
  branches(weight: number): LoraBranch[] {
    const factor = this.#isUnweighted ? 1 : weight;
    if (factor === 0 && !this.magnitude) return [];
    return this.branch ? [{ ...this.branch, scaling: this.branch.scaling * factor }] : [];
  }

  /**
   * DoRA's gain m / ‖W + w s B A‖, computed once per w: the norm depends on nothing else.
   *
   * @param base W (out, in), unmerged.
   * @param weight w, the adapter's weight.
   * @param columns The norms are those of W's columns, as an embedding's.
   */
  gain(base: Weight, weight: number, columns: boolean = false): DoraGain {
    const known = this.#gains.get(weight);
    if (known) return known;
    const backend = this.#backend;
    const inverse = backend.keep(backend.inverseNorms(base, this.branches(weight)[0]!, { columns }));
    const gain = backend.keep(backend.scope(() => {
      const row = backend.reshape(inverse, [1, inverse.size]);
      const product = backend.affineRows(row, [{ start: 0, end: 1, scale: this.magnitude! }]);
      return backend.reshape(product, inverse.shape);
    }));
    const made = { gain, inverse };
    for (const [other, { gain, inverse }] of this.#gains) {
      if (this.#gains.size < MAX_GAINS) break;
      gain.dispose();
      inverse.dispose();
      this.#gains.delete(other);
    }
    this.#gains.set(weight, made);
    return made;
  }

  #freeFactors(): void {
    this.branch?.a.dispose();
    this.branch?.b.dispose();
    this.loraBias?.dispose();
    this.magnitude?.dispose();
    for (const { gain, inverse } of this.#gains.values()) {
      gain.dispose();
      inverse.dispose();
    }
    this.#gains.clear();
  }

  /** Frees everything. */
  dispose(): void {
    this.#freeFactors();
    this.weight?.dispose();
    this.bias?.dispose();
  }
}
