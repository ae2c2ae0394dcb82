import type { Dtype, StoredTensor } from "../formats/dtype.ts";
import { sizeOf } from "../shape.ts";
import type { LoraConfig } from "./lora_config.ts";
import type { BaseChange } from "./variant_fields.ts";

/**
 * What a module's factors belong to, and with that their shapes (k… are the lengths of a kernel):
 *
 * ```text
 * linear     A (r, in)        B (out, r)               ΔW (out, in) = s B A
 * embedding  A (r, vocab)     B (dim, r)               ΔE (vocab, dim) = s (B A)ᵀ; inFeatures = vocab, outFeatures = dim
 * conv       A (r, in, k…)    B (out, r / groups, 1…)  ΔW[o, i, k…] = s Σⱼ B[o, j] A[j, i, k…], where groups = 1
 * experts    A (r E, in)      B (out, r E)             ΔWₑ (out, in) = s Σⱼ B[:, j E + e] A[e r + j, :]
 * ```
 */
export type LoraKind = "linear" | "embedding" | "conv" | "experts";

/** One adapted layer. */
export interface LoraModule {
  /**
   * Path in the base model, `model.layers.0.self_attn.q_proj`; with the parameter's name where `parameter` has one,
   * `model.layers.0.mlp.experts.gate_up_proj`.
   */
  readonly name: string;
  /** Kind of layer. */
  readonly kind: LoraKind;
  /** r; the rows of A, divided by the number of experts. */
  readonly rank: number;
  /** The alpha that applies to this module. */
  readonly alpha: number;
  /** s = alpha / rank, or alpha / √rank with rsLoRA; twice that where PEFT adds an update twice. */
  readonly scaling: number;
  /** Second dimension of A. */
  readonly inFeatures: number;
  /** Rows of B. */
  readonly outFeatures: number;
  /** Element type of A in the file; B nearly always has the same. */
  readonly dtype: Dtype;
  /** A. */
  readonly loraA: StoredTensor;
  /** B. */
  readonly loraB: StoredTensor;
  /** b_B (out), `lora_bias`: y += s b_B. */
  readonly loraBias?: StoredTensor;
  /**
   * DoRA's m: linear (out), conv (1, out, 1…), embedding (dim). W' = m / ‖W + ΔW‖ ∘ (W + ΔW), with one norm per output
   * feature (linear: row, conv: filter, embedding: column of the whole table).
   */
  readonly magnitude?: StoredTensor;
  /** KaSA's d (r): ΔW = s B diag(d) A. */
  readonly diagonal?: StoredTensor;
  /** The adapted parameter where it is not `weight`; null if only the base can tell, and `name` is the file's then. */
  readonly parameter?: string | null;
  /** E, the number of experts; their rows in A are expert-major, their columns in B rank-major. */
  readonly experts?: number;
}

/** New rows of an embedding. */
export interface TokenRows {
  /** Row numbers in the table, in the order of `rows`. */
  readonly indices: readonly number[];
  /** The rows (k, dim): they replace those of the table. */
  readonly rows: StoredTensor;
}

/** Something worth knowing that is no error: a known difference, a choice made, a part that does nothing. */
export interface ReportLine {
  /** Module path, or the file that the line is about. */
  readonly module: string;
  /** What was found. */
  readonly what: string;
  /** Why it is so, and what follows from it. */
  readonly why: string;
  /** Size of the difference, where there is one, relative to what was wanted. */
  readonly error?: number;
}

/** What an {@linkcode Adapter} is made of. */
export interface AdapterParts {
  /** Name of the folder it came from. */
  readonly name: string;
  /** Its config. */
  readonly config: LoraConfig;
  /** Its modules by path, in file order. */
  readonly modules: ReadonlyMap<string, LoraModule>;
  /** Tensors by name that only training uses. */
  readonly trainingState: ReadonlyMap<string, StoredTensor>;
  /** Full tensors by name in the base; none if absent. */
  readonly replacements?: ReadonlyMap<string, StoredTensor>;
  /** New rows by path of the embedding; none if absent. */
  readonly tokenRows?: ReadonlyMap<string, TokenRows>;
  /** Tokens that switch the adapter on; those of the config if absent. */
  readonly invocationTokens?: readonly number[] | null;
  /** How training changed the base; what the config says if absent. */
  readonly baseChange?: BaseChange | null;
  /** sha256 of the weight file. */
  readonly sha256: string;
  /** sha256 over weight file and config. */
  readonly id: string;
  /** Bytes of the weight file. */
  readonly bytes: number;
  /** What loading found. */
  readonly report: readonly ReportLine[];
}

/** A LoRA adapter in memory, checked and immutable; it belongs to no base model and no backend. */
export class Adapter {
  /** Name of the folder it came from: an alias, not an identity. */
  readonly name: string;
  /** Its form: PEFT's, whatever dialect it was read from. */
  readonly format: "peft" = "peft";
  /** Its config. */
  readonly config: LoraConfig;
  /** Its modules by path in the base model, in file order. */
  readonly modules: ReadonlyMap<string, LoraModule>;
  /** Tensors by name that change nothing but training; they are saved again. */
  readonly trainingState: ReadonlyMap<string, StoredTensor>;
  /**
   * Full tensors by their name in the base model, which they replace: modules trained in full, trained biases, saved
   * embeddings (`model.norm.weight`, `model.layers.0.self_attn.q_proj.bias`, `model.embed_tokens.weight`).
   */
  readonly replacements: ReadonlyMap<string, StoredTensor>;
  /** New rows of embeddings, by path of the embedding. A tied head follows, unless it has an entry of its own. */
  readonly tokenRows: ReadonlyMap<string, TokenRows>;
  /** aLoRA: the adapter acts from the last occurrence of these tokens in a prompt on; null acts everywhere. */
  readonly invocationTokens: readonly number[] | null;
  /** How training changed the base; null is the base as it was published. */
  readonly baseChange: BaseChange | null;
  /** sha256 of the weight file's bytes, in hexadecimal. */
  readonly sha256: string;
  /** Identity: sha256, in hexadecimal, of the weight file's digest followed by the config with sorted keys. */
  readonly id: string;
  /** Bytes of the weight file. */
  readonly bytes: number;
  /** What loading found that a caller may want to know. */
  readonly report: readonly ReportLine[];

  /** Takes parts that {@linkcode loadAdapter} or {@linkcode createAdapter} have checked. */
  constructor(parts: AdapterParts) {
    this.name = parts.name;
    this.config = parts.config;
    this.modules = parts.modules;
    this.trainingState = parts.trainingState;
    this.replacements = parts.replacements ?? new Map();
    this.tokenRows = parts.tokenRows ?? new Map();
    this.invocationTokens = parts.invocationTokens === undefined
      ? parts.config.invocationTokens
      : parts.invocationTokens;
    this.baseChange = parts.baseChange === undefined ? parts.config.baseChange : parts.baseChange;
    this.sha256 = parts.sha256;
    this.id = parts.id;
    this.bytes = parts.bytes;
    this.report = parts.report;
  }

  /** Trained values: of factors, biases of B, magnitudes, full tensors and token rows. */
  get parameters(): number {
    let sum = 0;
    for (const module of this.modules.values()) sum += countParameters(module);
    for (const { shape } of this.replacements.values()) sum += sizeOf(shape);
    for (const { rows } of this.tokenRows.values()) sum += sizeOf(rows.shape);
    return sum;
  }
}

/** Trained values of one module. */
export function countParameters({ loraA, loraB, loraBias, magnitude, diagonal }: LoraModule): number {
  const parts = [loraA, loraB, loraBias, magnitude, diagonal];
  return parts.reduce((sum, tensor) => sum + (tensor ? sizeOf(tensor.shape) : 0), 0);
}
