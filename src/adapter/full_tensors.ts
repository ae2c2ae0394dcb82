import { FormatError, MismatchError, NumericError } from "../errors.ts";
import type { StoredTensor } from "../formats/dtype.ts";
import { quote } from "../formats/quote.ts";
import { formatShape } from "../shape.ts";
import type { TokenRows } from "./adapter.ts";
import { isFiniteTensor, isFloatTensor } from "../formats/float_bits.ts";
import { CONFIG_FILE, type LoraConfig } from "./lora_config.ts";

/** A tensor with its name in the file. */
export interface NamedTensor extends StoredTensor {
  /** Name of the tensor. */
  readonly name: string;
}

/**
 * Refuses NaN and infinity.
 *
 * @param tensor A tensor of any type; only floats are looked at.
 * @param file Name of the file.
 * @returns The tensor without its name.
 * @throws {NumericError} If a value is not finite.
 */
export function finiteTensor({ name, dtype, shape, bytes }: NamedTensor, file: string): StoredTensor {
  const tensor = { dtype, shape, bytes };
  if (!isFloatTensor(tensor) || isFiniteTensor(tensor)) return tensor;
  const message = `Cannot load tensor ${quote(name)} with NaN or infinity: expected finite values`;
  throw new NumericError(message, { file, tensor: name });
}

/**
 * Checks the new rows of embeddings against the token numbers of the config.
 *
 * @param found The rows by path of their embedding.
 * @param config The config.
 * @param file Name of the file.
 * @returns The rows with their numbers.
 * @throws {MismatchError} If rows and numbers differ in count, or one has no other.
 * @throws {FormatError} If the rows are no matrix of floats, or a number occurs twice.
 * @throws {NumericError} If a value is not finite.
 */
export function readTokenRows(
  found: ReadonlyMap<string, NamedTensor>,
  config: LoraConfig,
  file: string,
): ReadonlyMap<string, TokenRows> {
  const field = "trainable_token_indices";
  const entries = config.trainableTokens ?? new Map<string | null, readonly number[]>();
  const used = new Set<string | null>();
  const read = new Map<string, TokenRows>();
  for (const [path, tensor] of found) {
    const entry = [...entries.keys()].find((name) => name === null || `.${path}`.endsWith(`.${name}`));
    if (entry === undefined) {
      const message = `Cannot load tensor ${quote(tensor.name)} without token numbers: expected ${
        quote(path)
      } in ${field}`;
      throw new MismatchError(message, { file: CONFIG_FILE, tensor: tensor.name, field, missing: [path] });
    }
    used.add(entry);
    read.set(path, {
      indices: checkRows(entries.get(entry)!, tensor, { file, field }),
      rows: finiteTensor(tensor, file),
    });
  }
  for (const entry of entries.keys()) {
    if (used.has(entry)) continue;
    const missing = `${entry ?? "<embedding>"}.token_adapter.trainable_tokens_delta`;
    const message = `Cannot load ${quote(file)} without the rows that ${field} names: expected a tensor ${
      quote(missing)
    }`;
    throw new MismatchError(message, { file, field, missing: [missing] });
  }
  return read;
}

function checkRows(
  indices: readonly number[],
  tensor: NamedTensor,
  { file, field }: { readonly file: string; readonly field: string },
): readonly number[] {
  const { name, shape, dtype } = tensor;
  const what = `Cannot load tensor ${quote(name)} of shape ${formatShape(shape)}`;
  if (shape.length !== 2 || shape[1]! < 1 || !isFloatTensor({ dtype })) {
    throw new FormatError(`${what} and dtype ${dtype}: expected a matrix of F32, F16 or BF16`, { file, tensor: name });
  }
  if (new Set(indices).size !== indices.length) {
    const message = `Cannot read ${field} of ${quote(CONFIG_FILE)} with a token twice: expected each once`;
    throw new FormatError(message, { file: CONFIG_FILE, field, found: indices });
  }
  if (shape[0] === indices.length) return indices;
  const message = `${what}: expected ${indices.length} rows, as many as ${field} names`;
  throw new MismatchError(message, { file, tensor: name, field, found: shape[0], expected: indices.length });
}
