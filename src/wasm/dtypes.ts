/**
 * Element types as the kernels name them (`rust-kernels/src/lib.rs`).
 *
 * @module
 */

import type { MatrixValues, WeightDtype } from "../backend.ts";

/** Codes of element types in kernel calls; blocks that come from a file may have a form of their own. */
export const DTYPE_CODES: Readonly<Record<WeightDtype | MatrixValues["dtype"], number>> = {
  f32: 0,
  bf16: 1,
  f16: 2,
  int8: 3,
  q8_0: 3,
  int4: 4,
  q4_0: 4,
  q4_1: 5,
  nf4: 6,
  f8: 7,
};

/** Weights that are multiplied as integers, by rounded activations. */
export const INTEGERS: readonly number[] = [DTYPE_CODES.int8, DTYPE_CODES.int4, DTYPE_CODES.q4_1];

/** Added to the code of a weight of integers: activations stay f32. */
export const EXACT = 16;

/** Added to the code of a cache, whose heads lie behind each other. */
export const BY_HEAD = 32;

/** What the WebAssembly backend stores. */
export const WEIGHT_DTYPES: readonly WeightDtype[] = ["f32", "bf16", "f16", "f8", "int8", "int4", "nf4"];

/** Whether values are blocks of ggml. */
export function isBlocks(dtype: MatrixValues["dtype"]): boolean {
  return dtype.startsWith("q");
}
