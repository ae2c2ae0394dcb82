import { LimitError } from "../../errors.ts";
import type { StoredTensor } from "../../formats/dtype.ts";
import { memorySource } from "../../formats/memory.ts";
import { quote } from "../../formats/quote.ts";
import { readSafetensorsHeader } from "../../formats/safetensors.ts";
import { readExactly, type ReadOptions, type Source } from "../../formats/source.ts";
import { readTorch, readTorchMetadata } from "../../formats/torch.ts";
import { type AdapterLimits, DEFAULT_LIMITS } from "../limits.ts";

const MAX_NAME = 1024;

/** The tensors of a file, and the texts beside them. */
export interface TensorFile {
  /** Name of the file. */
  readonly name: string;
  /** The tensors by name, in file order. */
  readonly tensors: ReadonlyMap<string, StoredTensor>;
  /** Those of the safetensors header, or those that this package puts into torch files. */
  readonly metadata: ReadonlyMap<string, string>;
}

/** Options of {@linkcode readTensorFile}. */
export interface TensorFileOptions extends ReadOptions {
  /** Caps; what is absent has its default. */
  readonly limits?: AdapterLimits;
}

/**
 * Reads a whole safetensors file, or a file of `torch.save` by the restricted reader.
 *
 * @param source The file.
 * @param options Caps and a signal.
 * @returns Its tensors.
 * @throws {FormatError} If it is neither.
 * @throws {LimitError} If it is larger than the cap.
 */
export async function readTensorFile(source: Source, options: TensorFileOptions = {}): Promise<TensorFile> {
  const { name } = source;
  const bytes = await readCapped(source, options);
  const memory = memorySource(name, bytes);
  if (isZip(bytes)) {
    const tensors = await readTorch(memory, options);
    for (const tensor of tensors.keys()) checkName(tensor, name);
    return { name, tensors, metadata: await readTorchMetadata(memory, options) };
  }
  const maxHeaderBytes = options.limits?.headerBytes;
  const header = await readSafetensorsHeader(memory, maxHeaderBytes === undefined ? {} : { maxHeaderBytes });
  const tensors = new Map<string, StoredTensor>();
  for (const { name: tensor, dtype, shape, offset, length } of header.tensors.values()) {
    checkName(tensor, name);
    tensors.set(tensor, { dtype, shape, bytes: bytes.subarray(offset, offset + length) });
  }
  return { name, tensors, metadata: header.metadata };
}

/**
 * Refuses a name that is longer than any tool's: matching takes time that grows with the square of the length.
 *
 * @param tensor The name.
 * @param file Name of the file.
 * @throws {LimitError} If it has more than 1024 characters.
 */
export function checkName(tensor: string, file: string): void {
  if (tensor.length <= MAX_NAME) return;
  const message = `Cannot read tensor ${quote(tensor)} of ${quote(file)} with a name of ${tensor.length} characters`;
  const details = { file, tensor, field: "name", limit: MAX_NAME, value: tensor.length };
  throw new LimitError(`${message}: expected at most ${MAX_NAME}`, details);
}

/**
 * Tells a zip file by its first bytes.
 *
 * @param bytes At least the first four.
 * @returns True if it is one.
 */
export function isZip(bytes: Uint8Array): boolean {
  return bytes[0] === 0x50 && bytes[1] === 0x4b && bytes[2] === 3 && bytes[3] === 4;
}

/**
 * Refuses a file that is larger than the cap on adapter files.
 *
 * @param source The file.
 * @param options The cap and a signal.
 * @returns Its size.
 * @throws {LimitError} If it is larger.
 */
export async function cappedSize(source: Source, options: TensorFileOptions): Promise<number> {
  options.signal?.throwIfAborted();
  const limit = options.limits?.fileBytes ?? DEFAULT_LIMITS.fileBytes;
  const value = await source.size(options);
  if (value <= limit) return value;
  const message = `Cannot read ${quote(source.name)} of ${value} bytes: expected at most ${limit}`;
  throw new LimitError(message, { file: source.name, field: "size", limit, value });
}

async function readCapped(source: Source, options: TensorFileOptions): Promise<Uint8Array> {
  return await readExactly(source, 0, await cappedSize(source, options), options);
}
