/**
 * A merged safetensors checkpoint: the shards of the base, its index, and the files beside them.
 *
 * @module
 */

import { isFloatTensor } from "../formats/float_bits.ts";
import { IntegrityError } from "../errors.ts";
import { type Checkpoint, type CheckpointTensor, INDEX_FILE } from "../formats/checkpoint.ts";
import { bitsPerElement, type Dtype, type StoredTensor } from "../formats/dtype.ts";
import { stringifyJson } from "../formats/json_writer.ts";
import { quote } from "../formats/quote.ts";
import { readSafetensorsHeader } from "../formats/safetensors.ts";
import { layoutSafetensors } from "../formats/safetensors_writer.ts";
import { type Folder, type HeldSource, hold, readExactly, type ReadOptions } from "../formats/source.ts";
import { decodeUtf8 } from "../formats/utf8.ts";
import { sizeOf } from "../shape.ts";
import { editConfig, MODEL_CONFIG, replaceDtype } from "./base_config.ts";
import type { FilePlan, TensorPlan } from "./file_plan.ts";
import { MERGE_DTYPES, type MergeDtype } from "./merge_dtype.ts";
import type { MergePlan } from "./merge_plan.ts";

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
export function planFiles(
  base: Folder,
  checkpoint: Checkpoint,
  dtype: MergeDtype | undefined,
  plan: Pick<MergePlan, "targets" | "omitted">,
): FilePlan[] {
  return checkpoint.files.map((file) => {
    const own = new Map([...checkpoint.tensors].filter(([, tensor]) => tensor.file === file));
    const tensors = new Map<string, { readonly shape: readonly number[]; readonly plan: TensorPlan }>();
    for (const [name, tensor] of own) {
      if (plan.omitted.has(name) || plan.targets.has(name)) continue;
      tensors.set(name, { shape: tensor.shape, plan: planTensor(name, tensor, outputDtype(tensor.dtype, dtype)) });
    }
    for (const [name, target] of plan.targets) {
      if (target.file !== file) continue;
      const to = outputDtype(target.dtype, dtype);
      const { values, source } = target;
      const read = values ? planValues(name, values, to) : planTensor(name, source!, to);
      tensors.set(name, { shape: target.shape, plan: read });
    }
    const specs = Array.from(tensors, ([name, { shape, plan: { to } }]) => ({ name, dtype: to, shape }));
    const { header, order } = layoutSafetensors(specs, checkpoint.metadata.get(file));
    const bytes = specs.reduce((sum, spec) => sum + byteLength(spec.dtype, spec.shape), header.length);
    const open = (options: ReadOptions) => reopen(base, file, { tensors: own, checkpoint: checkpoint.name }, options);
    return { name: file, header, tensors: order.map((name) => tensors.get(name)!.plan), bytes, open };
  });
}

function planTensor(name: string, { offset, length, shape, dtype: from }: CheckpointTensor, to: Dtype): TensorPlan {
  return { name, offset, length, shape, from, to };
}

function planValues(name: string, { dtype: from, shape, bytes }: StoredTensor, to: Dtype): TensorPlan {
  return { name, values: bytes, offset: 0, length: bytes.length, shape, from, to };
}

/** Reads the files beside the weights, true for what the merge changes. */
export async function readCompanions(
  base: Folder,
  checkpoint: Checkpoint,
  changes: CompanionChanges,
  options: ReadOptions,
): Promise<Map<string, Uint8Array>> {
  const companions = new Map<string, Uint8Array>();
  for (const name of COMPANIONS) {
    if ((name === INDEX_FILE && !checkpoint.index) || !await base.has(name, options)) continue;
    const source = base.open(name);
    const bytes = await readExactly(source, 0, await source.size(options), options);
    companions.set(name, changed(name, bytes, checkpoint, changes));
  }
  return companions;
}

/** What changes in the files beside the weights. */
export interface CompanionChanges {
  /** The new dtype, if there is one. */
  readonly dtype: MergeDtype | undefined;
  /** The weight files. */
  readonly files: readonly FilePlan[];
  /** What becomes of the tensors, and of the config. */
  readonly plan: Pick<MergePlan, "config">;
}

function changed(
  name: string,
  bytes: Uint8Array,
  { index, tensors }: Checkpoint,
  changes: CompanionChanges,
): Uint8Array {
  const { dtype, files, plan } = changes;
  const encoder = new TextEncoder();
  if (name === MODEL_CONFIG && (dtype || Object.keys(plan.config).length > 0)) {
    const text = decodeUtf8(bytes, name);
    return encoder.encode(editConfig(dtype ? replaceDtype(text, MERGE_DTYPES[dtype].torch) : text, plan.config));
  }
  if (name !== INDEX_FILE) return bytes;
  const written = new Map(files.flatMap((file) => file.tensors.map(({ name }) => [name, file.name] as const)));
  const isSame = written.size === tensors.size &&
    [...written].every(([name, file]) => tensors.get(name)?.file === file);
  const metadata = index?.get("metadata");
  const hasNewSize = metadata instanceof Map && (dtype !== undefined || plan.config.vocabSize !== undefined);
  if (isSame && !hasNewSize) return bytes;
  const total = files.reduce((sum, file) => sum + file.bytes - file.header.length, 0);
  const edited = new Map(index);
  if (metadata instanceof Map) edited.set("metadata", new Map(metadata).set("total_size", total));
  if (!isSame) edited.set("weight_map", new Map([...written].sort(([a], [b]) => a < b ? -1 : 1)));
  return encoder.encode(stringifyJson(edited, { indent: 2 }) + "\n");
}

function outputDtype(from: Dtype, dtype: MergeDtype | undefined): Dtype {
  return dtype && isFloatTensor({ dtype: from }) ? MERGE_DTYPES[dtype].stored : from;
}

function byteLength(dtype: Dtype, shape: readonly number[]): number {
  return sizeOf(shape) * bitsPerElement(dtype) / 8;
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
    const message = `Cannot merge ${quote(file)} of ${
      quote(checked.checkpoint)
    }: it changed after it was opened, expected it as it was; merge again`;
    throw new IntegrityError(message, { file });
  } catch (error) {
    await source.close();
    throw error;
  }
}
