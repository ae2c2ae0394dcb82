/**
 * Merging adapters into a whole checkpoint, as a stream: memory is a few pieces of a tensor, however large the model.
 *
 * @module
 */

import type { ReportLine } from "../adapter/adapter.ts";
import type { WeightedAdapter } from "../adapter/weighted_adapter.ts";
import type { Backend } from "../backend.ts";
import { MismatchError } from "../errors.ts";
import { openCheckpoint } from "../formats/checkpoint.ts";
import { quote } from "../formats/quote.ts";
import type { Folder, ReadOptions, Sink } from "../formats/source.ts";
import { readBaseConfig } from "./base_config.ts";
import { MERGE_DTYPES, type MergeDtype, type MergeProgress, MergeWriter } from "./merge_writer.ts";
import { planMerge } from "./plan.ts";
import { Transaction } from "./transaction.ts";

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
}

/** What a merge wrote. */
export interface MergeReport {
  /** Number of tensors. */
  readonly tensors: number;
  /** Names of the tensors that the adapters changed. */
  readonly merged: readonly string[];
  /** Names of the files, in the order in which they appeared. */
  readonly files: readonly string[];
  /** Bytes of all files. */
  readonly bytes: number;
  /** What was chosen on the way. */
  readonly report: readonly ReportLine[];
}

/**
 * Writes W' = W + Σ weight · s · B A for every adapted weight of a checkpoint, and everything else bit for bit: one file
 * or the same shards and index, with config and tokenizer.
 *
 * Every adapter is checked against the base before the first file is created; sums are rounded once, to the output's
 * dtype. No file has its final name before all are written.
 *
 * @param base Folder of the checkpoint.
 * @param adapters The adapters with their weights.
 * @param sink Where the merged model goes.
 * @param options Backend, dtype, progress and a signal.
 * @returns What was written.
 * @throws {MismatchError} If an adapter does not fit the checkpoint, or the sink is the folder of the base.
 * @throws {FormatError} If the checkpoint is malformed.
 * @throws {NumericError} If a merged or converted value is not finite.
 * @throws {IntegrityError} If the checkpoint changes meanwhile.
 *
 * @example
 * ```ts
 * import { loadAdapter, memorySink, mergeCheckpoint } from "@lowrank/lora";
 * import { folder } from "@lowrank/lora/fs";
 * import assert from "node:assert/strict";
 *
 * const adapter = await loadAdapter(folder("examples/models/tiny/tweets"));
 * const sink = memorySink(); // or a folder
 * const { merged } = await mergeCheckpoint(folder("examples/models/tiny/base"), [{ adapter }], sink);
 * assert.equal(merged.length, adapter.modules.size);
 * ```
 */
export async function mergeCheckpoint(
  base: Folder,
  adapters: readonly WeightedAdapter[],
  sink: Sink,
  options: MergeOptions = {},
): Promise<MergeReport> {
  const { signal, dtype, strict = true } = options;
  if (dtype !== undefined && !Object.hasOwn(MERGE_DTYPES, dtype)) {
    throw new TypeError(`Cannot merge with dtype ${quote(String(dtype))}: expected "f32", "bf16" or "f16"`);
  }
  signal?.throwIfAborted();
  await refuseSame(base, sink);
  const checkpoint = await openCheckpoint(base, options);
  const plan = planMerge(checkpoint, adapters, await readBaseConfig(base, options), { strict });
  const backend = options.backend ?? await (await import("../open.ts")).openBackend({ prefer: "wasm" });
  const output = new Transaction(sink);
  try {
    await new MergeWriter({ base, checkpoint, targets: plan.targets, backend, output, options }).run();
    signal?.throwIfAborted();
    await output.commit();
  } catch (error) {
    await output.abort();
    throw error;
  } finally {
    if (!options.backend) backend.dispose();
  }
  return {
    tensors: checkpoint.tensors.size,
    merged: [...plan.targets.keys()],
    files: output.files,
    bytes: output.bytes,
    report: plan.report,
  };
}

/** A merge into its own base would leave no base. */
async function refuseSame(base: Folder, sink: Sink): Promise<void> {
  const place = await base.location?.();
  if (Object.is(base, sink) || (place !== undefined && place === await sink.location?.())) {
    const message = `Cannot merge ${quote(base.name)} into itself: expected another folder, the base would be lost`;
    throw new MismatchError(message, { code: "same-folder", file: base.name, field: "sink" });
  }
}
