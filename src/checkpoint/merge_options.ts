import type { ReportLine } from "../adapter/adapter.ts";
import type { Backend } from "../backend.ts";
import { checkOptionTypes } from "../formats/check_options.ts";
import type { ReadOptions } from "../formats/source.ts";
import { MERGE_DTYPES, type MergeDtype } from "./merge_dtype.ts";
import type { MergeProgress } from "./weight_file_writer.ts";

/** Options of {@linkcode mergeCheckpoint}. */
export interface MergeOptions extends ReadOptions {
  /** Where the deltas are computed; a WebAssembly backend of its own if absent. */
  readonly backend?: Backend;
  /** Element type of all floating-point tensors; as stored if absent. */
  readonly dtype?: MergeDtype;
  /** Is told after every piece. */
  readonly onProgress?: (progress: MergeProgress) => void;
  /** False allows adapters that lack modules which their config targets; true if absent. */
  readonly strict?: boolean;
  /** Writes convolutions with groups, into which no update can be merged, without groups; false if absent. */
  readonly expandGroups?: boolean;
  /** Files written at a time; 1 if absent. Each takes about 64 MB. */
  readonly jobs?: number;
  /** True checks everything and tells what would be written, and writes nothing. */
  readonly dryRun?: boolean;
}

/** What a merge wrote. */
export interface MergeReport {
  /** Number of tensors. */
  readonly tensors: number;
  /** Names of the tensors that the adapters changed. */
  readonly merged: readonly string[];
  /** Names of the files, in the order in which they appeared. */
  readonly files: readonly string[];
  /** Length of every file. */
  readonly sizes: Readonly<Record<string, number>>;
  /** sha256 of every file, in hexadecimal, where the sink tells. */
  readonly digests: Readonly<Record<string, string>>;
  /** Bytes of all files. */
  readonly bytes: number;
  /** What was chosen on the way. */
  readonly report: readonly ReportLine[];
}

/** Refuses wrong types. */
export function checkOptions(options: MergeOptions): void {
  checkOptionTypes("merge", options, {
    backend: "object",
    dtype: Object.keys(MERGE_DTYPES),
    onProgress: "function",
    strict: "boolean",
    expandGroups: "boolean",
    dryRun: "boolean",
  });
  const { jobs = 1 } = options;
  if (Number.isSafeInteger(jobs) && jobs >= 1) return;
  throw new TypeError(`Cannot merge with ${jobs} jobs: expected a natural number`);
}
