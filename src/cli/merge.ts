import { parseArgs } from "node:util";
import type { ReportLine } from "../adapter/adapter.ts";
import { mergeCheckpoint } from "../checkpoint/merge.ts";
import type { WeightedAdapter } from "../adapter/weighted_adapter.ts";
import type { Folder, ReadOptions } from "../formats/source.ts";
import { folder } from "../fs/mod.ts";
import { ggufFolder } from "../models/mod.ts";
import {
  type AdapterArgument,
  adapterArguments,
  choiceOption,
  loadArgument,
  modelArgument,
  refuseOverwrite,
  requiredOption,
} from "./arguments.ts";
import { type Command, UsageError } from "./command.ts";
import { ggufTokenizerFiles, withFiles } from "./gguf_tokenizer_files.ts";
import { Progress } from "./progress.ts";
import { formatReport } from "./report.ts";
import { formatBytes, formatDuration, print, printJson } from "./terminal.ts";

const HELP = `Fold adapters into a checkpoint: W + Σ weight · scaling · B A. Memory is that of a few pieces of a tensor.

Usage: lora merge --base BASE --adapter ADAPTER[=WEIGHT]… --out OUT [--dtype f32|bf16|f16] [--json]

  --base BASE           Hugging Face folder (safetensors, single or sharded), or a .gguf file
  --adapter ADAPTER     PEFT folder or URL; several are summed, each with its weight (1 if none is given)
  --out OUT             folder to write, which transformers and lora generate load: the same shards and index, or
                        model.safetensors, with config and tokenizer; a file there is replaced whole or not at all
  --dtype f32|bf16|f16  type of the floats written (that of the base; f32 from a .gguf)
  --json                { out, files, tensors, merged, bytes, ms, report: [{ module, what, why }] }
`;

const OPTIONS = {
  base: { type: "string" },
  adapter: { type: "string", multiple: true, default: [] as string[] },
  out: { type: "string" },
  dtype: { type: "string" },
  json: { type: "boolean", default: false },
} as const;

interface Base {
  readonly folder: Folder;
  readonly report: readonly ReportLine[];
}

async function openBase(path: string, options: ReadOptions): Promise<Base> {
  const source = await modelArgument(path);
  if ("open" in source) return { folder: source, report: [] };
  const base = await ggufFolder(source, options);
  if (await base.has("tokenizer.json", options)) return { folder: base, report: [] };
  const { files, report } = ggufTokenizerFiles(base.gguf.metadata, source.name);
  return { folder: withFiles(base, files), report };
}

async function loadAdapters(adapters: readonly AdapterArgument[], options: ReadOptions): Promise<WeightedAdapter[]> {
  const loaded: WeightedAdapter[] = [];
  for (const argument of adapters) {
    loaded.push({ adapter: await loadArgument(argument, options), weight: argument.weight });
  }
  return loaded;
}

/** `lora merge` */
export const merge: Command = {
  help: HELP,
  async run(args, signal) {
    const { values } = parseArgs({ args, options: OPTIONS });
    const basePath = requiredOption(values.base, "base");
    const out = requiredOption(values.out, "out");
    const dtype = choiceOption(values.dtype, "dtype", ["f32", "bf16", "f16"]);
    if (values.adapter.length === 0) throw new UsageError("Cannot merge without --adapter: at least one is wanted");
    const named = adapterArguments(values.adapter);
    await refuseOverwrite(out, [basePath, ...named.map(({ path }) => path)]);
    const start = performance.now();
    const progress = new Progress("Merging");
    const onProgress = progress.update.bind(progress);
    const base = await openBase(basePath, { signal });
    const adapters = await loadAdapters(named, { signal });
    const merged = await mergeCheckpoint(base.folder, adapters, folder(out), {
      signal,
      onProgress,
      ...(dtype && { dtype }),
    }).finally(() => progress.end());
    const ms = performance.now() - start;
    const report = [...adapters.flatMap(({ adapter }) => adapter.report), ...base.report, ...merged.report];
    if (values.json) return printJson({ out, ...merged, ms, report });
    print(formatReport(report), "stderr");
    const counts = `${merged.merged.length} of ${merged.tensors} tensors`;
    print(`${out}: ${counts} merged, ${formatBytes(merged.bytes)} in ${formatDuration(ms)}\n`);
  },
};
