/**
 * Merging adapters into a whole checkpoint, as a stream: memory is a few pieces of a tensor, however large the model.
 *
 * @module
 */

import type { ReportLine } from "../adapter/adapter.ts";
import type { WeightedAdapter } from "../adapter/weighted_adapter.ts";
import type { Backend } from "../backend.ts";
import { IntegrityError, MismatchError } from "../errors.ts";
import { INDEX_FILE, openCheckpoint, SINGLE_FILE } from "../formats/checkpoint.ts";
import { quote } from "../formats/quote.ts";
import { sha256, toHex } from "../formats/sha256.ts";
import type { Folder, ReadOptions, Sink, Workspace } from "../formats/source.ts";
import { settleBaseChanges } from "./base_changes.ts";
import { MODEL_CONFIG, readBaseConfig } from "./base_config.ts";
import type { FilePlan } from "./file_plan.ts";
import { identify } from "./identity.ts";
import { MERGE_DTYPES, type MergeDtype } from "./merge_dtype.ts";
import { type MergeProgress, MergeWriter } from "./merge_writer.ts";
import type { MergePlan } from "./merge_plan.ts";
import { planMerge } from "./plan.ts";
import { planFiles, readCompanions } from "./safetensors_output.ts";
import { openStaging } from "./staging.ts";
import { type MergeOutput, type OutputFile, Transaction } from "./transaction.ts";

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

/** Digests of all files of a merged folder, in the form that `sha256sum --check` reads. */
export const DIGESTS_FILE = "SHA256SUMS";

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
  const { signal, dtype, strict = true, expandGroups = false } = options;
  checkOptions(options);
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
  const tensors = checkpoint.tensors.size;
  if (options.dryRun) return summarise(tensors, plan, [...files, ...sizesOf(companions)], plan.report);
  const backend = options.backend ?? await (await import("../open.ts")).openBackend({ prefer: "wasm" });
  try {
    const inputs = [...checkpoint.files, INDEX_FILE, MODEL_CONFIG];
    const identity = () => identify({ base, files: inputs, adapters, dtype, expandGroups, backend }, options);
    const { output, report } = isWorkspace(sink)
      ? await openStaging(sink, await identity(), options)
      : { output: new Transaction(sink), report: [] };
    await writeAll({ files, plan, companions, output, backend, listed: isWorkspace(sink) }, options);
    return summarise(tensors, plan, output.files, [...report, ...plan.report]);
  } finally {
    if (!options.backend) backend.dispose();
  }
}

function checkOptions({ dtype, jobs = 1 }: MergeOptions): void {
  if (dtype !== undefined && !Object.hasOwn(MERGE_DTYPES, dtype)) {
    throw new TypeError(`Cannot merge with dtype ${quote(String(dtype))}: expected "f32", "bf16" or "f16"`);
  }
  if (Number.isSafeInteger(jobs) && jobs >= 1) return;
  throw new TypeError(`Cannot merge with ${jobs} jobs: expected a natural number`);
}

interface Work {
  readonly files: readonly FilePlan[];
  readonly plan: MergePlan;
  readonly companions: ReadonlyMap<string, Uint8Array>;
  readonly output: MergeOutput;
  readonly backend: Backend;
  /** Whether the digests are written too. */
  readonly listed: boolean;
}

async function writeAll(work: Work, options: MergeOptions): Promise<void> {
  const { files, plan, companions, output, backend, listed } = work;
  try {
    const { jobs = 1, onProgress } = options;
    await new MergeWriter({ files, targets: plan.targets, backend, output, jobs, onProgress }).run(options);
    const others = listed ? await withDigests(output.files, companions) : companions;
    for (const [name, bytes] of others) await output.writeCompanion(name, bytes);
    options.signal?.throwIfAborted();
    await output.commit();
  } catch (error) {
    // What the same merge would meet again is no reason to keep anything.
    await output.abort(error instanceof IntegrityError || options.signal?.aborted === true);
    throw error;
  }
}

/** Puts the digests before `config.json`, which comes last. */
async function withDigests(
  written: readonly OutputFile[],
  companions: ReadonlyMap<string, Uint8Array>,
): Promise<(readonly [string, Uint8Array])[]> {
  const all = [...companions];
  if (written.some(({ sha256 }) => sha256 === null)) return all;
  const lines = written.map(({ name, sha256 }) => `${sha256}  ${name}\n`);
  for (const [name, bytes] of all) lines.push(`${toHex(await sha256(bytes))}  ${name}\n`);
  const digests = [DIGESTS_FILE, new TextEncoder().encode(lines.join(""))] as const;
  return [...all.filter(([name]) => name !== MODEL_CONFIG), digests, ...all.filter(([name]) => name === MODEL_CONFIG)];
}

function sizesOf(companions: ReadonlyMap<string, Uint8Array>): { readonly name: string; readonly bytes: number }[] {
  return Array.from(companions, ([name, { length }]) => ({ name, bytes: length }));
}

function summarise(
  tensors: number,
  { targets }: MergePlan,
  files: readonly { readonly name: string; readonly bytes: number; readonly sha256?: string | null }[],
  report: readonly ReportLine[],
): MergeReport {
  return {
    tensors,
    merged: [...targets.keys()],
    files: files.map(({ name }) => name),
    sizes: Object.fromEntries(files.map(({ name, bytes }) => [name, bytes])),
    digests: Object.fromEntries(files.flatMap(({ name, sha256 }) => sha256 ? [[name, sha256]] : [])),
    bytes: files.reduce((sum, { bytes }) => sum + bytes, 0),
    report,
  };
}

function isWorkspace(sink: Sink): sink is Workspace {
  return "rename" in sink && "remove" in sink && "sha256" in sink && "list" in sink;
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
