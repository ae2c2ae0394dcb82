/**
 * What weights are made of, and how they are stored. Types and contracts only, as in `backend.ts`.
 *
 * @module
 */

/**
 * How a packed weight stores its elements.
 *
 * - `f32`, `bf16`, `f16`: floats, each rounded once.
 * - `f8`: e4m3 with an f32 scale per output.
 * - `int8`: integers with an f16 scale per 32 inputs, as ggml's q8_0.
 * - `int4`: integers −8 to 7 with an f16 scale per 32 inputs; made of q4_1 blocks, 0 to 15 with scale and minimum.
 * - `nf4`: QLoRA's quantiles in blocks of 64 inputs, whose largest magnitudes are stored in 8 bits each (Dettmers et al.
 *   2023: double quantization).
 *
 * In WebAssembly `linear` rounds the activations to integers where the weight is int8 or int4: see
 * {@linkcode WeightOptions.exact}.
 */
export type WeightDtype = "f32" | "bf16" | "f16" | "f8" | "int8" | "int4" | "nf4";

/** A matrix (out, in) that a backend packed once into the layout its kernels want. */
export interface Weight extends Disposable {
  /** `[out, in]`. */
  readonly shape: readonly [number, number];
  /** How the elements are stored. */
  readonly dtype: WeightDtype;
  /** Memory held, in bytes, with what `merge` keeps for `unmerge`. */
  readonly bytes: number;
  /** Whether adapters are merged into it. */
  readonly merged: boolean;
  /** Frees the memory; a second call does nothing. */
  dispose(): void;
}

/** Element types of stored matrices. */
export type ElementDtype = "f32" | "f16" | "bf16";

/** ggml's blocks of 32 along a row. A weight keeps their bits: q8_0 in an `int8` weight, q4_0 and q4_1 in an `int4` one. */
export type BlockDtype = "q8_0" | "q4_0" | "q4_1";

/** A row-major matrix in a caller's memory, as files store it. */
export interface MatrixValues {
  /** `[rows, columns]`. */
  readonly shape: readonly [number, number];
  /** Element or block type of `bytes`. */
  readonly dtype: ElementDtype | BlockDtype;
  /** Little-endian elements or blocks, row by row; no alignment is required. */
  readonly bytes: Uint8Array;
}

/** Options of `Backend.mergeRows`. */
export interface MergeRowsOptions {
  /** Type of the result's elements. */
  readonly dtype: ElementDtype;
  /** Memory to use for the result, at least as large; new memory if absent. */
  readonly into?: Uint8Array;
}

/** Options of `Backend.weight`. */
export interface WeightOptions {
  /** Storage of the packed elements; the default is `"f32"`. */
  readonly dtype?: WeightDtype;
  /** The values are stored (in, out), as GPT-2's Conv1D does; the weight's shape is still `[out, in]`. */
  readonly transposed?: boolean;
  /**
   * Keeps activations f32 against an int8 or int4 weight, for parity with its dequantized values: about a tenth of the
   * speed of the integer product for a single row. That one rounds x, per row and 32 inputs: to 127 steps up to the
   * largest magnitude against int4, where outliers get as many steps between two of these; to 63 steps with 63 between
   * two against int8. So it does whatever the number of rows, with the same bits in every engine. Of magnitudes above 2^59
   * results may not be finite, below 2^-100 they may be 0.
   * WebGPU never rounds x: there it changes nothing.
   */
  readonly exact?: boolean;
}

/** What `Backend.merge` lost. */
export interface MergeLoss {
  /**
   * ‖lost‖ / ‖Σ s B A‖ (Frobenius norms): what quantizing the sum again lost, by the size of what was added; 1 is as much
   * as that itself. 0 for f32 and bf16, whose elements are rounded once and not compared.
   */
  readonly error: number;
}
