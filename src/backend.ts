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

import type { BackendInfo } from "./backend_info.ts";
import type { Cache, CacheDtype, CacheShape } from "./cache.ts";
import type { MatrixValues, MergeLoss, MergeRowsOptions, Weight, WeightOptions } from "./weight.ts";

export type { BackendInfo, GpuInfo } from "./backend_info.ts";
export type { Cache, CacheDtype, CacheShape } from "./cache.ts";
export type {
  BlockDtype,
  ElementDtype,
  MatrixValues,
  MergeLoss,
  MergeRowsOptions,
  Weight,
  WeightDtype,
  WeightOptions,
} from "./weight.ts";

/** A dense row-major array of 32-bit floats that a backend holds. */
export interface Tensor extends Disposable {
  /** Lengths of the dimensions, outermost first. */
  readonly shape: readonly number[];
  /** Product of the shape. */
  readonly size: number;
  /** Frees the memory; a second call does nothing. */
  dispose(): void;
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
  /** A query sees no position after its own; the default is true. Without it there is no window. */
  readonly causal?: boolean;
}

/** What {@linkcode Backend.affineRows} does to the rows `start <= row < end`; what is absent changes nothing. */
export interface RowAffine {
  /** First row. */
  readonly start: number;
  /** One past the last row. */
  readonly end: number;
  /** Factor of all elements. */
  readonly factor?: number;
  /** Factor per column (dim). */
  readonly scale?: Tensor;
  /** Summand per column (dim). */
  readonly shift?: Tensor;
}

/** Options of {@linkcode Backend.columnSums}. */
export interface ColumnSumOptions {
  /** Multiplied with x, element by element (rows, dim). */
  readonly y?: Tensor;
  /** Factor of the sums; 1 when absent. */
  readonly factor?: number;
}

/** Rows that {@linkcode Backend.gatherSum} sums: row i of y has the terms `offsets[i] <= j < offsets[i + 1]`. */
export interface GatherLists {
  /** Ascending, from 0 to the number of terms; one more than y has rows. */
  readonly offsets: Uint32Array;
  /** The row of x of each term. */
  readonly rows: Uint32Array;
  /** Its weight; absent, all are 1. */
  readonly weights?: Float32Array;
}

/** Options of {@linkcode Backend.sample}: candidates are what top-k leaves, of that top-p, of that min-p. */
export interface SampleOptions {
  /** Divides the logits; above 0. */
  readonly temperature: number;
  /** The `topK` greatest logits; absent means all. */
  readonly topK?: number;
  /** The fewest of the greatest whose probabilities sum to `topP`; absent means all. */
  readonly topP?: number;
  /** Those with at least `minP` times the probability of the greatest; absent means all. */
  readonly minP?: number;
  /** A random word per row: the draw takes the first candidate at which the probabilities sum to above word / 2³². */
  readonly random: Uint32Array;
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
  /**
   * Packs a matrix (out, in). Values are rounded once, to nearest even, where `dtype` is narrower than they are. Other
   * types than f32 and bf16 refuse (`NumericError`) what is not finite, or above 32,768 in magnitude (f16: 65,504).
   */
  weight(values: MatrixValues, options?: WeightOptions): Weight;
  /** The elements of a weight, row-major (out, in), widened to f32. */
  readWeight(weight: Weight): Promise<Float32Array>;
  /**
   * Runs `body` and frees every tensor made inside, but the ones it returns (a tensor, or an array of them),
   * also when it throws. `body` is synchronous; scopes nest.
   */
  scope<T extends Tensor | readonly Tensor[] | void>(body: () => T): T;
  /** Takes a tensor out of the scope it was made in: it lives until it is disposed. Returns it. */
  keep(tensor: Tensor): Tensor;

  /**
   * y (n, out) = x (n, in) Wᵀ + bias + Σ s (x Aᵀ) Bᵀ per row range. In WebAssembly a row has the same bits alone, in any
   * batch and on any number of threads.
   */
  linear(x: Tensor, weight: Weight, options?: LinearOptions): Tensor;
  /** Adds the gradients of {@linkcode Backend.linear} for dy (n, out) and its x (n, in). Weights must be unmerged. */
  linearBackward(dy: Tensor, x: Tensor, weight: Weight, options: LinearBackwardOptions): void;
  /** ΔW (out, in) = s B A, as a tensor. */
  deltaWeight(branch: LoraBranch): Tensor;
  /**
   * W += Σ s B A, rounded once to the weight's dtype. Keeps the bits it overwrites (as many bytes as the weight) for
   * {@linkcode Backend.unmerge}. Rejects with `NumericError`, weight untouched, if a result is not finite.
   *
   * A quantized weight is dequantized, added to and quantized again: its steps may be coarser than what is added, so
   * look at the report, or leave adapters unmerged.
   */
  merge(weight: Weight, branches: readonly LoraBranch[]): Promise<MergeLoss>;
  /**
   * W + Σ s B A of rows (n, k) of floats as files store them, each element rounded once to `dtype`. Rejects with
   * `NumericError` if a result is not finite. Absent where adding {@linkcode Backend.deltaWeight} to W is as fast.
   */
  mergeRows?(rows: MatrixValues, branches: readonly LoraBranch[], options: MergeRowsOptions): Promise<Uint8Array>;
  /**
   * Overwrites a weight, rounded once to its dtype, and keeps the bits it had for {@linkcode Backend.unmerge}: a merge
   * whose sum the caller computed. Throws `NumericError`, weight untouched, if a value is not finite.
   */
  replace(weight: Weight, values: MatrixValues): void;
  /** Puts back the bits that {@linkcode Backend.merge} or {@linkcode Backend.replace} overwrote. */
  unmerge(weight: Weight): void;
  /** 1 / ‖W + s B A‖ per row of W (out), or with `columns` per column (in); 0 where the norm is 0. */
  inverseNorms(weight: Weight, branch: LoraBranch, options?: { readonly columns?: boolean }): Tensor;

  /** y (n, dim) = factor · scale ∘ x + shift in the rows of each range, ascending without overlap; x elsewhere. */
  affineRows(x: Tensor, ranges: readonly RowAffine[]): Tensor;
  /** sums (dim) += factor · Σ over the rows of x ∘ y. x and y (rows, dim). */
  columnSums(sums: Tensor, x: Tensor, options?: ColumnSumOptions): void;
  /** y (m, dim): row i is the sum of its terms weight · x[row]; a row without terms is 0. */
  gatherSum(x: Tensor, lists: GatherLists): Tensor;
  /** y (batch, columns, rows) = x (batch, rows, columns) with its matrices turned. */
  transpose(x: Tensor): Tensor;

  /** y (n, dim): row `ids[i]` of the table (vocabulary, dim). */
  embedding(ids: Uint32Array, table: Weight): Tensor;
  /** y (m, dim): the rows of x (n, dim) with these indices. */
  takeRows(x: Tensor, rows: Uint32Array): Tensor;
  /** y = x / sqrt(mean(x²) + eps) ∘ gain over rows of gain's length (dim); x is (…, dim) or any (n, multiple of dim). */
  rmsNorm(x: Tensor, gain: Tensor, eps: number): Tensor;
  /** y = (x − mean) / sqrt(variance + eps) ∘ gain + bias per row of x (…, dim). */
  layerNorm(x: Tensor, gain: Tensor, bias: Tensor, eps: number): Tensor;
  /**
   * Rotary embedding, halves form (Hugging Face): per row t and head of width 2h with halves (u, v),
   * (u cos_t − v sin_t, v cos_t + u sin_t). x (n, heads · 2h); cos and sin (n, h).
   */
  rope(x: Tensor, cos: Tensor, sin: Tensor): Tensor;
  /**
   * Makes a cache of keys or values without positions in it, which lives until it is disposed.
   *
   * @throws {TypeError} If the dtype is none of a cache's.
   */
  cache(shape: CacheShape, dtype: CacheDtype): Cache;
  /**
   * Copies x (batch · length, dim) into a tensor (batch, capacity, dim) at positions past … past + length, or into a
   * cache (batch, capacity, heads, d), rounded to its dtype: dim is heads · d. All positions of another cache that
   * differs in its capacity alone are copied bit for bit.
   */
  append(cache: Tensor | Cache, x: Tensor | Cache, past: number): void;
  /**
   * softmax(q kᵀ / sqrt d) v. q (batch · length, heads · d); keys and values (batch, capacity, kvHeads · d), or two
   * caches of one dtype, with past + length positions filled; query i of a sequence sees positions 0 … past + i, or all
   * of them. What it does not see changes nothing, whatever is there. Returns the shape of q.
   */
  attention(q: Tensor, keys: Tensor | Cache, values: Tensor | Cache, options: AttentionOptions): Tensor;
  /** silu(gate) ∘ up, with silu(x) = x / (1 + e⁻ˣ). */
  siluMul(gate: Tensor, up: Tensor): Tensor;
  /** x / 2 · (1 + erf(x / sqrt 2)), or with `"tanh"` x / 2 · (1 + tanh(sqrt(2 / π) (x + 0.044715 x³))). */
  gelu(x: Tensor, approximation?: "tanh"): Tensor;
  /** tanh x, elementwise. */
  tanh(x: Tensor): Tensor;
  /** x + y, elementwise. */
  add(x: Tensor, y: Tensor): Tensor;
  /** loss (n): log Σ e^logits − logits[target] per row of logits (n, classes). */
  crossEntropy(logits: Tensor, targets: Uint32Array): Tensor;
  /**
   * ids (n): the index of the greatest of each row of logits (n, classes), the first among equals. −1 where a logit is
   * NaN or the greatest is infinite. Rows have at least 1 and at most 2²⁴ classes: a float holds the index exactly.
   */
  argmax(logits: Tensor): Tensor;
  /**
   * ids (n): an index per row, drawn with probability e^(logit / temperature) / Σ over the candidates. Among equal logits
   * the first ones are candidates; −1 as in {@linkcode Backend.argmax}. The same words give the same ids; backends
   * differ where rounding decides.
   */
  sample(logits: Tensor, options: SampleOptions): Tensor;

  /** Frees all memory; every handle of this backend is then disposed. A second call does nothing. */
  dispose(): void;
}
