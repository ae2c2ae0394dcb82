/**
 * The forms of packed weights: the types of the contract, and one more for blocks with a minimum, which files bring.
 *
 * @module
 */

import type { MatrixValues, WeightDtype } from "../backend.ts";
import { DTYPE_CODES } from "../wasm/dtypes.ts";

/** How panels store elements (`rust-kernels/src/blocks.rs`); q4_1 is an `int4` weight. */
export type Form = WeightDtype | "q4_1";

/** Bytes of a panel before its blocks, inputs of a block, and bytes of one: 8 columns each. */
const LAYOUTS: Readonly<Record<Form, readonly [head: number, inputs: number, bytes: number]>> = {
  f32: [0, 1, 32],
  bf16: [0, 1, 16],
  f16: [0, 1, 16],
  f8: [32, 1, 8],
  int8: [32, 32, 288],
  int4: [32, 32, 144],
  q4_1: [32, 32, 160],
  nf4: [64, 64, 264],
};

/** The form in which a weight of type `dtype` keeps values. */
export function formOf({ dtype: given }: MatrixValues, dtype: WeightDtype): Form {
  return given === "q4_1" ? given : dtype;
}

/** What kernels call it, in Rust and in WGSL. */
export function codeOf(form: Form): number {
  return DTYPE_CODES[form];
}

/** Whether it is one of the two that JavaScript packs, and that merging rounds element by element. */
export function isPlain(form: Form): form is "f32" | "bf16" {
  return form === "f32" || form === "bf16";
}

/** Bytes of one panel: 8 columns of an (n, k) matrix. */
export function panelBytes(k: number, form: Form): number {
  const [head, inputs, bytes] = LAYOUTS[form];
  return head + Math.ceil(k / inputs) * bytes;
}
