/**
 * EVA (Paischer et al. 2024): A begins with the directions in which a layer's inputs vary most, and ranks go to the layers
 * where a direction explains most.
 *
 * @module
 */

import { MismatchError } from "../errors.ts";
import { quote } from "../formats/quote.ts";
import { leadingVectors } from "./leading_vectors.ts";
import { firstRows, type Matrix } from "./linear_algebra.ts";

/** A layer and inputs of it. */
export interface EvaLayer {
  /** Path of the module. */
  readonly name: string;
  /** The rank that its config asks for. */
  readonly rank: number;
  /** Inputs (n, in), n at least 2. */
  readonly inputs: Matrix;
}

/** The directions that a layer gets; none if others explain more. */
export type EvaDirections = ReadonlyMap<string, Matrix>;

/**
 * Gives the layers their directions. The sum of the ranks is what the config asks for; no layer gets more than ρ times
 * its own.
 *
 * @param layers The layers.
 * @param rho ρ; 2 in PEFT.
 * @returns A (rank, in) by layer, without the layers that get none.
 * @throws {MismatchError} If a layer has too few inputs for one direction.
 */
export function evaDirections(layers: readonly EvaLayer[], rho: number): EvaDirections {
  const found = layers.map(({ name, rank, inputs }) => {
    const limit = Math.min(Math.round(rank * rho), inputs.columns, inputs.rows - 1);
    if (limit < 1) {
      const message = `Cannot initialise ${quote(name)} by eva with ${inputs.rows} inputs: expected at least 2`;
      throw new MismatchError(message, { tensor: name, field: "inputsOf", found: inputs.rows });
    }
    const centred = withoutMean(inputs);
    const total = centred.values.reduce((sum, value) => sum + value * value, 0) || 1;
    const { sigma, right } = leadingVectors(centred, limit);
    return { name, right, shares: Array.from(sigma, (value) => value * value / total) };
  });
  const budget = layers.reduce((sum, { rank }) => sum + rank, 0);
  const ranked = found.flatMap(({ name, shares }) => shares.map((share) => ({ name, share })));
  ranked.sort((a, b) => b.share - a.share);
  const counts = new Map<string, number>();
  for (const { name } of ranked.slice(0, budget)) counts.set(name, (counts.get(name) ?? 0) + 1);
  const kept = found.filter(({ name }) => counts.has(name));
  return new Map(kept.map(({ name, right }) => [name, firstRows(right, counts.get(name)!)]));
}

function withoutMean({ rows, columns, values }: Matrix): Matrix {
  const mean = new Float64Array(columns);
  for (let i = 0; i < values.length; i++) mean[i % columns]! += values[i]! / rows;
  return { rows, columns, values: values.map((value, i) => value - mean[i % columns]!) };
}
