/**
 * Merging adapters that are more than branches: the sum is computed here in f32 and rounded once.
 *
 * @module
 */

import type { Backend, LoraBranch, MergeLoss, Tensor, Weight, WeightDtype } from "../backend.ts";
import { floatMatrix } from "./factors.ts";
import { addLoraBiases, type LinearBase, replacedBias, stagesOf, type Term } from "./linear_forward.ts";

/** Types whose elements are rounded alone: nothing is lost but that. */
const FLOATS: readonly WeightDtype[] = ["f32", "bf16"];

/** How {@linkcode mergeTerms} finds its weights. */
export interface MergeOptions {
  /** The base (out, in). */
  readonly base: Weight;
  /** What takes the sum: the base, or a copy of it. */
  readonly target: Weight;
  /** The gains are those of W's columns, as an embedding's. */
  readonly columns?: boolean;
  /** Edits W's elements before the branches are added. */
  readonly edit?: ((values: Float32Array) => void) | undefined;
}

/**
 * W' = … g₂ ∘ (g₁ ∘ (W + Δ₁) + Δ₂) …, with the weight of an adapter that has its own in W's place.
 *
 * @throws {NumericError} If a result would not be finite; the weight is as it was.
 */
export async function mergeTerms(backend: Backend, terms: readonly Term[], options: MergeOptions): Promise<MergeLoss> {
  const { base, target, columns = false, edit } = options;
  const plain = !edit && terms.every(({ adapter }) => !adapter.magnitude && !adapter.weight);
  if (plain) {
    const branches = terms.flatMap(({ adapter, weight }) => adapter.branches(weight));
    return branches.length > 0 ? await backend.merge(target, branches) : { error: 0 };
  }
  const own = terms.findLast(({ adapter }) => adapter.weight)?.adapter.weight ?? base;
  const values = await backend.readWeight(own);
  edit?.(values);
  for (const { adapter, weight } of terms) {
    for (const branch of adapter.branches(weight)) await addDelta(backend, values, branch);
    if (!adapter.magnitude) continue;
    const gain = await backend.read(adapter.gain(base, weight, columns).gain);
    scale(values, gain, base.shape[1], columns);
  }
  const before = FLOATS.includes(target.dtype) ? null : await backend.readWeight(target);
  backend.replace(target, floatMatrix(base.shape, values));
  return { error: before ? lossOf(before, values, await backend.readWeight(target)) : 0 };
}

/** ‖held − wanted‖ / ‖wanted − before‖. */
function lossOf(before: Float32Array, wanted: Float32Array, held: Float32Array): number {
  let [lost, added] = [0, 0];
  for (let i = 0; i < wanted.length; i++) {
    lost += (held[i]! - wanted[i]!) ** 2;
    added += (wanted[i]! - before[i]!) ** 2;
  }
  return lost === 0 ? 0 : Math.sqrt(lost / added);
}

async function addDelta(backend: Backend, values: Float32Array, branch: LoraBranch): Promise<void> {
  const tensor = backend.deltaWeight(branch);
  const delta = await backend.read(tensor).finally(() => tensor.dispose());
  for (let i = 0; i < values.length; i++) values[i]! += delta[i]!;
}

/** Multiplies each row, or each column, of a matrix by its gain. */
function scale(values: Float32Array, gain: Float32Array, width: number, columns: boolean): void {
  for (let i = 0; i < values.length; i++) values[i]! *= gain[columns ? i % width : Math.floor(i / width)]!;
}

/** Types that a second quantization of their own values may change: scales and minima are not always found again. */
const QUANTIZED: readonly WeightDtype[] = ["f8", "int8", "int4", "nf4"];

/** A copy of a weight with the same values: in its own dtype where that holds them bit for bit, or else in f32. */
export async function copyWeight(backend: Backend, weight: Weight): Promise<Weight> {
  const dtype = QUANTIZED.includes(weight.dtype) ? "f32" : weight.dtype;
  return backend.weight(floatMatrix(weight.shape, await backend.readWeight(weight)), { dtype });
}

/** The bias with Σ s b_B, each behind the gains of its stage and of those after it; null where it is the base's. */
export function mergedBias(backend: Backend, base: LinearBase, terms: readonly Term[]): Tensor | null {
  const own = replacedBias(base, terms);
  if (own === base.bias && !terms.some(({ adapter }) => adapter.loraBias)) return null;
  return backend.keep(backend.scope(() => {
    let sum: Tensor = backend.tensor([base.weight.shape[0]]);
    for (const stage of stagesOf(base.weight, terms)) {
      sum = addLoraBiases(backend, sum, stage.terms)!;
      if (stage.gain) sum = scaled(backend, sum, stage.gain.gain);
    }
    const all = backend.affineRows(backend.reshape(sum, [1, sum.size]), own ? [{ start: 0, end: 1, shift: own }] : []);
    return backend.reshape(all, [sum.size]);
  }));
}

function scaled(backend: Backend, vector: Tensor, scale: Tensor): Tensor {
  return backend.reshape(backend.affineRows(backend.reshape(vector, [1, vector.size]), [{ start: 0, end: 1, scale }]), [
    vector.size,
  ]);
}
