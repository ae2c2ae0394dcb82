/**
 * A GGUF file as the Hugging Face folder it was made from: tensors are dequantised when they are read.
 *
 * @module
 */

import { reorderHeads } from "../adapter/dialects/matrix_bytes.ts";
import type { BlockDtype, MatrixValues } from "../backend.ts";
import { FormatError, MismatchError } from "../errors.ts";
import { checkReadable } from "../formats/check_place.ts";
import { bitsPerElement, type Dtype, toFloat32 } from "../formats/dtype.ts";
import { type Gguf, type GgufTensorInfo, type GgufType, readGguf, readGgufTensor } from "../formats/gguf.ts";
import { memorySource } from "../formats/memory.ts";
import { quote } from "../formats/quote.ts";
import { layoutSafetensors } from "../formats/safetensors_writer.ts";
import { type Folder, readExactly, type ReadOptions, type Source } from "../formats/source.ts";
import { readJson } from "../formats/json_file.ts";
import { sizeOf } from "../shape.ts";
import { ggufConfig } from "./gguf_config.ts";
import { huggingFaceName } from "./gguf_names.ts";
import { readLlamaConfig } from "./llama_config.ts";
import type { StoredBlocks } from "./stored_blocks.ts";

/** A GGUF file seen as a folder. */
export interface GgufFolder extends Folder {
  /** The file's header. */
  readonly gguf: Gguf;
  /** The matrices whose blocks a weight can keep, by Hugging Face's name. */
  readonly blocks: ReadonlyMap<string, StoredBlocks>;
}

/** Divisors of the rotary frequencies: a constant of the config, not a parameter. */
const ROPE_FACTORS = "rope_freqs.weight";
/** Block types that a weight keeps. */
const BLOCK_DTYPES: ReadonlyMap<GgufType, BlockDtype> = new Map([["Q8_0", "q8_0"], ["Q4_0", "q4_0"], ["Q4_1", "q4_1"]]);
const STORED_DTYPES: ReadonlySet<string> = new Set<Dtype>(["F32", "F16", "BF16", "F64"]);

/**
 * Opens a GGUF file of the Llama architecture as a folder with `config.json`, `generation_config.json` and
 * `model.safetensors`: Hugging Face's names and order of rows, quantised tensors as F32. Only the header is read now.
 * The tokenizer stays in the metadata.
 *
 * @param source The file.
 * @param options Abort.
 * @throws {FormatError} If it is no GGUF file, or of an architecture or with features that are not covered.
 */
export async function ggufFolder(source: Source, options: ReadOptions = {}): Promise<GgufFolder> {
  checkReadable("open a GGUF file", source, 'file("….gguf")');
  const gguf = await readGguf(source, options);
  const ropeFactors = await readRopeFactors(source, gguf, options);
  const { json, eosIds, permuted } = ggufConfig(gguf, source.name, ropeFactors);
  const configSource = jsonSource(`${source.name}/config.json`, json);
  const config = readLlamaConfig(await readJson(configSource, { maxBytes: Infinity }), source.name);
  const heads = permuted ? { q: config.heads, k: config.kvHeads } : null;
  const weights = new DequantizedSource(source, gguf, heads);
  const files = new Map<string, Source>([
    ["model.safetensors", weights],
    ["config.json", configSource],
    ["generation_config.json", jsonSource(`${source.name}/generation_config.json`, generationConfig(json, eosIds))],
  ]);
  return {
    name: source.name,
    gguf,
    blocks: weights.blocks(),
    has: (file) => Promise.resolve(files.has(file)),
    open: (file) => {
      const found = files.get(file);
      if (!found) {
        throw new FormatError(`Cannot open "${file}" in "${source.name}": a GGUF file has no such part`, { file });
      }
      return found;
    },
    list: () => Promise.resolve([...files.keys()].sort()),
  };
}

function jsonSource(name: string, json: unknown): Source {
  return memorySource(name, new TextEncoder().encode(JSON.stringify(json, null, 2) + "\n"));
}

function generationConfig(json: Readonly<Record<string, unknown>>, eosIds: readonly number[]): unknown {
  return { bos_token_id: json.bos_token_id, eos_token_id: eosIds.length === 1 ? eosIds[0] : eosIds };
}

async function readRopeFactors(source: Source, gguf: Gguf, options: ReadOptions): Promise<Float32Array | null> {
  const info = gguf.tensors.get(ROPE_FACTORS);
  if (!info) return null;
  if (info.shape.length !== 1 || info.shape[0]! > 4096) {
    const message =
      `Cannot read "${source.name}" with "${ROPE_FACTORS}" of shape [${info.shape}]: expected half a head`;
    throw new FormatError(message, { file: source.name, tensor: ROPE_FACTORS, found: info.shape });
  }
  return toFloat32(await readGgufTensor(source, info, options));
}

interface Part {
  /** Hugging Face's name. */
  readonly name: string;
  readonly info: GgufTensorInfo;
  /** First byte in the safetensors file. */
  readonly start: number;
  /** One past the last byte. */
  readonly end: number;
  /** Heads whose rows are interleaved; 0 where the rows are in order. */
  readonly heads: number;
}

/** The `model.safetensors` that a GGUF file stands for, computed by ranges. */
class DequantizedSource implements Source {
  readonly name: string;
  readonly #source: Source;
  readonly #header: Uint8Array;
  readonly #parts: readonly Part[];
  /** The part last read, for readers that come back for its next bytes. */
  #last: { readonly part: Part; readonly bytes: Uint8Array } | null = null;

  constructor(source: Source, gguf: Gguf, heads: { readonly q: number; readonly k: number } | null) {
    this.name = source.name;
    this.#source = source;
    const infos = new Map<string, GgufTensorInfo>();
    for (const info of gguf.tensors.values()) {
      if (info.name === ROPE_FACTORS) continue;
      const name = huggingFaceName(info.name);
      if (infos.has(name)) throw refuseTwins(source.name, infos.get(name)!.name, info.name);
      infos.set(name, info);
    }
    const specs = [...infos].map(([name, info]) => ({ name, dtype: storedDtype(info), shape: info.shape }));
    const { header, order } = layoutSafetensors(specs, new Map([["format", "pt"]]));
    this.#header = header;
    const parts: Part[] = [];
    let start = header.length;
    for (const name of order) {
      const info = infos.get(name)!;
      const end = start + byteLength(info);
      const projection = /\.self_attn\.([qk])_proj\./.exec(name)?.[1];
      parts.push({ name, info, start, end, heads: heads && projection ? heads[projection as "q" | "k"] : 0 });
      start = end;
    }
    this.#parts = parts;
  }

  size(): Promise<number> {
    return Promise.resolve(this.#parts.at(-1)?.end ?? this.#header.length);
  }

  async read(offset: number, length: number, options: ReadOptions = {}): Promise<Uint8Array> {
    const end = offset + length;
    const whole = this.#parts.find((part) => part.start === offset && part.end === end);
    if (whole) return await this.#compute(whole, options);
    const bytes = new Uint8Array(length);
    if (offset < this.#header.length) bytes.set(this.#header.subarray(offset, end));
    for (const part of this.#parts) {
      if (part.end <= offset || part.start >= end) continue;
      if (this.#last?.part !== part) this.#last = { part, bytes: await this.#compute(part, options) };
      const piece = this.#last.bytes.subarray(Math.max(0, offset - part.start), end - part.start);
      bytes.set(piece, Math.max(0, part.start - offset));
    }
    return bytes;
  }

  /** The matrices whose blocks a weight can keep. */
  blocks(): ReadonlyMap<string, StoredBlocks> {
    return new Map(this.#parts.flatMap((part) => {
      const dtype = BLOCK_DTYPES.get(part.info.type);
      const [rows, columns, ...others] = part.info.shape;
      if (dtype === undefined || rows === undefined || columns === undefined || others.length > 0) return [];
      const read = async (options: ReadOptions = {}): Promise<MatrixValues> => {
        const bytes = await readExactly(this.#source, part.info.offset, part.info.length, options);
        return { shape: [rows, columns], dtype, bytes: this.#inOrder(part, bytes) };
      };
      return [[part.name, { dtype, read }] as const];
    }));
  }

  async #compute(part: Part, options: ReadOptions): Promise<Uint8Array> {
    return this.#inOrder(part, (await readGgufTensor(this.#source, part.info, options)).bytes);
  }

  #inOrder({ info, heads }: Part, bytes: Uint8Array): Uint8Array {
    if (heads === 0) return bytes;
    if (info.shape[0]! % (2 * heads) === 0) {
      return reorderHeads({ dtype: "U8", shape: info.shape, bytes }, heads, "halves").bytes;
    }
    const message = `Cannot read "${this.name}" with "${info.name}" of shape [${info.shape}]: expected ${heads} heads`;
    throw new MismatchError(message, { file: this.name, tensor: info.name, found: info.shape, expected: heads });
  }
}

function refuseTwins(file: string, first: string, second: string): FormatError {
  const message = `Cannot read ${quote(file)} with both ${quote(first)} and ${quote(second)}: they are one parameter`;
  return new FormatError(message, { file, tensor: second, found: [first, second] });
}

function storedDtype({ type }: GgufTensorInfo): Dtype {
  return STORED_DTYPES.has(type) ? type as Dtype : "F32";
}

function byteLength(info: GgufTensorInfo): number {
  return sizeOf(info.shape) * bitsPerElement(storedDtype(info)) / 8;
}
