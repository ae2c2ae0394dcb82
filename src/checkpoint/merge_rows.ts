import { type FloatDtype, isFiniteTensor } from "../adapter/factor_values.ts";
import type { Backend, MatrixValues, Weight } from "../backend.ts";
import { NumericError } from "../errors.ts";
import { encodeBf16 } from "../formats/bfloat16.ts";
import { type StoredTensor, toFloat32 } from "../formats/dtype.ts";
import { encodeF16 } from "../formats/float16.ts";
import { quote } from "../formats/quote.ts";
import type { MergeBranch } from "./plan.ts";

/** Adds Σ ΔW to the rows of one stored weight, piece by piece. */
export class RowMerger implements Disposable {
  readonly #backend: Backend;
  readonly #branches: readonly PackedBranch[];

  /** Packs the factors of the weight's branches. */
  constructor(backend: Backend, branches: readonly MergeBranch[]) {
    this.#backend = backend;
    const packed: PackedBranch[] = [];
    this.#branches = packed;
    try {
      for (const branch of branches) packed.push(pack(backend, branch));
    } catch (error) {
      this[Symbol.dispose]();
      throw error;
    }
  }

  /**
   * Computes rows of W + Σ s B A, summed in 64 and rounded to 32 bits.
   *
   * @param start Index of the first row.
   * @param rows The stored rows.
   * @returns The merged rows.
   */
  async merge(start: number, rows: StoredTensor): Promise<Float32Array> {
    const sums = new Float64Array(toFloat32(rows));
    const count = rows.shape[0]!;
    for (const { left, right, scaling } of this.#branches) {
      const delta = await this.#delta(takeRows(left, start, count), right, scaling);
      for (let i = 0; i < sums.length; i++) sums[i]! += delta[i]!;
    }
    return new Float32Array(sums);
  }

  async #delta(left: MatrixValues, right: Weight, scaling: number): Promise<Float32Array> {
    const backend = this.#backend;
    const b = backend.weight(left);
    try {
      const delta = backend.deltaWeight({ a: right, b, scaling });
      try {
        return await backend.read(delta);
      } finally {
        delta.dispose();
      }
    } finally {
      b.dispose();
    }
  }

  /** Frees the packed factors. */
  [Symbol.dispose](): void {
    for (const { right } of this.#branches) right.dispose();
  }
}

/** The stored delta is left · right: B A, or (B A)ᵀ = Aᵀ Bᵀ where the weight is stored (in, out). */
interface PackedBranch {
  readonly left: MatrixValues;
  readonly right: Weight;
  readonly scaling: number;
}

function pack(backend: Backend, { module, scaling, transposed }: MergeBranch): PackedBranch {
  const [a, b] = [matrix(module.loraA), matrix(module.loraB)];
  if (!transposed) return { left: b, right: backend.weight(a), scaling };
  return { left: transpose(module.loraA), right: backend.weight(b, { transposed: true }), scaling };
}

function matrix({ dtype, shape, bytes }: StoredTensor): MatrixValues {
  return { dtype: dtype.toLowerCase() as MatrixValues["dtype"], shape: [shape[0]!, shape[1]!], bytes };
}

function transpose(tensor: StoredTensor): MatrixValues {
  const [rows, columns] = tensor.shape as readonly [number, number];
  const values = toFloat32(tensor);
  const turned = new Float32Array(values.length);
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++) turned[j * rows + i] = values[i * columns + j]!;
  }
  return { dtype: "f32", shape: [columns, rows], bytes: new Uint8Array(turned.buffer) };
}

function takeRows({ dtype, shape: [, columns], bytes }: MatrixValues, start: number, count: number): MatrixValues {
  const row = columns * (dtype === "f32" ? 4 : 2);
  return { dtype, shape: [count, columns], bytes: bytes.subarray(start * row, (start + count) * row) };
}

/**
 * Rounds values to a stored dtype, once, to nearest even.
 *
 * @param values The values.
 * @param dtype The dtype.
 * @param tensor Name of the tensor, for the error.
 * @returns The stored bytes.
 * @throws {NumericError} If a value is not finite, or not in that dtype.
 */
export function encodeFinite(values: Float32Array, dtype: FloatDtype, tensor: string): Uint8Array {
  const bytes = encodeFloats(values, dtype);
  if (isFiniteTensor({ dtype, shape: [values.length], bytes })) return bytes;
  const message = `Cannot write tensor ${quote(tensor)} as ${dtype}: it would hold NaN or infinity`;
  throw new NumericError(message, { tensor, found: values.find((value) => !Number.isFinite(value)) });
}

/** Rounds values to a stored dtype, whatever they are. */
export function encodeFloats(values: Float32Array, dtype: FloatDtype): Uint8Array {
  if (dtype === "F16") return encodeF16(values);
  if (dtype === "BF16") return encodeBf16(values);
  return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
}
