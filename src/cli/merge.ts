import { basename, dirname } from "node:path";
import { parseArgs } from "node:util";
import type { GgufOutType } from "../checkpoint/gguf_output.ts";
import { mergeCheckpoint, type MergeOptions, type MergeReport } from "../checkpoint/merge.ts";
import type { MergeDtype } from "../checkpoint/merge_dtype.ts";
import { mergeGguf } from "../checkpoint/merge_gguf.ts";
import type { LoadAdapterOptions } from "../adapter/load.ts";
import type { WeightedAdapter } from "../adapter/weighted_adapter.ts";
import { quote } from "../formats/quote.ts";
import { folder } from "../fs/mod.ts";
import { openBackend } from "../open.ts";
import { adapterArguments, loadArgument, modelArgument } from "./arguments.ts";
import { type Command, UsageError } from "./command.ts";
import { asFolder } from "./merge_base.ts";
import { choiceOption, numberOption, requiredOption, threadsOption } from "./options.ts";
import { claimedFolder, refuseOverwrite } from "./overwrite.ts";
import { type AdapterOverBase, overBase } from "./plain_adapter.ts";
import { Progress } from "./progress.ts";
import { formatReport } from "./report.ts";
import { formatTable } from "./table.ts";
import { dimTitles, formatBytes, formatDuration, oneLine, print, printJson, tableWidth } from "./terminal.ts";

const HELP = `Fold adapters into a checkpoint: W + Σ weight · scaling · B A. Memory is that of a few pieces of a tensor.

Usage: lora merge --base BASE --adapter ADAPTER[=WEIGHT]… --out OUT [--dtype f32|bf16|f16] [--out-type q8_0|f16|f32]
                  [--jobs N] [--threads auto|N] [--initial ADAPTER]… [--residual-base] [--expand-groups] [--dry-run]
                  [--json]

  --base BASE           Hugging Face folder (safetensors, single or sharded), .safetensors or .gguf file, or its URL
  --adapter ADAPTER     PEFT folder or URL; several are summed, each with its weight (1 if none is given)
  --out OUT             folder to write, which transformers and lora generate load: the same shards and index, or
                        model.safetensors, with config, tokenizer and SHA256SUMS; a file there is replaced whole or not
                        at all. Stopped or killed, the same command goes on at the next shard. From a .gguf also a file
                        ending in .gguf, with the base's metadata and tokenizer
  --dtype f32|bf16|f16  type of the floats written (that of the base; f32 from a .gguf)
  --out-type TYPE       type of the matrices of a .gguf: q8_0, f16 or f32 (as stored; what changes and is coarser: q8_0)
  --jobs N              shards written at a time, each with about 64 MB of memory (1)
  --threads auto|N      threads of WebAssembly up to 32, for ranks from 32 on (auto: one per core, 8 at most); below,
                        a merge waits for the disk
  --initial ADAPTER     the adapter as it was before training, where its initialisation changed the base and the base
                        does not tell how (CorDA, LoRA-GA, PiSSA by a random SVD); one for each --adapter, in order
  --residual-base       the base is the one that the adapters' initialisation left (PiSSA, OLoRA, CorDA, LoRA-GA, LoftQ)
  --expand-groups       write convolutions with groups, into which no update can be merged, without groups
  --dry-run             check everything and tell what would be written
  --json                { out, files, sizes, digests, tensors, merged, bytes, ms, report: [{ module, what, why }] }
`;

const OPTIONS = {
  base: { type: "string" },
  adapter: { type: "string", multiple: true, default: [] as string[] },
  out: { type: "string" },
  dtype: { type: "string" },
  "out-type": { type: "string" },
  jobs: { type: "string" },
  threads: { type: "string" },
  initial: { type: "string", multiple: true, default: [] as string[] },
  "residual-base": { type: "boolean", default: false },
  "expand-groups": { type: "boolean", default: false },
  "dry-run": { type: "boolean", default: false },
  json: { type: "boolean", default: false },
} as const;

async function loadAdapters(
  adapters: readonly AdapterOverBase[],
  options: LoadAdapterOptions,
): Promise<WeightedAdapter[]> {
  const loaded: WeightedAdapter[] = [];
  for (const argument of adapters) {
    const { initial, residualBase, weight } = argument;
    const own = { ...options, ...(initial && { initial }), ...(residualBase && { residualBase }) };
    loaded.push({ adapter: await loadArgument(argument, own), weight });
  }
  return loaded;
}

interface Job {
  readonly base: string;
  readonly out: string;
  readonly adapters: readonly WeightedAdapter[];
  readonly dtype: MergeDtype | undefined;
  readonly outType: GgufOutType | undefined;
}

/** Merges into a folder, or into a GGUF file. */
async function mergeInto({ base, out, adapters, dtype, outType }: Job, options: MergeOptions): Promise<MergeReport> {
  const opened = await modelArgument(base);
  if (!out.endsWith(".gguf")) {
    if (outType) throw new UsageError(`Cannot use --out-type for ${quote(out)}: a name ending in .gguf is wanted`);
    const { folder: from, report } = await asFolder(opened, options);
    const merged = await mergeCheckpoint(from, adapters, folder(out), { ...options, ...(dtype && { dtype }) });
    return { ...merged, report: [...report, ...merged.report] };
  }
  if ("open" in opened || !opened.name.endsWith(".gguf")) {
    const remedy = "merge into a folder and convert that with llama.cpp's convert_hf_to_gguf.py";
    throw new UsageError(`Cannot write ${quote(base)} as GGUF: a .gguf base is wanted; ${remedy}`);
  }
  if (dtype) throw new UsageError("Cannot use --dtype for a .gguf: --out-type is wanted");
  const place = { file: basename(out), ...(outType && { outType }) };
  return await mergeGguf(opened, adapters, folder(dirname(out)), { ...options, ...place });
}

/** `lora merge` */
export const merge: Command = {
  help: HELP,
  async run(args, signal) {
    const { values } = parseArgs({ args, options: OPTIONS });
    const base = requiredOption(values.base, "base");
    const out = requiredOption(values.out, "out");
    const dtype = choiceOption(values.dtype, "dtype", ["f32", "bf16", "f16"]);
    const outType = choiceOption(values["out-type"], "out-type", ["q8_0", "f16", "f32"]);
    const jobs = numberOption(values.jobs, "jobs", { min: 1, max: 64, whole: true }) ?? 1;
    const threads = threadsOption(values.threads);
    const dryRun = values["dry-run"];
    if (values.adapter.length === 0) throw new UsageError("Cannot merge without --adapter: at least one is wanted");
    const { initial, "residual-base": residualBase } = values;
    const named = await overBase(adapterArguments(values.adapter), { initial, residualBase });
    const place = out.endsWith(".gguf") ? { path: out, writes: null } : claimedFolder(out);
    await refuseOverwrite(place, [base, ...initial, ...named.map(({ path }) => path)]);
    const start = performance.now();
    const progress = new Progress("Merging");
    const onProgress = progress.update.bind(progress);
    const adapters = await loadAdapters(named, { signal });
    const backend = await openBackend({ prefer: "wasm", threads });
    const options = { signal, onProgress, backend, jobs, dryRun, expandGroups: values["expand-groups"] };
    const merged = await mergeInto({ base, out, adapters, dtype, outType }, options).finally(() => {
      progress.end();
      backend.dispose();
    });
    const ms = performance.now() - start;
    const report = [...adapters.flatMap(({ adapter }) => adapter.report), ...merged.report];
    if (values.json) return printJson({ out, ...merged, ms, report });
    print(formatReport(report), "stderr");
    print(formatFiles(merged));
    const counts = `${merged.merged.length} of ${merged.tensors} tensors`;
    const done = dryRun ? "would be merged" : `merged in ${formatDuration(ms)}`;
    print(`${out}: ${counts}, ${formatBytes(merged.bytes)}, ${done}\n`);
  },
};

function formatFiles({ files, sizes, digests }: MergeReport): string {
  const rows = files.map((name) => [oneLine(name), formatBytes(sizes[name]!), digests[name] ?? ""]);
  const columns = [{ title: "file" }, { title: "size", align: "right" }, { title: "sha256" }] as const;
  const shown = Object.keys(digests).length > 0 ? 3 : 2;
  return formatTable(columns.slice(0, shown), rows.map((row) => row.slice(0, shown)), dimTitles, tableWidth());
}
