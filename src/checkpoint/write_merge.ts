import type { ReportLine } from "../adapter/adapter.ts";
import type { Backend } from "../backend.ts";
import { IntegrityError } from "../errors.ts";
import { sha256, toHex } from "../formats/sha256.ts";
import type { Sink, Workspace } from "../formats/source.ts";
import { MODEL_CONFIG } from "./base_config.ts";
import type { FilePlan } from "./file_plan.ts";
import type { MergeIdentity } from "./journal.ts";
import type { MergeOptions, MergeReport } from "./merge_options.ts";
import type { MergePlan } from "./merge_plan.ts";
import { WeightFileWriter } from "./weight_file_writer.ts";
import { openStaging } from "./staging.ts";
import { type MergeOutput, type OutputFile, Transaction } from "./transaction.ts";

/** Digests of all files of a merged folder, in the form that `sha256sum --check` reads. */
const DIGESTS_FILE = "SHA256SUMS";

/** A merge that has been planned. */
export interface PlannedMerge {
  /** Number of tensors. */
  readonly tensors: number;
  /** What becomes of them. */
  readonly plan: Pick<MergePlan, "targets" | "report">;
  /** The weight files. */
  readonly files: readonly FilePlan[];
  /** The files beside them. */
  readonly companions: ReadonlyMap<string, Uint8Array>;
  /** Where all go. */
  readonly sink: Sink;
  /** What their bytes depend on. */
  identity(backend: Backend): Promise<MergeIdentity>;
}

/** Writes a planned merge, or only tells what would be written. */
export async function writeMerge(merge: PlannedMerge, options: MergeOptions): Promise<MergeReport> {
  const { plan, files, companions, sink } = merge;
  if (options.dryRun) return summarise(merge, [...files, ...sizesOf(companions)], plan.report);
  const lock = isWorkspace(sink) ? await sink.lock?.("merge") : undefined;
  try {
    return await writeLocked(merge, options);
  } finally {
    await lock?.release();
  }
}

async function writeLocked(merge: PlannedMerge, options: MergeOptions): Promise<MergeReport> {
  const { plan, sink } = merge;
  const backend = options.backend ?? await (await import("../open.ts")).openBackend({ prefer: "wasm" });
  try {
    const { output, report } = isWorkspace(sink)
      ? await openStaging(sink, await merge.identity(backend), namesOf(merge), options)
      : { output: new Transaction(sink), report: [] };
    await writeAll(merge, { output, backend }, options);
    return summarise(merge, output.files, [...report, ...plan.report]);
  } finally {
    if (!options.backend) backend.dispose();
  }
}

function namesOf({ files, companions }: PlannedMerge): Set<string> {
  return new Set([
    ...files.map(({ name }) => name),
    ...companions.keys(),
    ...(companions.size > 0 ? [DIGESTS_FILE] : []),
  ]);
}

async function writeAll(
  { files, plan, companions, sink }: PlannedMerge,
  { output, backend }: { readonly output: MergeOutput; readonly backend: Backend },
  options: MergeOptions,
): Promise<void> {
  let isWhole = false;
  try {
    const { jobs = 1, onProgress } = options;
    await new WeightFileWriter({ files, targets: plan.targets, backend, output, jobs, onProgress }).run(options);
    const isListed = companions.size > 0 && isWorkspace(sink);
    const others = isListed ? await withDigests(output.files, companions) : companions;
    for (const [name, bytes] of others) await output.writeCompanion(name, bytes);
    options.signal?.throwIfAborted();
    isWhole = true;
    await output.commit();
  } catch (error) {
    // What the same merge would meet again is no reason to keep anything.
    await output.abort(isWhole || error instanceof IntegrityError || options.signal?.aborted === true);
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
  { tensors, plan: { targets } }: PlannedMerge,
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

/** Whether a later run can build on what a sink holds. */
export function isWorkspace(sink: Sink): sink is Workspace {
  return "rename" in sink && "remove" in sink && "sha256" in sink && "list" in sink;
}
