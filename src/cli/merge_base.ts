import type { ReportLine } from "../adapter/adapter.ts";
import { SINGLE_FILE } from "../formats/checkpoint.ts";
import type { Folder, ReadOptions, Source } from "../formats/source.ts";
import { ggufFolder } from "../models/mod.ts";
import { ggufTokenizerFiles, withFiles } from "./gguf_tokenizer_files.ts";

/** A base as a folder, and what is worth knowing about it. */
export interface MergeBase {
  /** The folder. */
  readonly folder: Folder;
  /** What its form cannot say. */
  readonly report: readonly ReportLine[];
}

/** A base as a Hugging Face folder. */
export async function asFolder(base: Folder | Source, options: ReadOptions): Promise<MergeBase> {
  if ("open" in base) return { folder: base, report: [] };
  if (base.name.endsWith(".safetensors")) return { folder: singleFile(base), report: [] };
  const gguf = await ggufFolder(base, options);
  if (await gguf.has("tokenizer.json", options)) return { folder: gguf, report: [] };
  const { files, report } = ggufTokenizerFiles(gguf.gguf.metadata, base.name);
  return { folder: withFiles(gguf, files), report };
}

/** A weight file alone as a folder without config and tokenizer. */
function singleFile(source: Source): Folder {
  return {
    name: source.name,
    has: (file) => Promise.resolve(file === SINGLE_FILE),
    open: () => source,
  };
}
