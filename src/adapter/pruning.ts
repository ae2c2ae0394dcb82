/**
 * How PEFT 0.21.2 merges task tensors: pruning by magnitude or at random, then a weighted sum, or one of the entries
 * whose sign won the vote (TIES, Yadav et al. 2023; DARE, Yu et al. 2024).
 *
 * @module
 */

import { type Matrix, zeros } from "./linear_algebra.ts";
import type { RandomStream } from "./random.ts";

/** Ways to merge tensors entry by entry. */
export type PruningMethod = "ties" | "dare_linear" | "dare_ties" | "magnitude_prune";

/** How the vote over the sign of an entry counts: sums of values, or of signs. */
export type MajoritySign = "total" | "frequency";

/** Options of {@linkcode mergeTensors}. */
export interface PruningOptions {
  /** Which way. */
  readonly method: PruningMethod;
  /** Share of the entries that is kept, above 0 up to 1. */
  readonly density: number;
  /** How votes count. */
  readonly majoritySign: MajoritySign;
  /** Decides what is dropped at random: a stream for each tensor. */
  readonly random: (index: number) => RandomStream;
}

/**
 * Merges tensors of one shape: Σ weightᵢ tᵢ over what pruning and voting leave.
 *
 * @param tensors The tensors.
 * @param weights Their weights; they act after the vote.
 * @param options How.
 * @returns The merged tensor.
 */
export function mergeTensors(tensors: readonly Matrix[], weights: readonly number[], options: PruningOptions): Matrix {
  const { method, density, random } = options;
  const isRandom = method === "dare_linear" || method === "dare_ties";
  const pruned = tensors.map((tensor, i) => isRandom ? drop(tensor, density, random(i)) : keepLargest(tensor, density));
  if (method === "ties" || method === "dare_ties") return mergeElected(pruned, weights, options.majoritySign);
  const merged = zeros(tensors[0]!.rows, tensors[0]!.columns);
  pruned.forEach(({ values }, i) => {
    for (let k = 0; k < values.length; k++) merged.values[k]! += weights[i]! * values[k]!;
  });
  return merged;
}

/** Keeps the ⌊density · size⌋ largest magnitudes; of equal ones the first. */
function keepLargest(tensor: Matrix, density: number): Matrix {
  const count = Math.floor(density * tensor.values.length);
  if (count === tensor.values.length) return tensor;
  const sizes = tensor.values.map(Math.abs).sort().reverse();
  const threshold = count === 0 ? Infinity : sizes[count - 1]!;
  let equal = count - Math.max(0, sizes.findIndex((size) => size <= threshold));
  const values = tensor.values.map((value) => {
    const size = Math.abs(value);
    return size > threshold || (size === threshold && equal-- > 0) ? value : 0;
  });
  return { ...tensor, values };
}

/** Keeps each entry with probability `density` and divides it by that. */
function drop(tensor: Matrix, density: number, random: RandomStream): Matrix {
  if (density === 1) return tensor;
  return { ...tensor, values: tensor.values.map((value) => random.uniform() < density ? value / density : 0) };
}

function mergeElected(tensors: readonly Matrix[], weights: readonly number[], majoritySign: MajoritySign): Matrix {
  const merged = zeros(tensors[0]!.rows, tensors[0]!.columns);
  for (let k = 0; k < merged.values.length; k++) {
    let votes = 0;
    for (const { values } of tensors) votes += majoritySign === "total" ? values[k]! : Math.sign(values[k]!);
    const elected = votes >= 0 ? 1 : -1;
    let [sum, agreeing] = [0, 0];
    tensors.forEach(({ values }, i) => {
      if (Math.sign(values[k]!) !== elected) return;
      sum += weights[i]! * values[k]!;
      agreeing++;
    });
    merged.values[k] = sum / Math.max(1, agreeing);
  }
  return merged;
}
