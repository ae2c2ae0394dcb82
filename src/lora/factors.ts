/**
 * The values that layers are given: what callers write and files hold, on its way into a backend.
 *
 * @module
 */

import type { Backend, MatrixValues, Tensor } from "../backend.ts";
import { MismatchError, NumericError, ShapeError } from "../errors.ts";
import { type StoredTensor, toFloat32 } from "../formats/dtype.ts";
import { formatShape, sizeOf } from "../shape.ts";

/** A matrix as a caller or a file has it. */
export type MatrixSource = MatrixValues | StoredTensor;

/** One module of an adapter: the factors and their scale. A `LoraModule` of a loaded adapter is one. */
export interface LoraFactors {
  /** A (rank, in). */
  readonly loraA: MatrixSource;
  /** B (out, rank). */
  readonly loraB: MatrixSource;
  /** s = alpha / rank, or alpha / sqrt(rank) with rsLoRA. */
  readonly scaling: number;
  /** b_B (out), `lora_bias`: y += s b_B. */
  readonly loraBias?: StoredTensor;
  /** DoRA's m (out): y = m / ‖W + ΔW‖ ∘ (x (W + ΔW)ᵀ) + bias, with one norm per output feature. */
  readonly magnitude?: StoredTensor;
  /** KaSA's d (rank): ΔW = s B diag(d) A. */
  readonly diagonal?: StoredTensor;
  /** It acts in full whatever the adapter's weight in a mix, as full tensors do: for rows that a tied head follows. */
  readonly isUnweighted?: boolean;
}

const MATRIX_DTYPES: Readonly<Record<string, MatrixValues["dtype"]>> = {
  f32: "f32",
  f16: "f16",
  bf16: "bf16",
  F32: "f32",
  F16: "f16",
  BF16: "bf16",
};

/**
 * A factor as a backend takes it.
 *
 * @throws {MismatchError} If it is no matrix of floats.
 */
export function matrixValues(name: string, factor: string, values: MatrixSource): MatrixValues {
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

/** A row-major matrix of f32. */
export function floatMatrix(shape: readonly [number, number], values: Float32Array): MatrixValues {
  return { shape, dtype: "f32", bytes: new Uint8Array(values.buffer, values.byteOffset, values.byteLength) };
}

/** The transpose of a matrix, in f32. */
export function transposed(values: MatrixValues): MatrixValues {
  const [rows, columns] = values.shape;
  const from = floatsOf(values);
  const to = new Float32Array(from.length);
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++) to[j * rows + i] = from[i * columns + j]!;
  }
  return floatMatrix([columns, rows], to);
}

/** The elements of a matrix in f32. */
export function floatsOf(values: MatrixValues): Float32Array {
  const dtype = values.dtype.toUpperCase() as "F32" | "F16" | "BF16";
  return toFloat32({ dtype, shape: values.shape, bytes: values.bytes });
}

/**
 * A and B with what a diagonal changes in them.
 *
 * @throws {ShapeError} If A is not (rank, in), B not (out, rank), or the diagonal not (rank).
 * @throws {NumericError} If the scaling is not finite.
 */
export function checkFactors(
  name: string,
  factors: LoraFactors,
  [outFeatures, inFeatures]: readonly [number, number],
): { loraA: MatrixValues; loraB: MatrixValues } {
  const [loraA, loraB] = [matrixValues(name, "A", factors.loraA), matrixValues(name, "B", factors.loraB)];
  const [rank, columns] = loraA.shape;
  if (columns !== inFeatures || loraB.shape[0] !== outFeatures || loraB.shape[1] !== rank) {
    throw refuseFactors(name, { loraA, loraB }, `[rank, ${inFeatures}] and [${outFeatures}, rank]`);
  }
  if (!Number.isFinite(factors.scaling)) {
    const message = `Cannot add adapter "${name}" with scaling ${factors.scaling}: expected a finite number`;
    throw new NumericError(message, { field: "scaling", found: factors.scaling });
  }
  return { loraA: factors.diagonal ? scaleRows(loraA, vectorValues(name, "d", factors.diagonal, rank)) : loraA, loraB };
}

/** The error for factors of the wrong shapes. */
export function refuseFactors(
  name: string,
  { loraA, loraB }: Readonly<Record<"loraA" | "loraB", { readonly shape: readonly number[] }>>,
  wanted: string,
): ShapeError {
  const found = `A ${formatShape(loraA.shape)} and B ${formatShape(loraB.shape)}`;
  return new ShapeError(`Cannot add adapter "${name}" with ${found}: expected ${wanted}`, { field: name, found });
}

function scaleRows(matrix: MatrixValues, factors: Float32Array): MatrixValues {
  const columns = matrix.shape[1];
  return floatMatrix(matrix.shape, floatsOf(matrix).map((value, i) => value * factors[Math.floor(i / columns)]!));
}

/**
 * The elements of a vector; dimensions of length 1 around it do not count.
 *
 * @throws {ShapeError} If it has another length.
 */
export function vectorValues(name: string, field: string, values: StoredTensor, length: number): Float32Array {
  const wide = values.shape.filter((size) => size !== 1);
  if (wide.length > 1 || sizeOf(values.shape) !== length) {
    const found = formatShape(values.shape);
    throw new ShapeError(`Cannot add adapter "${name}" with ${field} of shape ${found}: expected [${length}]`, {
      field: name,
      found,
      expected: length,
    });
  }
  return toFloat32(values);
}

/** A vector in a backend, outside of all scopes. */
export function keptVector(backend: Backend, values: Float32Array): Tensor {
  return backend.keep(backend.tensor([values.length], values));
}
