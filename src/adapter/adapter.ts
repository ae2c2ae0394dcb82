import type { Dtype, StoredTensor } from "../formats/dtype.ts";
import type { LoraConfig } from "./lora_config.ts";

/** One adapted linear layer: ΔW (out, in) = s B A. */
export interface LoraModule {
  /** Path in the base model: `model.layers.0.self_attn.q_proj`. */
  readonly name: string;
  /** Kind of layer. */
  readonly kind: "linear";
  /** r, the rows of A. */
  readonly rank: number;
  /** The alpha that applies to this module. */
  readonly alpha: number;
  /** s = alpha / rank, or alpha / √rank with rsLoRA. */
  readonly scaling: number;
  /** Columns of A. */
  readonly inFeatures: number;
  /** Rows of B. */
  readonly outFeatures: number;
  /** Element type of A in the file; B nearly always has the same. */
  readonly dtype: Dtype;
  /** A (rank, in). */
  readonly loraA: StoredTensor;
  /** B (out, rank). */
  readonly loraB: StoredTensor;
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
  /** Dialect it was read from. */
  readonly format: "peft" = "peft";
  /** Its config. */
  readonly config: LoraConfig;
  /** Its modules by path in the base model, in file order. */
  readonly modules: ReadonlyMap<string, LoraModule>;
  /** Tensors by name that change nothing but training; they are saved again. */
  readonly trainingState: ReadonlyMap<string, StoredTensor>;
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
    this.sha256 = parts.sha256;
    this.id = parts.id;
    this.bytes = parts.bytes;
    this.report = parts.report;
  }

  /** Trained values: Σ rank (in + out). */
  get parameters(): number {
    let sum = 0;
    for (const { rank, inFeatures, outFeatures } of this.modules.values()) sum += rank * (inFeatures + outFeatures);
    return sum;
  }
}
