import { MismatchError } from "../errors.ts";
import { type StoredTensor, toFloat32 } from "../formats/dtype.ts";
import { quote } from "../formats/quote.ts";
import { formatShape } from "../shape.ts";
import type { LoraModule } from "./adapter.ts";
import { type Matrix, transpose } from "./linear_algebra.ts";

/** A weight in float64. */
export interface WeightMatrix {
  /** W (out, in). */
  readonly matrix: Matrix;
  /** Whether it is stored (in, out). */
  readonly isTransposed: boolean;
}

/**
 * Widens the weight of a linear layer.
 *
 * @param weight The weight as stored.
 * @param module Its sizes.
 * @param square Whether a square weight is stored (in, out).
 * @returns W (out, in).
 * @throws {MismatchError} If it has another shape.
 */
export function readWeight(
  weight: StoredTensor,
  { name, inFeatures, outFeatures }: Pick<LoraModule, "name" | "inFeatures" | "outFeatures">,
  square: boolean,
): WeightMatrix {
  const [rows, columns] = weight.shape as readonly [number, number];
  const fits = weight.shape.length === 2 && rows * columns === inFeatures * outFeatures;
  if (!fits || (rows !== outFeatures && rows !== inFeatures)) {
    const expected = [outFeatures, inFeatures];
    const message = `Cannot read the weight of ${quote(name)} of shape ${formatShape(weight.shape)}`;
    throw new MismatchError(`${message}: expected ${formatShape(expected)}`, {
      tensor: name,
      found: weight.shape,
      expected,
    });
  }
  const isTransposed = inFeatures === outFeatures ? square : rows === inFeatures;
  const stored: Matrix = { rows, columns, values: Float64Array.from(toFloat32(weight)) };
  return { matrix: isTransposed ? transpose(stored) : stored, isTransposed };
}
