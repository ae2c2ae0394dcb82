/**
 * One tensor of two checkpoints: the factors of what tuning changed in it, or the rows that it changed.
 *
 * @module
 */

import type { ReportLine, TokenRows } from "../adapter/adapter.ts";
import { clampFactors } from "../adapter/clamp.ts";
import type { ScaledPair } from "../adapter/dialects/factor_pairs.ts";
import { isEmbedding } from "../adapter/dialects/refusals.ts";
import { readFactors, storeMatrix } from "../adapter/factors.ts";
import { type AdapterLimits, DEFAULT_LIMITS } from "../adapter/limits.ts";
import { dot, type Matrix, rowOf, transpose } from "../adapter/linear_algebra.ts";
import { moduleOf } from "../adapter/paths.ts";
import { RandomStream } from "../adapter/random.ts";
import type { SingularVectors } from "../adapter/svd.ts";
import type { Backend } from "../backend.ts";
import { FormatError, NumericError } from "../errors.ts";
import {
  bitsPerElement,
  type Dtype,
  type FloatDtype,
  isSameTensor,
  type StoredTensor,
  toFloat32,
} from "../formats/dtype.ts";
import { quote } from "../formats/quote.ts";
import type { ReadOptions } from "../formats/source.ts";
import { sizeOf } from "../shape.ts";
import { residual, sketch, type StreamedMatrix, sumOfSquares } from "./randomised_svd.ts";

/** How large factors may be, and where they are computed. */
export interface FactorOptions extends ReadOptions {
  /** Most rank of a module; with `energy` 256 if absent. */
  readonly rank?: number;
  /** Share of Σ σ² that every module keeps, above 0 up to 1. */
  readonly energy?: number;
  /** Clips U S and V at ± this quantile of their values, above 0.5 up to 1: kohya's `clamp_quantile`. */
  readonly svdClamp?: number;
  /** Element type of the factors, rounded once; F32 if absent. */
  readonly dtype?: FloatDtype;
  /** Decides the random vectors of the decomposition; 0 if absent. */
  readonly seed?: number;
  /** Caps of the result. */
  readonly limits?: AdapterLimits;
  /** Where the products are computed. */
  readonly backend: Backend;
}

/** A tensor before and after tuning. */
export interface TensorPair {
  /** Its name. */
  readonly name: string;
  /** As the base has it. */
  readonly before: StoredTensor;
  /** As the tuned checkpoint has it. */
  readonly after: StoredTensor;
  /** Whether the model is a GPT-2, whose layers store their weights (in, out). */
  readonly isGpt2: boolean;
}

/** What a tensor that differs becomes: factors, rows of a table, or neither. */
export interface Extracted {
  /** Its name. */
  readonly name: string;
  /** What is said of it; absent where it has no place in factors. */
  readonly line?: ReportLine;
  /** Its factors. */
  readonly pair?: ScaledPair;
  /** Its rows, where these are fewer values than factors. */
  readonly rows?: TokenRows;
  /** ‖W' − W‖ / ‖W‖ of what has no place in factors. */
  readonly change?: number;
}

/** Elements of a piece: 16 MB as floats. */
const PIECE = 2 ** 22;
/** Of what differences are computed. */
const FLOATS: readonly Dtype[] = ["F32", "F16", "BF16", "F64"];
/** GPT-2's layers that store their weight (in, out). */
const TRANSPOSED = /\.(?:c_attn|c_proj|c_fc)$/;

/**
 * Finds what tuning changed in a tensor.
 *
 * @param pair The tensor, before and after.
 * @param options Rank or energy, and what else there is.
 * @returns What it becomes; null if nothing differs.
 * @throws {NumericError} If the difference is not finite.
 * @throws {FormatError} If it is of integers that differ.
 */
export async function extractTensor(pair: TensorPair, options: FactorOptions): Promise<Extracted | null> {
  const { name, before, after, isGpt2 } = pair;
  if (isSameTensor(before, after)) return null;
  for (const { dtype } of [before, after]) if (!FLOATS.includes(dtype)) throw refuseDtype(name, dtype);
  const module = moduleOf(name);
  const hasPlace = name.endsWith(".weight") && before.shape.length >= 2 && before.shape.every((length) => length > 0);
  const matrix = differenceOf(pair);
  if (!hasPlace) return leftOut(pair, matrix);
  const { rank = options.limits?.rank ?? DEFAULT_LIMITS.rank, energy: share, seed = 0 } = options;
  const random = new RandomStream(seed, module);
  const { vectors, energy } = await sketch(matrix, { ...options, rank, random });
  if (!Number.isFinite(energy)) throw notFinite(name);
  if (energy === 0) return null;
  const kept = keptRank(vectors, { rank, wanted: share === undefined ? Infinity : share * energy });
  const rows = isEmbedding(module) ? changedRows(pair, matrix, kept * (1 + matrix.rows / matrix.columns)) : null;
  if (rows) {
    const line = { module, what: `${rows.indices.length} of ${matrix.rows} rows differ`, why: ROWS_WHY, error: 0 };
    return { name, rows, line };
  }
  const whole = { left: cut(vectors.left, kept), right: cut(vectors.right, kept) };
  const factors = options.svdClamp === undefined ? whole : clampFactors(whole, options.svdClamp);
  const stored = storePair(module, factors, pair, options);
  const error = Math.sqrt(await residual(matrix, storedFactors(stored, isTurned(module, isGpt2)), options) / energy);
  const what = `rank ${kept} of ${Math.min(matrix.rows, matrix.columns)}`;
  const why = "the largest singular values of what tuning changed";
  return { name, pair: stored, line: { module, what, why, error } };
}

const ROWS_WHY = "they are fewer values than factors, and stored as trainable_token_indices";

function leftOut({ name, before }: TensorPair, matrix: StreamedMatrix): Extracted | null {
  const difference = sumOfSquares(matrix.pieces());
  if (!Number.isFinite(difference)) throw notFinite(name);
  if (difference === 0) return null;
  return { name, change: Math.sqrt(difference / sumOfSquares(rowPieces(before, matrix.columns))) };
}

function refuseDtype(tensor: string, found: Dtype): FormatError {
  const message = `Cannot extract tensor ${quote(tensor)}, which differs, of dtype ${found}`;
  const details = { tensor, field: "dtype", found, expected: FLOATS };
  return new FormatError(`${message}: expected ${FLOATS.join(", ")} in both checkpoints`, details);
}

function notFinite(tensor: string): NumericError {
  const message = `Cannot extract tensor ${quote(tensor)} with a difference that is not finite`;
  return new NumericError(`${message}: expected finite weights in both checkpoints`, { tensor });
}

/** The rows of a table that differ, as they are after tuning; null if they are more than `most`. */
function changedRows({ after }: TensorPair, { columns, pieces }: StreamedMatrix, most: number): TokenRows | null {
  const indices: number[] = [];
  let row = 0;
  for (const piece of pieces()) {
    for (let from = 0; from < piece.length; from += columns, row++) {
      if (piece.subarray(from, from + columns).some((value) => value !== 0)) indices.push(row);
    }
    if (indices.length > most) return null;
  }
  const width = columns * bitsPerElement(after.dtype) / 8;
  const bytes = new Uint8Array(indices.length * width);
  indices.forEach((index, i) => bytes.set(after.bytes.subarray(index * width, (index + 1) * width), i * width));
  return { indices, rows: { dtype: after.dtype, shape: [indices.length, columns], bytes } };
}

/** The factors as they are stored, rounded. */
function storedFactors({ a, b }: ScaledPair, turned: boolean): { readonly left: Matrix; readonly right: Matrix } {
  const factors = readFactors({ loraA: a, loraB: b });
  return turned ? { left: factors.a, right: factors.b } : { left: factors.b, right: factors.a };
}

/** W' − W as rows of the first dimension, decoded piece by piece. */
function differenceOf({ before, after }: TensorPair): StreamedMatrix {
  const [rows = 1, ...others] = before.shape;
  const columns = sizeOf(others);
  return {
    rows,
    columns,
    *pieces() {
      const olds = rowPieces(before, columns);
      for (const piece of rowPieces(after, columns)) {
        const old: Float32Array = olds.next().value!;
        yield piece.map((value, i) => value - old[i]!);
      }
    },
  };
}

function* rowPieces(tensor: StoredTensor, columns: number): Generator<Float32Array, undefined> {
  const width = columns * bitsPerElement(tensor.dtype) / 8;
  const step = width * Math.max(1, Math.floor(PIECE / columns));
  for (let from = 0; from < tensor.bytes.length; from += step) {
    const bytes = tensor.bytes.subarray(from, from + step);
    yield toFloat32({ ...tensor, shape: [bytes.length / width, columns], bytes });
  }
}

function keptRank({ sigma }: SingularVectors, { rank, wanted }: { readonly rank: number; readonly wanted: number }) {
  let captured = 0;
  let kept = 0;
  while (kept < Math.min(rank, sigma.length) && sigma[kept]! > 0 && captured < wanted) captured += sigma[kept++]! ** 2;
  return Math.max(1, kept);
}

/** A copy of the first rows. */
function cut({ columns, values }: Matrix, rows: number): Matrix {
  return { rows, columns, values: values.slice(0, rows * columns) };
}

/** B and A in PEFT's shapes, balanced: √σ in each. */
function storePair(
  module: string,
  { left, right }: { readonly left: Matrix; readonly right: Matrix },
  { before, isGpt2 }: TensorPair,
  options: FactorOptions,
): ScaledPair {
  for (let i = 0; i < left.rows; i++) balance(rowOf(left, i), rowOf(right, i));
  const turned = isTurned(module, isGpt2);
  const [a, b] = turned ? [left, right] : [right, left];
  const rank = a.rows;
  const [, ...inner] = before.shape;
  const shapeA = turned ? [rank, a.columns] : [rank, ...inner];
  const store = { dtype: options.dtype ?? "F32", module } as const;
  const name = `${module}.weight`;
  return {
    name: module,
    alpha: rank,
    isEmbedding: isEmbedding(module),
    a: { name, ...storeMatrix(a, shapeA, store) },
    b: { name, ...storeMatrix(transpose(b), [b.columns, rank, ...inner.slice(1).map(() => 1)], store) },
  };
}

function balance(left: Float64Array, right: Float64Array): void {
  const root = Math.sqrt(Math.sqrt(dot(left, left)));
  if (root === 0) return;
  for (let i = 0; i < left.length; i++) left[i]! /= root;
  for (let i = 0; i < right.length; i++) right[i]! *= root;
}

/**
 * The head's factors where one ΔW serves the embedding and the head: A and B turned.
 *
 * @param pair The factors of the embedding.
 * @param head Path of the head.
 * @returns Those of the head.
 */
export function headPair({ a, b, alpha }: ScaledPair, head: string): ScaledPair {
  const { a: first, b: second } = readFactors({ loraA: a, loraB: b });
  const store = { dtype: a.dtype as FloatDtype, module: head };
  const name = `${head}.weight`;
  return {
    name: head,
    alpha,
    isEmbedding: false,
    a: { name, ...storeMatrix(second, [second.rows, second.columns], store) },
    b: { name, ...storeMatrix(transpose(first), [first.columns, first.rows], store) },
  };
}

/** Whether the rows of the weight are inputs: tables, and layers stored (in, out). */
function isTurned(module: string, isGpt2: boolean): boolean {
  return isEmbedding(module) || (isGpt2 && TRANSPOSED.test(module));
}
