import { NumericError } from "../errors.ts";
import { type FloatDtype, fromFloat32, type StoredTensor, toFloat32 } from "../formats/dtype.ts";
import { quote } from "../formats/quote.ts";
import { sizeOf } from "../shape.ts";
import type { LoraModule } from "./adapter.ts";
import { type Matrix, transpose } from "./linear_algebra.ts";
import type { Factors } from "./svd.ts";

/**
 * Widens the factors of a module as matrices; the scaling is not in them, and a kernel's places are columns of A.
 *
 * @param module The module.
 * @returns B A as float64; B diag(d) A where there is a d.
 */
export function readFactors({ loraA, loraB, diagonal }: Pick<LoraModule, "loraA" | "loraB" | "diagonal">): Factors {
  const [a, b] = [readMatrix(loraA), transpose(readMatrix(loraB))];
  if (!diagonal) return { a, b };
  toFloat32(diagonal).forEach((d, k) => {
    for (let i = k * a.columns; i < (k + 1) * a.columns; i++) a.values[i]! *= d;
  });
  return { a, b };
}

function readMatrix(tensor: StoredTensor): Matrix {
  const [rows, ...others] = tensor.shape;
  return { rows: rows!, columns: sizeOf(others), values: Float64Array.from(toFloat32(tensor)) };
}

/**
 * Makes a module with s = 1, alpha = rank, of factors that are rounded once.
 *
 * @param like A module of the same name, kind and shape of ΔW.
 * @param factors B and A.
 * @param dtype Element type of the result.
 * @returns The module.
 * @throws {NumericError} If a value does not fit the type.
 */
export function storeFactors(like: LoraModule, { a, b }: Factors, dtype: FloatDtype): LoraModule {
  const { name, kind, inFeatures, outFeatures, loraA, loraB } = like;
  const stored = (matrix: Matrix, shape: readonly number[]) => storeMatrix(matrix, shape, { dtype, module: name });
  return {
    name,
    kind,
    rank: a.rows,
    alpha: a.rows,
    scaling: 1,
    inFeatures,
    outFeatures,
    dtype,
    loraA: stored(a, [a.rows, ...loraA.shape.slice(1)]),
    loraB: stored(transpose(b), [outFeatures, a.rows, ...loraB.shape.slice(2)]),
  };
}

/**
 * Stores numbers, rounded once.
 *
 * @param matrix The numbers.
 * @param shape Their shape.
 * @param options The type, and the module for messages.
 * @returns The tensor.
 * @throws {NumericError} If a value does not fit the type.
 */
export function storeMatrix(
  { values }: Pick<Matrix, "values">,
  shape: readonly number[],
  { dtype, module }: { readonly dtype: FloatDtype; readonly module: string },
): StoredTensor {
  const tensor = fromFloat32(Float32Array.from(values), shape, dtype);
  if (toFloat32(tensor).every(Number.isFinite)) return tensor;
  throw new NumericError(`Cannot store the factors of ${quote(module)} as ${dtype}: expected values in its range`, {
    tensor: module,
    field: "dtype",
    found: dtype,
  });
}
