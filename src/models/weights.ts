/**
 * ModelParameters from a checkpoint into a backend, one tensor at a time.
 *
 * @module
 */

import type { Backend, BlockDtype, MatrixValues, Tensor, Weight, WeightDtype, WeightOptions } from "../backend.ts";
import { FormatError, MismatchError } from "../errors.ts";
import type { Checkpoint } from "../formats/checkpoint.ts";
import { type StoredTensor, toFloat32 } from "../formats/dtype.ts";
import { quote } from "../formats/quote.ts";
import type { ReadOptions } from "../formats/source.ts";
import { floatMatrix } from "../lora/factors.ts";
import { formatShape } from "../shape.ts";
import type { StoredBlocks } from "./stored_blocks.ts";

/** How far a load is. */
export interface LoadProgress {
  /** Bytes of the checkpoint read so far. */
  readonly loaded: number;
  /** Bytes to read. */
  readonly total: number;
  /** The tensor just read. */
  readonly name: string;
}

/**
 * How a model stores its matrices: a {@linkcode WeightDtype} for all of them, or `"auto"`, which keeps the Q4_0, Q4_1 and
 * Q8_0 blocks of a GGUF file as they are, where the backend takes them, and stores everything else as bf16.
 *
 * `"int8"` and `"int4"` keep blocks that have that form already, and quantize everything else. With `"int4"` the embedding
 * and the head are int8, with `"nf4"` bf16: they lose the most.
 */
export type ModelDtype = WeightDtype | "auto";

/** What {@linkcode ModelDtype} can be. */
export const MODEL_DTYPES: readonly ModelDtype[] = ["auto", "f32", "bf16", "f16", "f8", "int8", "int4", "nf4"];

const BLOCK_FORMS: Readonly<Record<BlockDtype, WeightDtype>> = { q8_0: "int8", q4_0: "int4", q4_1: "int4" };
/** Embeddings of tokens, and heads. */
const TABLE = /(?:^|\.)(?:embed_tokens|wte|word_embeddings|lm_head)\.weight$/;
const TABLE_DTYPES: Partial<Record<ModelDtype, WeightDtype>> = { int4: "int8", nf4: "bf16", auto: "bf16" };

/** Options of {@linkcode loadParameters}. */
export interface ParameterOptions extends ReadOptions {
  /** Storage of the matrices. */
  readonly dtype: ModelDtype;
  /** Whether activations stay f32 against integers. */
  readonly exact?: boolean;
  /** Matrices that can be read in their file's own blocks, by name. */
  readonly blocks?: ReadonlyMap<string, StoredBlocks>;
  /** Called after each tensor. */
  readonly onProgress?: (progress: LoadProgress) => void;
  /** Whether a matrix is stored (in, out). */
  readonly isTransposed?: (name: string) => boolean;
  /** The name of a parameter by the name of its tensor; absent, they are the same. */
  readonly nameOf?: (tensor: string) => string;
}

/** The parameters of a model, held by a backend. */
export class ModelParameters {
  /** Matrices (out, in) by name; of tensors that hold those of experts, matrix e by `name.e`. */
  readonly weights: Map<string, Weight> = new Map();
  /** Vectors by name. */
  readonly vectors: Map<string, Tensor> = new Map();

  /** Frees them. */
  dispose(): void {
    for (const each of [...this.weights.values(), ...this.vectors.values()]) each.dispose();
    this.weights.clear();
    this.vectors.clear();
  }
}

/** Names and shapes that a model wants of a checkpoint. */
export interface WantedParameters {
  /** Shape by name. */
  readonly shapes: ReadonlyMap<string, readonly number[]>;
  /** Whether a tensor that is not wanted may be passed over. */
  readonly isSpare: (name: string) => boolean;
}

/**
 * Compares a checkpoint with what a model wants, before anything is read.
 *
 * @throws {MismatchError} If tensors are missing, unexpected or of another shape; it carries the lists.
 * @throws {FormatError} If one is stored as something else than floats of 16, 32 or 64 bits.
 */
export function checkParameters(checkpoint: Checkpoint, wanted: WantedParameters): void {
  const { applied, missing, misshapen, strangers } = compare(checkpoint, wanted);
  const [file, unexpected] = [checkpoint.name, [...misshapen, ...strangers]];
  if (missing.length > 0 || strangers.length > 0) {
    const lists = [...listNames("missing", missing), ...listNames("unexpected", strangers)].join(", ");
    const message = `Cannot load ${quote(file)}: its tensors are not those of the config, ${lists}`;
    throw new MismatchError(message, { file, applied, missing, unexpected });
  }
  const [other] = misshapen;
  if (other !== undefined) {
    const [found, expected] = [checkpoint.tensors.get(other)!.shape, wanted.shapes.get(other)!];
    const message = `Cannot load ${quote(file)} with ${quote(other)} of shape ${formatShape(found)}: ` +
      `expected ${formatShape(expected)} by the config`;
    throw new MismatchError(message, { file, tensor: other, found, expected, applied, unexpected });
  }
  for (const tensor of applied) {
    const { dtype } = checkpoint.tensors.get(tensor)!;
    if (FLOATS.has(dtype)) continue;
    const message = `Cannot load ${quote(file)} with ${quote(tensor)} as ${dtype}: expected F32, F16, BF16 or F64`;
    throw new FormatError(message, { file, tensor, found: dtype, expected: [...FLOATS] });
  }
}

interface Comparison {
  readonly applied: string[];
  readonly missing: string[];
  readonly misshapen: string[];
  readonly strangers: string[];
}

function compare({ tensors }: Checkpoint, { shapes, isSpare }: WantedParameters): Comparison {
  const strangers = [...tensors.keys()].filter((name) => !shapes.has(name) && !isSpare(name));
  const comparison: Comparison = { applied: [], missing: [], misshapen: [], strangers };
  for (const [name, shape] of shapes) {
    const found = tensors.get(name)?.shape;
    if (found === undefined) comparison.missing.push(name);
    else if (formatShape(found) !== formatShape(shape)) comparison.misshapen.push(name);
    else comparison.applied.push(name);
  }
  return comparison;
}

const FLOATS: ReadonlySet<string> = new Set(["F32", "F16", "BF16", "F64"]);

function listNames(what: string, names: readonly string[]): string[] {
  return names.length === 0 ? [] : [`${names.length} ${what} (first ${quote(names[0]!)})`];
}

/**
 * Reads and packs every wanted tensor; the bytes read are dropped one by one. Call {@linkcode checkParameters} first.
 *
 * @param backend Where they go.
 * @param checkpoint Where they are.
 * @param names Which ones.
 * @param options Storage, progress and abort.
 */
export async function loadParameters(
  backend: Backend,
  checkpoint: Checkpoint,
  names: Iterable<string>,
  options: ParameterOptions,
): Promise<ModelParameters> {
  const infos = [...names].map((name) => checkpoint.tensors.get(name)!);
  const total = infos.reduce((sum, info) => sum + info.length, 0);
  const parameters = new ModelParameters();
  let loaded = 0;
  try {
    for (const { name, length } of infos) {
      options.signal?.throwIfAborted();
      await loadParameter({ backend, checkpoint, parameters, options }, name);
      loaded += length;
      options.onProgress?.({ loaded, total, name });
    }
    return parameters;
  } catch (error) {
    parameters.dispose();
    throw error;
  }
}

interface Load {
  readonly backend: Backend;
  readonly checkpoint: Checkpoint;
  readonly parameters: ModelParameters;
  readonly options: ParameterOptions;
}

async function loadParameter({ backend, checkpoint, parameters, options }: Load, tensor: string): Promise<void> {
  const { dtype, blocks, isTransposed, nameOf } = options;
  const name = nameOf?.(tensor) ?? tensor;
  const wanted = (TABLE.test(name) ? TABLE_DTYPES[dtype] : undefined) ?? (dtype === "auto" ? "bf16" : dtype);
  const storage = { dtype: wanted, transposed: isTransposed?.(name) ?? false, exact: options.exact ?? false };
  const kept = storage.transposed ? undefined : blocks?.get(tensor);
  const form = kept && BLOCK_FORMS[kept.dtype];
  if (form && (dtype === "auto" ? backend.info.weightDtypes.includes(form) : wanted === form)) {
    const weight = backend.weight(await kept.read(options), { ...storage, dtype: form });
    parameters.weights.set(name, weight);
  } else addParameter(backend, parameters, { ...await checkpoint.read(tensor, options), name }, storage);
}

function addParameter(
  backend: Backend,
  { weights, vectors }: ModelParameters,
  { name, ...stored }: StoredTensor & { readonly name: string },
  storage: WeightOptions,
): void {
  const [count = 0, ...shape] = stored.shape;
  if (shape.length === 0) vectors.set(name, backend.tensor(stored.shape, toFloat32(stored)));
  else if (shape.length === 1) weights.set(name, backend.weight(matrixValues(stored), storage));
  else {
    const length = stored.bytes.length / count;
    for (let e = 0; e < count; e++) {
      const expert = { ...stored, shape, bytes: stored.bytes.subarray(e * length, (e + 1) * length) };
      weights.set(`${name}.${e}`, backend.weight(matrixValues(expert), storage));
    }
  }
}

function matrixValues({ dtype, shape, bytes }: StoredTensor): MatrixValues {
  const [rows = 0, columns = 0] = shape;
  if (dtype === "F16") return { shape: [rows, columns], dtype: "f16", bytes };
  if (dtype === "BF16") return { shape: [rows, columns], dtype: "bf16", bytes };
  if (dtype === "F32") return { shape: [rows, columns], dtype: "f32", bytes };
  return floatMatrix([rows, columns], toFloat32({ dtype, shape, bytes }));
}
