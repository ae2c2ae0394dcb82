import type { LoraModule } from "../adapter/adapter.ts";
import { transposeStored } from "../adapter/dialects/matrix_bytes.ts";
import { expertFactors } from "../adapter/expert_forms.ts";
import type { MatrixValues } from "../backend.ts";
import { fromFloat32, type StoredTensor, toFloat32 } from "../formats/dtype.ts";
import { sizeOf } from "../shape.ts";
import type { MergeBranch } from "./merge_plan.ts";

/** A part of ΔW in the view of rows that its tensor has: left · right, from row `start` to row `end`. */
export interface DeltaFactors {
  /** (end − start, rank). */
  readonly left: MatrixValues;
  /** (rank, columns), or (columns, rank) if it is stored transposed. */
  readonly right: MatrixValues;
  /** Whether `right` is stored transposed. */
  readonly isRightTransposed: boolean;
  /** First row. */
  readonly start: number;
  /** One past the last row. */
  readonly end: number;
}

/** DoRA's m in the view of rows: one value per row, or one per column. */
export interface Magnitudes {
  /** Whether there is one per column, with its norm over all rows. */
  readonly perColumn: boolean;
  /** The values. */
  readonly values: Float32Array;
}

/**
 * Lays the factors of a module out as products of rows: B A, or (B A)ᵀ = Aᵀ Bᵀ where the tensor is stored (in, out), as
 * embeddings always are; a convolution is the matrix (out, in k…), fused experts lie below each other.
 *
 * @param branch The module, and how its tensor is stored.
 * @returns The products.
 */
export function layOutFactors({ module, transposed }: MergeBranch): readonly DeltaFactors[] {
  if (module.kind === "experts") return layOutExperts(module, transposed);
  const a = withDiagonal(module);
  if (transposed || module.kind === "embedding") {
    const left = transpose(a);
    return [{ left, right: matrix(module.loraB), isRightTransposed: true, start: 0, end: left.shape[0] }];
  }
  const left = module.kind === "conv" ? spreadGroups(module) : matrix(module.loraB);
  return [{ left, right: matrix(a), isRightTransposed: false, start: 0, end: left.shape[0] }];
}

/**
 * Gives DoRA's m in the view of rows.
 *
 * @param branch The module, and how its tensor is stored.
 * @returns It; undefined without one.
 */
export function magnitudesOf({ module, transposed }: MergeBranch): Magnitudes | undefined {
  const { kind, magnitude } = module;
  return magnitude && { perColumn: transposed || kind === "embedding", values: toFloat32(magnitude) };
}

/** diag(d) A, where there is a d. */
function withDiagonal({ loraA, diagonal }: LoraModule): StoredTensor {
  if (!diagonal) return loraA;
  const d = toFloat32(diagonal);
  const values = toFloat32(loraA).slice();
  const columns = values.length / d.length;
  for (let i = 0; i < values.length; i++) values[i]! *= d[Math.floor(i / columns)]!;
  return fromFloat32(values, loraA.shape);
}

/** B (out, r / groups) with the columns of each group at its place among all r. */
function spreadGroups({ loraB, rank }: LoraModule): MatrixValues {
  const [rows, columns] = loraB.shape as readonly [number, number];
  if (columns === rank) return matrix(loraB);
  const groups = rank / columns;
  const values = toFloat32(loraB);
  const spread = new Float32Array(rows * rank);
  for (let row = 0; row < rows; row++) {
    const group = Math.floor(row / (rows / groups));
    spread.set(values.subarray(row * columns, (row + 1) * columns), row * rank + group * columns);
  }
  return matrix(fromFloat32(spread, [rows, rank]));
}

function layOutExperts(module: LoraModule, transposed: boolean): DeltaFactors[] {
  const height = transposed ? module.inFeatures : module.outFeatures;
  return Array.from({ length: module.experts! }, (_, e) => {
    const { a, b } = expertFactors(module, e);
    const rows = { start: e * height, end: (e + 1) * height };
    if (transposed) return { left: transpose(a), right: matrix(b), isRightTransposed: true, ...rows };
    return { left: matrix(b), right: matrix(a), isRightTransposed: false, ...rows };
  });
}

/** A tensor as the matrix of its first dimension and all others. */
function matrix({ dtype, shape, bytes }: StoredTensor): MatrixValues {
  return { dtype: dtype.toLowerCase() as MatrixValues["dtype"], shape: [shape[0]!, sizeOf(shape.slice(1))], bytes };
}

function transpose(tensor: StoredTensor): MatrixValues {
  return matrix(transposeStored(fromFloat32(toFloat32(tensor), tensor.shape)));
}
