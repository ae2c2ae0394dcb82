import type { LoraModule, ReportLine, TokenRows } from "../adapter/adapter.ts";
import type { CheckpointTensor } from "../formats/checkpoint.ts";
import type { StoredTensor } from "../formats/dtype.ts";

/** ΔW is added, and with a magnitude the sum gets its new norms: W' = m / ‖W + ΔW‖ ∘ (W + ΔW). */
export interface MergeBranch {
  /** Which step it is. */
  readonly kind: "branch";
  /** The module with its factors. */
  readonly module: LoraModule;
  /** s times the adapter's weight. */
  readonly scaling: number;
  /** Whether the weight is stored (in, out), so that Δᵀ is added. */
  readonly transposed: boolean;
}

/** factor · values is added to a bias. */
export interface MergeVector {
  /** Which step it is. */
  readonly kind: "vector";
  /** The values (out). */
  readonly values: StoredTensor;
  /** Their factor. */
  readonly factor: number;
}

/** What happens to a tensor: first its rows are replaced, then all else in this order. */
export type MergeStep = MergeBranch | MergeVector;

/** A tensor of the output that is more than a copy of the base's tensor of that name. */
export interface MergeTarget {
  /** The tensor of the base that it is made of; null if nothing of the base is in it. */
  readonly source: CheckpointTensor | null;
  /** What replaces that tensor, or begins a new one. */
  readonly values: StoredTensor | null;
  /** The file of the base whose counterpart it is written to. */
  readonly file: string;
  /** Its element type before the merge's own. */
  readonly dtype: CheckpointTensor["dtype"];
  /** Its shape. */
  readonly shape: readonly number[];
  /** Elements per row, in the view of rows that the steps have. */
  readonly columns: number;
  /** The groups of a convolution that is written without groups; 1 for all else. */
  readonly groups: number;
  /** Rows that are replaced. */
  readonly rows: readonly TokenRows[];
  /** What is added. */
  readonly steps: readonly MergeStep[];
}

/** What changes in `config.json`. */
export interface ConfigEdits {
  /** False where input embedding and head are no longer one table. */
  readonly tied?: false;
  /** Rows of the embedding, where it was resized. */
  readonly vocabSize?: number;
  /** The base's layer that each layer is, where they were replicated. */
  readonly layers?: readonly number[];
}

/** Everything a merge changes. */
export interface MergePlan {
  /** The tensors that are no plain copies, by name in the output. */
  readonly targets: ReadonlyMap<string, MergeTarget>;
  /** Tensors of the base that the output has not. */
  readonly omitted: ReadonlySet<string>;
  /** Changes of the config. */
  readonly config: ConfigEdits;
  /** What was chosen on the way. */
  readonly report: readonly ReportLine[];
}

/** Choices of a merge. */
export interface PlanOptions {
  /** Whether modules that a config targets and its adapter lacks are refused. */
  readonly strict: boolean;
  /** Whether grouped convolutions are written without groups; false if absent. */
  readonly expandGroups?: boolean;
}
