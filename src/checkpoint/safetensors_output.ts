/**
 * A merged safetensors checkpoint: the shards of the base, its index, and the files beside them.
 *
 * @module
 */

import { isFloatTensor } from "../adapter/factor_values.ts";
import { IntegrityError } from "../errors.ts";
import { type Checkpoint, type CheckpointTensor, INDEX_FILE } from "../formats/checkpoint.ts";
import { bitsPerElement, type Dtype } from "../formats/dtype.ts";
import { stringifyJson } from "../formats/json_writer.ts";
import { quote } from "../formats/quote.ts";
import { readSafetensorsHeader } from "../formats/safetensors.ts";
import { layoutSafetensors } from "../formats/safetensors_writer.ts";
import { type Folder, type HeldSource, hold, readExactly, type ReadOptions } from "../formats/source.ts";
import { decodeUtf8 } from "../formats/utf8.ts";
import { MODEL_CONFIG, replaceDtype } from "./base_config.ts";
import type { FilePlan } from "./file_plan.ts";
import { MERGE_DTYPES, type MergeDtype } from "./merge_dtype.ts";

/** Files that belong to a model beside its weights; `config.json` comes last and completes the folder. */
const COMPANIONS: readonly string[] = [
  INDEX_FILE,
  "generation_config.json",
  "tokenizer.json",
  "tokenizer_config.json",
  "tokenizer.model",
  "special_tokens_map.json",
  "added_tokens.json",
  "vocab.json",
  "vocab.txt",
  "merges.txt",
  "spiece.model",
  "sentencepiece.bpe.model",
  "chat_template.jinja",
  "chat_template.json",
  "preprocessor_config.json",
  "processor_config.json",
  MODEL_CONFIG,
];

/** Lays out every weight file of the output. */
export function planFiles(base: Folder, checkpoint: Checkpoint, dtype: MergeDtype | undefined): FilePlan[] {
  return checkpoint.files.map((file) => {
    const tensors = new Map([...checkpoint.tensors].filter(([, tensor]) => tensor.file === file));
    const specs = [...tensors.values()].map(({ name, dtype: from, shape }) => ({
      name,
      dtype: outputDtype(from, dtype),
      shape,
    }));
    const { header, order } = layoutSafetensors(specs, checkpoint.metadata.get(file));
    const bytes = specs.reduce((sum, spec) => sum + byteLength(spec.dtype, spec.shape), header.length);
    const plans = order.map((name) => {
      const { dtype: from, ...tensor } = tensors.get(name)!;
      return { ...tensor, from, to: outputDtype(from, dtype) };
    });
    const open = (options: ReadOptions) => reopen(base, file, { tensors, checkpoint: checkpoint.name }, options);
    return { name: file, header, tensors: plans, bytes, open };
  });
}

/** Reads the files beside the weights, true for the new dtype. */
export async function readCompanions(
  base: Folder,
  checkpoint: Checkpoint,
  dtype: MergeDtype | undefined,
  files: readonly FilePlan[],
  options: ReadOptions,
): Promise<Map<string, Uint8Array>> {
  const companions = new Map<string, Uint8Array>();
  for (const name of COMPANIONS) {
    if ((name === INDEX_FILE && !checkpoint.index) || !await base.has(name, options)) continue;
    const source = base.open(name);
    const bytes = await readExactly(source, 0, await source.size(options), options);
    companions.set(name, dtype ? inDtype(name, bytes, dtype, checkpoint, files) : bytes);
  }
  return companions;
}

function inDtype(
  name: string,
  bytes: Uint8Array,
  dtype: MergeDtype,
  { index }: Checkpoint,
  files: readonly FilePlan[],
): Uint8Array {
  const encoder = new TextEncoder();
  if (name === MODEL_CONFIG) return encoder.encode(replaceDtype(decodeUtf8(bytes, name), MERGE_DTYPES[dtype].torch));
  const metadata = index?.get("metadata");
  if (name !== INDEX_FILE || !(metadata instanceof Map)) return bytes;
  const total = files.reduce((sum, file) => sum + file.bytes - file.header.length, 0);
  const changed = new Map(index).set("metadata", new Map(metadata).set("total_size", total));
  return encoder.encode(stringifyJson(changed, { indent: 2 }) + "\n");
}

function outputDtype(from: Dtype, dtype: MergeDtype | undefined): Dtype {
  return dtype && isFloatTensor({ dtype: from }) ? MERGE_DTYPES[dtype].stored : from;
}

function byteLength(dtype: Dtype, shape: readonly number[]): number {
  return shape.reduce((bits, length) => bits * length, bitsPerElement(dtype)) / 8;
}

/** Reads the header again through the handle that serves the data: it must be the file that was checked. */
async function reopen(
  base: Folder,
  file: string,
  checked: { readonly tensors: ReadonlyMap<string, CheckpointTensor>; readonly checkpoint: string },
  options: ReadOptions,
): Promise<HeldSource> {
  const source = await hold(base.open(file));
  try {
    const { tensors } = await readSafetensorsHeader(source, options);
    const isSame = tensors.size === checked.tensors.size && [...checked.tensors.values()].every((tensor) => {
      const now = tensors.get(tensor.name);
      return now?.dtype === tensor.dtype && now.offset === tensor.offset && now.shape.join() === tensor.shape.join();
    });
    if (isSame) return source;
    const message = `Cannot merge ${quote(file)} of ${quote(checked.checkpoint)}: it changed after it was opened`;
    throw new IntegrityError(message, { file });
  } catch (error) {
    await source.close();
    throw error;
  }
}
