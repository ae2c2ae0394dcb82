/**
 * Merging adapters into a whole checkpoint, as a stream: memory is a few pieces of a tensor, however large the model.
 *
 * @module
 */

import { checkWeighted, type WeightedAdapter } from "../adapter/weighted_adapter.ts";
import type { Backend } from "../backend.ts";
import { MismatchError } from "../errors.ts";
import { checkReadable, checkWritable } from "../formats/check_place.ts";
import { INDEX_FILE, openCheckpoint, SINGLE_FILE } from "../formats/checkpoint.ts";
import { quote } from "../formats/quote.ts";
import type { Folder, ReadOptions, Sink } from "../formats/source.ts";
import { settleBaseChanges } from "./base_changes.ts";
import { MODEL_CONFIG, readBaseConfig } from "./base_config.ts";
import { identify } from "./identity.ts";
import { checkOptions, type MergeOptions, type MergeReport } from "./merge_options.ts";
import { planMerge } from "./plan.ts";
import { planFiles, readCompanions } from "./safetensors_output.ts";
import { isWorkspace, writeMerge } from "./write_merge.ts";

export type { MergeOptions, MergeReport };

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
 * @throws {IntegrityError} If the checkpoint or the output folder changes meanwhile, a folder has the name of a file, or
 * another process is merging into the output folder.
 * @throws {LimitError} If `layer_replication` asks for more than 4096 layers.
 *
 * @example
 * ```ts
 * import { loadAdapter, memorySink } from "@lowrank/lora";
 * import { mergeCheckpoint } from "@lowrank/lora/checkpoint";
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
  const { signal, dtype, strict = true, expandGroups = false } = options;
  checkOptions(options);
  checkReadable("merge into a checkpoint", base);
  checkWritable("write a merged checkpoint", sink);
  checkWeighted("merge", adapters);
  signal?.throwIfAborted();
  await refuseSame(base, sink);
  const checkpoint = await openCheckpoint(base, options);
  const settled = await settleBaseChanges(checkpoint, adapters, options);
  const planned = planMerge(checkpoint, settled.adapters, await readBaseConfig(base, options), {
    strict,
    expandGroups,
  });
  const plan = { ...planned, report: [...settled.report, ...planned.report] };
  const files = planFiles(base, checkpoint, dtype, plan);
  if (checkpoint.index) await refuseShadow(sink, options);
  const companions = await readCompanions(base, checkpoint, { dtype, files, plan }, options);
  const inputs = [...checkpoint.files, INDEX_FILE, MODEL_CONFIG];
  const identity = (backend: Backend) => identify({ base, files: inputs, adapters, options, backend });
  return await writeMerge({ tensors: checkpoint.tensors.size, plan, files, companions, sink, identity }, options);
}

/** A merge into its own base would leave no base. */
async function refuseSame(base: Folder, sink: Sink): Promise<void> {
  const place = await base.location?.();
  if (Object.is(base, sink) || (place !== undefined && place === await sink.location?.())) {
    const message = `Cannot merge ${quote(base.name)} into itself: expected another folder, the base would be lost`;
    throw new MismatchError(message, { code: "same-folder", file: base.name, field: "sink" });
  }
}

/** Every loader takes the single file where both are there. */
async function refuseShadow(sink: Sink, options: ReadOptions): Promise<void> {
  if (!isWorkspace(sink) || !await sink.has(SINGLE_FILE, options)) return;
  const message = `Cannot merge shards into ${quote(sink.name)}, which holds ${SINGLE_FILE}: loaders would take that ` +
    "file for the model; remove it or write elsewhere";
  throw new MismatchError(message, { code: "shadowed", file: SINGLE_FILE, found: SINGLE_FILE, expected: INDEX_FILE });
}
