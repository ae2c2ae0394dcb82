/**
 * LyCORIS (LoHa, LoKr, Tucker cores, full differences) as plain LoRA. Nearly all of it is a product of low rank:
 *
 * ```text
 * LoCon, core  A'[a, n, kl] = Σ_b mid[a, b, kl] down[b, n]                         rank r
 * LoHa         (P₁ Q₁) ∘ (P₂ Q₂) = B A,  B[o, ij] = P₁[o, i] P₂[o, j],  A[ij, n] = Q₁[i, n] Q₂[j, n]    rank r²
 * LoKr         (P₁ Q₁) ⊗ (P₂ Q₂) = (P₁ ⊗ P₂) (Q₁ ⊗ Q₂)                            rank r₁ r₂
 * difference   D = I D or D I                                                      rank min(out, in)
 * ```
 *
 * What has a higher rank than is wanted becomes its best approximation, with the error told.
 *
 * @module
 */

import { MismatchError } from "../../errors.ts";
import { quote } from "../../formats/quote.ts";
import { type StoredTensor, toFloat32 } from "../../formats/dtype.ts";
import { formatShape, sizeOf } from "../../shape.ts";
import type { ReportLine } from "../adapter.ts";
import { storeMatrix } from "../factors.ts";
import type { NamedTensor } from "../full_tensors.ts";
import { type Matrix, transpose, zeros } from "../linear_algebra.ts";
import type { Factors } from "../svd.ts";
import { truncateProduct } from "../truncate_product.ts";

/** The tensors of a module by the ends of their names: `"hada_w1_a"`. */
export type LycorisTensors = ReadonlyMap<string, NamedTensor>;

/** Ends of names that {@linkcode convertLycoris} takes, beside those of LoRA. */
export const LYCORIS_PART: RegExp = /^(?:lora_mid\.weight|diff|hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2))$/;

/** A converted module. */
export interface ConvertedLycoris {
  /** A (r, in[, k, k]). */
  readonly a: StoredTensor;
  /** B (out, r[, 1, 1]). */
  readonly b: StoredTensor;
  /** Divides the alpha of the file: s = alpha / dimension; null where s = 1. */
  readonly dimension: number | null;
  /** What was converted. */
  readonly kind: "LoHa" | "LoKr" | "a Tucker core" | "a full difference";
  /** ‖wanted − got‖ / ‖wanted‖ of what was cut off; 0 if nothing was. */
  readonly error: number;
}

/** P Q with what Q has beyond its second dimension: a kernel. */
interface Pair {
  /** P (out, r). */
  readonly p: Matrix;
  /** Q (r, in · k). */
  readonly q: Matrix;
  /** k…, none for linear layers. */
  readonly kernel: readonly number[];
}

/**
 * Converts a module.
 *
 * @param tensors Its tensors.
 * @param options Most rank of the result, and names for messages.
 * @returns Factors in F32.
 * @throws {MismatchError} If a tensor is missing, or shapes disagree.
 * @throws {NumericError} If a product leaves the range of 32-bit floats.
 */
export function convertLycoris(
  tensors: LycorisTensors,
  options: { readonly rank: number; readonly module: string; readonly file: string },
): ConvertedLycoris {
  const reader = new LycorisReader(tensors, options);
  const { pair, dimension, kind } = reader.read();
  const factors: Factors = { a: pair.q, b: transpose(pair.p) };
  const cut = factors.a.rows > options.rank ? truncateProduct(factors, options.rank) : { factors, error: 0 };
  const { a, b } = cut.factors;
  const { kernel } = pair;
  const store = { dtype: "F32", module: options.module } as const;
  return {
    a: storeMatrix(a, [a.rows, a.columns / sizeOf(kernel), ...kernel], store),
    b: storeMatrix(transpose(b), [b.columns, a.rows, ...kernel.map(() => 1)], store),
    dimension,
    kind,
    error: cut.error,
  };
}

/**
 * Says what became of the modules, a line for each kind.
 *
 * @param converted The modules.
 * @param file Name of the file.
 * @returns The lines.
 */
export function reportLycoris(converted: readonly ConvertedLycoris[], file: string): readonly ReportLine[] {
  return Array.from(Map.groupBy(converted, ({ kind }) => kind), ([kind, modules]) => {
    const error = Math.max(...modules.map((module) => module.error));
    const rank = Math.max(...modules.map(({ a }) => a.shape[0]!));
    const what = `${modules.length} modules with ${kind} became LoRA, of rank ${rank} at most`;
    const why = error === 0 ? "the product is the same, rounded once to F32" : "what is above that rank is cut off";
    return { module: file, what, why, error };
  });
}

class LycorisReader {
  readonly #tensors: LycorisTensors;
  readonly #at: { readonly module: string; readonly file: string };

  constructor(tensors: LycorisTensors, at: { readonly module: string; readonly file: string }) {
    this.#tensors = tensors;
    this.#at = at;
  }

  read(): { readonly pair: Pair } & Pick<ConvertedLycoris, "dimension" | "kind"> {
    if (this.#has("lora_mid.weight")) return this.#core();
    if (this.#has("hada_w1_a")) return this.#loha();
    if (this.#has("lokr_w1") || this.#has("lokr_w1_a")) return this.#lokr();
    if (this.#has("diff")) return { pair: this.#whole("diff"), dimension: null, kind: "a full difference" };
    const [first] = this.#tensors.values();
    throw this.#refuse(first!, "the other tensors of its module");
  }

  #core() {
    const down = this.#get("lora_down.weight");
    const up = this.#matrix("lora_up.weight");
    const q = this.#tucker("lora_mid.weight", flat(down, this.#matrix("lora_down.weight")));
    if (up.columns !== q.q.rows) throw this.#refuse(this.#get("lora_up.weight"), `rank ${q.q.rows}`);
    return { pair: { p: up, ...q }, dimension: q.q.rows, kind: "a Tucker core" as const };
  }

  #loha() {
    const [one, two] = [this.#hada(1), this.#hada(2)];
    const w2a = this.#get("hada_w2_a");
    if (one.p.rows !== two.p.rows || one.q.columns !== two.q.columns) throw this.#refuse(w2a, "the shapes of hada_w1");
    const [r1, r2] = [one.q.rows, two.q.rows];
    const p = zeros(one.p.rows, r1 * r2);
    const q = zeros(r1 * r2, one.q.columns);
    for (let o = 0; o < p.rows; o++) {
      for (let i = 0; i < r1; i++) {
        for (let j = 0; j < r2; j++) {
          p.values[o * r1 * r2 + i * r2 + j] = one.p.values[o * r1 + i]! * two.p.values[o * r2 + j]!;
        }
      }
    }
    for (let i = 0; i < r1; i++) {
      for (let j = 0; j < r2; j++) {
        for (let n = 0; n < q.columns; n++) {
          q.values[(i * r2 + j) * q.columns + n] = one.q.values[i * q.columns + n]! * two.q.values[j * q.columns + n]!;
        }
      }
    }
    return { pair: { p, q, kernel: one.kernel }, dimension: r1, kind: "LoHa" as const };
  }

  #hada(index: 1 | 2): Pair {
    const [a, b] = [this.#matrix(`hada_w${index}_a`), this.#matrix(`hada_w${index}_b`)];
    const core = `hada_t${index}`;
    const pair = this.#has(core) ? { p: transpose(a), ...this.#tucker(core, b) } : { p: a, q: b, kernel: [] };
    if (pair.p.columns === pair.q.rows) return pair;
    throw this.#refuse(this.#get(`hada_w${index}_b`), `rank ${pair.p.columns}`);
  }

  #lokr() {
    const [one, two] = [this.#kron(1), this.#kron(2)];
    const dimension = this.#has("lokr_w1_b")
      ? this.#get("lokr_w1_b").shape[0]!
      : this.#has("lokr_w2_b")
      ? this.#get("lokr_w2_b").shape[0]!
      : null;
    const pair = { p: kronecker(one.p, two.p), q: kronecker(one.q, two.q), kernel: two.kernel };
    return { pair, dimension, kind: "LoKr" as const };
  }

  #kron(index: 1 | 2): Pair {
    const whole = `lokr_w${index}`;
    if (this.#has(whole)) return this.#whole(whole);
    const [a, b] = [this.#matrix(`${whole}_a`), this.#matrix(`${whole}_b`)];
    const isCore = index === 2 && this.#has("lokr_t2");
    const kernel = this.#get(`${whole}_b`).shape.slice(2);
    const pair = isCore ? { p: transpose(a), ...this.#tucker("lokr_t2", b) } : { p: a, q: b, kernel };
    if (pair.p.columns === pair.q.rows) return pair;
    throw this.#refuse(this.#get(`${whole}_b`), `rank ${pair.p.columns}`);
  }

  /** D = I D, or D I where it has fewer columns than rows. */
  #whole(part: string): Pair {
    const tensor = this.#get(part);
    const matrix = this.#matrix(part);
    const kernel = tensor.shape.slice(2);
    if (kernel.length > 0 || matrix.rows <= matrix.columns) return { p: identity(matrix.rows), q: matrix, kernel };
    return { p: matrix, q: identity(matrix.columns), kernel };
  }

  /** Q[a, n, kl] = Σ_b core[a, b, kl] X[b, n]. */
  #tucker(part: string, x: Matrix): { readonly q: Matrix; readonly kernel: readonly number[] } {
    const core = this.#get(part);
    const [rank = 0, inner = 0, ...kernel] = core.shape;
    if (kernel.length === 0 || inner !== x.rows) throw this.#refuse(core, `a core (r, ${x.rows}, k, k)`);
    const places = sizeOf(kernel);
    const values = toFloat32(core);
    const q = zeros(rank, x.columns * places);
    for (let a = 0; a < rank; a++) {
      for (let b = 0; b < inner; b++) {
        for (let n = 0; n < x.columns; n++) {
          const factor = x.values[b * x.columns + n]!;
          for (let k = 0; k < places; k++) {
            q.values[(a * x.columns + n) * places + k]! += values[(a * inner + b) * places + k]! * factor;
          }
        }
      }
    }
    return { q, kernel };
  }

  #has(part: string): boolean {
    return this.#tensors.has(part);
  }

  #get(part: string): NamedTensor {
    const tensor = this.#tensors.get(part);
    if (tensor) return tensor;
    const { module, file } = this.#at;
    const [first] = this.#tensors.values();
    const message = `Cannot read tensor ${quote(first!.name)} of ${quote(file)} without its partner`;
    const missing = `${part} of ${quote(module)}`;
    throw new MismatchError(`${message}: expected the ${missing}`, { file, tensor: first!.name, missing: [missing] });
  }

  #matrix(part: string): Matrix {
    const tensor = this.#get(part);
    const [rows = 0, ...others] = tensor.shape;
    const isFloat = ["F32", "F16", "BF16"].includes(tensor.dtype);
    if (!isFloat || others.length === 0 || sizeOf(tensor.shape) === 0) {
      throw this.#refuse(tensor, "a matrix of F32, F16 or BF16, or a kernel of them");
    }
    return { rows, columns: sizeOf(others), values: Float64Array.from(toFloat32(tensor)) };
  }

  #refuse({ name, shape, dtype }: NamedTensor, expected: string): MismatchError {
    const { file } = this.#at;
    const message = `Cannot read tensor ${quote(name)} of ${quote(file)}, ${dtype} of shape ${formatShape(shape)}`;
    return new MismatchError(`${message}: expected ${expected}`, { file, tensor: name, found: shape, expected });
  }
}

function flat({ shape }: StoredTensor, matrix: Matrix): Matrix {
  return shape.slice(2).every((length) => length === 1) ? matrix : { ...matrix, columns: NaN };
}

function identity(size: number): Matrix {
  const matrix = zeros(size, size);
  for (let i = 0; i < size; i++) matrix.values[i * size + i] = 1;
  return matrix;
}

/** X ⊗ Y; a kernel of Y stays innermost. */
function kronecker(x: Matrix, y: Matrix): Matrix {
  const product = zeros(x.rows * y.rows, x.columns * y.columns);
  for (let a = 0; a < x.rows; a++) {
    for (let c = 0; c < y.rows; c++) {
      for (let b = 0; b < x.columns; b++) {
        const factor = x.values[a * x.columns + b]!;
        const to = (a * y.rows + c) * product.columns + b * y.columns;
        for (let d = 0; d < y.columns; d++) product.values[to + d] = factor * y.values[c * y.columns + d]!;
      }
    }
  }
  return product;
}
