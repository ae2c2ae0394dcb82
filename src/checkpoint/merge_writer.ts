import { type FloatDtype, isFiniteTensor, isFloatTensor } from "../adapter/factor_values.ts";
import type { Backend } from "../backend.ts";
import { IntegrityError, NumericError } from "../errors.ts";
import { type Checkpoint, type CheckpointTensor, INDEX_FILE } from "../formats/checkpoint.ts";
import { bitsPerElement, type Dtype, type StoredTensor, toFloat32 } from "../formats/dtype.ts";
import { stringifyJson } from "../formats/json_writer.ts";
import { quote } from "../formats/quote.ts";
import { readSafetensorsHeader } from "../formats/safetensors.ts";
import { layoutSafetensors } from "../formats/safetensors_writer.ts";
import { type Folder, readExactly, type ReadOptions, type Source } from "../formats/source.ts";
import { decodeUtf8 } from "../formats/utf8.ts";
import { MODEL_CONFIG, replaceDtype } from "./base_config.ts";
import { encodeFinite, encodeFloats, RowMerger } from "./merge_rows.ts";
import type { MergeBranch } from "./plan.ts";
import type { Transaction } from "./transaction.ts";

/** Element type of a merged checkpoint. */
export type MergeDtype = "f32" | "bf16" | "f16";

/** How far a merge is. */
export interface MergeProgress {
  /** Bytes of the base that are done. */
  readonly loaded: number;
  /** Bytes of all its tensors. */
  readonly total: number;
  /** The tensor at work. */
  readonly name: string;
}

/** Files that belong to a model beside its weights; `config.json` comes last and completes the folder. */
const COMPANIONS: readonly string[] = [
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
/** The stored dtype of each choice, and PyTorch's name for it. */
export const MERGE_DTYPES: Readonly<Record<MergeDtype, { readonly stored: FloatDtype; readonly torch: string }>> = {
  f32: { stored: "F32", torch: "float32" },
  bf16: { stored: "BF16", torch: "bfloat16" },
  f16: { stored: "F16", torch: "float16" },
};
/** Elements per piece of rows, 16 MiB as 32-bit floats; bytes of any other piece. */
const PIECE = 2 ** 22;

/** What a {@linkcode MergeWriter} works with. */
export interface MergeParts {
  /** The folder of the base. */
  readonly base: Folder;
  /** Its checkpoint. */
  readonly checkpoint: Checkpoint;
  /** What is added to each weight that changes. */
  readonly targets: ReadonlyMap<string, readonly MergeBranch[]>;
  /** Where deltas are computed. */
  readonly backend: Backend;
  /** Where the files go. */
  readonly output: Transaction;
  /** Dtype, progress and signal. */
  readonly options: ReadOptions & {
    readonly dtype?: MergeDtype;
    readonly onProgress?: (progress: MergeProgress) => void;
  };
}

/** Writes the files of a merged checkpoint. */
export class MergeWriter {
  readonly #parts: MergeParts;
  readonly #dtype: (typeof MERGE_DTYPES)[MergeDtype] | null;
  readonly #total: number;
  #loaded = 0;
  #written = 0;

  /** Takes parts whose plan has been checked. */
  constructor(parts: MergeParts) {
    this.#parts = parts;
    this.#dtype = parts.options.dtype ? MERGE_DTYPES[parts.options.dtype] : null;
    this.#total = [...parts.checkpoint.tensors.values()].reduce((sum, { length }) => sum + length, 0);
  }

  /** Writes all of them: weights, index, companions, config. */
  async run(): Promise<void> {
    const { checkpoint, base, output, options } = this.#parts;
    for (const file of checkpoint.files) await this.#writeFile(file);
    for (const name of checkpoint.index ? [INDEX_FILE, ...COMPANIONS] : COMPANIONS) {
      if (!await base.has(name, options)) continue;
      const source = base.open(name);
      const bytes = await readExactly(source, 0, await source.size(options), options);
      await output.create(name);
      await output.write(this.#dtype ? this.#inDtype(name, bytes, this.#dtype.torch) : bytes);
    }
  }

  /** Makes a companion file true for the new dtype. */
  #inDtype(name: string, bytes: Uint8Array, dtype: string): Uint8Array {
    const encoder = new TextEncoder();
    if (name === MODEL_CONFIG) return encoder.encode(replaceDtype(decodeUtf8(bytes, name), dtype));
    const metadata = this.#parts.checkpoint.index?.get("metadata");
    if (name !== INDEX_FILE || !(metadata instanceof Map)) return bytes;
    const index = new Map(this.#parts.checkpoint.index).set(
      "metadata",
      new Map(metadata).set("total_size", this.#written),
    );
    return encoder.encode(stringifyJson(index, { indent: 2 }) + "\n");
  }

  async #writeFile(file: string): Promise<void> {
    const { checkpoint, base, output } = this.#parts;
    const source = base.open(file);
    const tensors = await this.#reopen(file, source);
    const specs = [...tensors.values()].map(({ name, dtype, shape }) => ({
      name,
      dtype: this.#outputDtype(dtype),
      shape,
    }));
    const { header, order } = layoutSafetensors(specs, checkpoint.metadata.get(file));
    await output.create(file);
    await output.write(header);
    for (const name of order) await this.#writeTensor(source, tensors.get(name)!);
  }

  /** Reads the header again through the source that serves the data: it must be the file that was checked. */
  async #reopen(file: string, source: Source): Promise<ReadonlyMap<string, CheckpointTensor>> {
    const { checkpoint, options } = this.#parts;
    const { tensors } = await readSafetensorsHeader(source, options);
    const checked = new Map([...checkpoint.tensors].filter(([, tensor]) => tensor.file === file));
    const isSame = tensors.size === checked.size && [...checked.values()].every(({ name, dtype, offset, shape }) => {
      const now = tensors.get(name);
      return now?.dtype === dtype && now.offset === offset && now.shape.join() === shape.join();
    });
    if (isSame) return checked;
    const message = `Cannot merge ${quote(file)} of ${quote(checkpoint.name)}: it changed after it was opened`;
    throw new IntegrityError(message, { file });
  }

  #outputDtype(dtype: Dtype): Dtype {
    return this.#dtype && isFloatTensor({ dtype }) ? this.#dtype.stored : dtype;
  }

  async #writeTensor(source: Source, tensor: CheckpointTensor): Promise<void> {
    const { backend, targets, output, options } = this.#parts;
    const branches = targets.get(tensor.name);
    const dtype = this.#outputDtype(tensor.dtype);
    const merger = branches && new RowMerger(backend, branches);
    try {
      for await (const { row, piece } of readPieces(source, tensor, merger !== undefined, options)) {
        const bytes = merger
          ? encodeFinite(await merger.merge(row, piece), dtype as FloatDtype, tensor.name)
          : convert(piece, dtype, tensor.name);
        await output.write(bytes);
        this.#written += bytes.length;
        this.#loaded += piece.bytes.length;
        options.onProgress?.({ loaded: this.#loaded, total: this.#total, name: tensor.name });
      }
    } finally {
      merger?.[Symbol.dispose]();
    }
  }
}

/** Reads a tensor in pieces: of whole rows, or of bytes whatever the shape. */
async function* readPieces(
  source: Source,
  { dtype, shape, offset, length }: CheckpointTensor,
  byRows: boolean,
  options: ReadOptions,
): AsyncGenerator<{ row: number; piece: StoredTensor }> {
  const columns = byRows ? shape[1]! : 1;
  const width = byRows ? columns * bitsPerElement(dtype) / 8 : 1;
  const step = Math.max(1, Math.floor(PIECE / columns));
  for (let row = 0; row * width < length; row += step) {
    const count = Math.min(step, length / width - row);
    const bytes = await readExactly(source, offset + row * width, count * width, options);
    yield { row, piece: { dtype, shape: [count, columns], bytes } };
  }
}

/** Gives a tensor in another dtype; what was not finite stays so, what becomes so is refused. */
function convert(piece: StoredTensor, dtype: Dtype, name: string): Uint8Array {
  if (piece.dtype === dtype) return piece.bytes;
  const values = toFloat32(piece);
  const stored = { dtype: dtype as FloatDtype, shape: piece.shape, bytes: encodeFloats(values, dtype as FloatDtype) };
  if (isFiniteTensor(stored)) return stored.bytes;
  const rounded = toFloat32(stored);
  if (values.every((value, i) => Number.isFinite(rounded[i]) || !Number.isFinite(value))) return stored.bytes;
  const message = `Cannot convert tensor ${quote(name)} from ${piece.dtype} to ${dtype}: a value would become infinite`;
  throw new NumericError(message, { tensor: name, found: piece.dtype });
}
