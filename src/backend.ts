/**
 * The waist of the house: what a compute backend is. Types and contracts only; the WebAssembly and
 * the WebGPU backend implement them, layers and models use nothing else.
 *
 * The mathematics of LoRA (Hu et al. 2021), once:
 *
 * ```text
 * x (n, in)   A (r, in)   B (out, r)   W (out, in)   s = alpha / r   (rsLoRA: alpha / sqrt r)
 * forward    xa = x Aᵀ          y  = x Wᵀ + bias + s xa Bᵀ        rows may each name their own adapters
 * backward   dxa = s dy B       dB += s dyᵀ xa    dA += dxaᵀ x    dx += dy W + dxa A
 * merge      W' = W + s B A     unmerge restores W bit for bit
 * ```
 *
 * Operations queue: they may start later, always in call order; `read()` is the await that sees their results.
 * Every operation returns a new tensor unless it says that it adds to one. Shapes are checked once, before dispatch,
 * and a refusal (`ShapeError`) changes nothing.
 *
 * @module
 */

/** A dense row-major array of 32-bit floats that a backend holds. */
export interface Tensor extends Disposable {
  /** Lengths of the dimensions, outermost first. */
  readonly shape: readonly number[];
  /** Product of the shape. */
  readonly size: number;
  /** Frees the memory; a second call does nothing. */
  dispose(): void;
}

/** How a packed weight stores its elements. */
export type WeightDtype = "f32" | "bf16";

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

/** A row-major matrix in a caller's memory, as files store it. */
export interface MatrixValues {
  /** `[rows, columns]`. */
  readonly shape: readonly [number, number];
  /** Element type of `bytes`. */
  readonly dtype: "f32" | "f16" | "bf16";
  /** Little-endian elements, row by row; no alignment is required. */
  readonly bytes: Uint8Array;
}

/** Options of {@linkcode Backend.weight}. */
export interface WeightOptions {
  /** Storage of the packed elements; the default is `"f32"`. */
  readonly dtype?: WeightDtype;
  /** The values are stored (in, out), as GPT-2's Conv1D does; the weight's shape is still `[out, in]`. */
  readonly transposed?: boolean;
}

/** Options of {@linkcode Backend.mergeRows}. */
export interface MergeRowsOptions {
  /** Type of the result's elements. */
  readonly dtype: MatrixValues["dtype"];
  /** Memory to use for the result, at least as large; new memory if absent. */
  readonly into?: Uint8Array;
}

/** One low-rank branch, adds `scaling · (x Aᵀ) Bᵀ`; adapters stay float, so both factors are `"f32"` weights. */
export interface LoraBranch {
  /** A (rank, in). */
  readonly a: Weight;
  /** B (out, rank). */
  readonly b: Weight;
  /** s, with every per-request weight already multiplied in. */
  readonly scaling: number;
}

/** Branches that apply to the rows `start <= row < end` of x, summed in order. */
export interface RowBranches<Branch = LoraBranch> {
  /** First row. */
  readonly start: number;
  /** One past the last row. */
  readonly end: number;
  /** The branches; none is the base alone. */
  readonly branches: readonly Branch[];
}

/** A branch with the gradients that {@linkcode Backend.linearBackward} adds to. */
export interface LoraGradientBranch extends LoraBranch {
  /** dA (rank, in) += dxaᵀ x. */
  readonly da?: Tensor;
  /** dB (out, rank) += s dyᵀ xa. */
  readonly db?: Tensor;
}

/** Options of {@linkcode Backend.linear}. */
export interface LinearOptions {
  /** Bias (out). */
  readonly bias?: Tensor;
  /** Ascending row ranges without overlap, with their branches; rows in none of them get the base alone. */
  readonly adapters?: readonly RowBranches[];
}

/** Options of {@linkcode Backend.linearBackward}; what is absent is not computed. */
export interface LinearBackwardOptions {
  /** The branches of the forward, with their gradients. */
  readonly adapters?: readonly RowBranches<LoraGradientBranch>[];
  /** dx (n, in) += dy W + dxa A. */
  readonly dx?: Tensor;
  /** dW (out, in) += dyᵀ x. */
  readonly dw?: Tensor;
  /** dbias (out) += column sums of dy. */
  readonly dbias?: Tensor;
}

/** Options of {@linkcode Backend.attention}. */
export interface AttentionOptions {
  /** Query heads. */
  readonly heads: number;
  /** Key and value heads; `heads` is a multiple of it (grouped-query attention). */
  readonly kvHeads: number;
  /** Sequences in the batch. */
  readonly batch: number;
  /** Positions already in the cache before the first query of each sequence. */
  readonly past: number;
  /** A query sees at most this many positions, itself included; absent means all before it. */
  readonly window?: number;
}

/** What a backend is and runs on. */
export interface BackendInfo {
  /** `"wasm"`: relaxed or plain SIMD; `"webgpu"`: the GPU's architecture. */
  readonly variant: string;
  /** Threads that compute. */
  readonly threads: number;
  /** Why this backend was chosen. */
  readonly reason: string;
}

/** A device that holds tensors and runs the operations on them. Its caller owns and disposes it. */
export interface Backend extends Disposable {
  /** Which backend this is. */
  readonly name: "wasm" | "webgpu";
  /** What it runs on. */
  readonly info: BackendInfo;
  /** Bytes of tensors and weights now held. */
  readonly bytes: number;

  /** Makes a tensor; without `values` it is filled with zeros. */
  tensor(shape: readonly number[], values?: Float32Array): Tensor;
  /** Overwrites all elements of a tensor. */
  write(tensor: Tensor, values: Float32Array): void;
  /** Copies the elements out, after all operations before it. */
  read(tensor: Tensor): Promise<Float32Array>;
  /** A view of the same elements in another shape; it lives as long as the first one, which alone frees them. */
  reshape(tensor: Tensor, shape: readonly number[]): Tensor;
  /** Packs a matrix (out, in). Values are rounded once, to nearest even, where `dtype` is narrower than they are. */
  weight(values: MatrixValues, options?: WeightOptions): Weight;
  /** The elements of a weight, row-major (out, in), widened to f32. */
  readWeight(weight: Weight): Promise<Float32Array>;
  /**
   * Runs `body` and frees every tensor made inside, but the ones it returns (a tensor, or an array of them),
   * also when it throws. `body` is synchronous; scopes nest.
   */
  scope<T extends Tensor | readonly Tensor[] | void>(body: () => T): T;

  /** y (n, out) = x (n, in) Wᵀ + bias + Σ s (x Aᵀ) Bᵀ per row range. */
  linear(x: Tensor, weight: Weight, options?: LinearOptions): Tensor;
  /** Adds the gradients of {@linkcode Backend.linear} for dy (n, out) and its x (n, in). Weights must be unmerged. */
  linearBackward(dy: Tensor, x: Tensor, weight: Weight, options: LinearBackwardOptions): void;
  /** ΔW (out, in) = s B A, as a tensor. */
  deltaWeight(branch: LoraBranch): Tensor;
  /**
   * W += Σ s B A, rounded once to the weight's dtype. Keeps the bits it overwrites (as many bytes as the weight) for
   * {@linkcode Backend.unmerge}. Rejects with `NumericError`, weight untouched, if a result is not finite.
   */
  merge(weight: Weight, branches: readonly LoraBranch[]): Promise<void>;
  /**
   * W + Σ s B A of rows (n, k) as files store them, each element rounded once to `dtype`. Rejects with `NumericError` if
   * a result is not finite. Absent where the caller adds {@linkcode Backend.deltaWeight} to W as fast.
   */
  mergeRows?(
    rows: MatrixValues,
    branches: readonly LoraBranch[],
    options: MergeRowsOptions,
  ): Promise<Uint8Array>;
  /** Puts back the bits that {@linkcode Backend.merge} overwrote. */
  unmerge(weight: Weight): void;

  /** y (n, dim): row `ids[i]` of the table (vocabulary, dim). */
  embedding(ids: Uint32Array, table: Weight): Tensor;
  /** y (m, dim): the rows of x (n, dim) with these indices. */
  takeRows(x: Tensor, rows: Uint32Array): Tensor;
  /** y = x / sqrt(mean(x²) + eps) ∘ gain over rows of gain's length (dim); x is (…, dim) or any (n, multiple of dim). */
  rmsNorm(x: Tensor, gain: Tensor, eps: number): Tensor;
  /**
   * Rotary embedding, halves form (Hugging Face): per row t and head of width 2h with halves (u, v),
   * (u cos_t − v sin_t, v cos_t + u sin_t). x (n, heads · 2h); cos and sin (n, h).
   */
  rope(x: Tensor, cos: Tensor, sin: Tensor): Tensor;
  /** Copies x (batch · length, dim) into cache (batch, capacity, dim) at positions past … past + length. */
  append(cache: Tensor, x: Tensor, past: number): void;
  /**
   * Causal softmax(q kᵀ / sqrt d) v. q (batch · length, heads · d); keys and values (batch, capacity, kvHeads · d) with
   * past + length positions filled; query i of a sequence sees positions 0 … past + i. Returns the shape of q.
   */
  attention(q: Tensor, keys: Tensor, values: Tensor, options: AttentionOptions): Tensor;
  /** silu(gate) ∘ up, with silu(x) = x / (1 + e⁻ˣ). */
  siluMul(gate: Tensor, up: Tensor): Tensor;
  /** x + y, elementwise. */
  add(x: Tensor, y: Tensor): Tensor;
  /** loss (n): log Σ e^logits − logits[target] per row of logits (n, classes). */
  crossEntropy(logits: Tensor, targets: Uint32Array): Tensor;

  /** Frees all memory; every handle of this backend is then disposed. A second call does nothing. */
  dispose(): void;
}
