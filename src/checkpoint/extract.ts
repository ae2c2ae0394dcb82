/**
 * An adapter out of two checkpoints: the best approximation of what tuning changed, layer by layer.
 *
 * @module
 */

import type { Adapter, ReportLine } from "../adapter/adapter.ts";
import { assembleAdapter } from "../adapter/dialects/assemble.ts";
import type { ScaledPair } from "../adapter/dialects/factor_pairs.ts";
import { isEmbedding } from "../adapter/dialects/refusals.ts";
import type { FloatDtype } from "../adapter/factor_values.ts";
import { readFactors, storeMatrix } from "../adapter/factors.ts";
import { type AdapterLimits, DEFAULT_LIMITS } from "../adapter/limits.ts";
import { dot, type Matrix, rowOf, transpose } from "../adapter/linear_algebra.ts";
import { RandomStream } from "../adapter/random.ts";
import type { SingularVectors } from "../adapter/svd.ts";
import type { Backend } from "../backend.ts";
import { MismatchError, NumericError } from "../errors.ts";
import { type Checkpoint, openCheckpoint } from "../formats/checkpoint.ts";
import { bitsPerElement, type StoredTensor, toFloat32 } from "../formats/dtype.ts";
import type { JsonValue } from "../formats/json.ts";
import { quote } from "../formats/quote.ts";
import type { Folder, ReadOptions } from "../formats/source.ts";
import { formatShape } from "../shape.ts";
import { type BaseConfig, readBaseConfig } from "./base_config.ts";
import { residual, sketch, type StreamedMatrix, sumOfSquares } from "./randomised_svd.ts";

/** Options of {@linkcode extractAdapter}: a rank, an energy, or both. */
export interface ExtractOptions extends ReadOptions {
  /** Most rank of a module; with `energy` 256 if absent. */
  readonly rank?: number;
  /** Share of Σ σ² that every module keeps, above 0 up to 1. */
  readonly energy?: number;
  /** Element type of the factors, rounded once; F32 if absent. */
  readonly dtype?: FloatDtype;
  /** Where the products are computed; a WebAssembly backend of its own if absent. */
  readonly backend?: Backend;
  /** Decides the random vectors of the decomposition; 0 if absent. */
  readonly seed?: number;
  /** Name of the adapter; that of the tuned folder if absent. */
  readonly name?: string;
  /** Caps of the result. */
  readonly limits?: AdapterLimits;
  /** Is told before every tensor, in bytes of both checkpoints. */
  readonly onProgress?: (progress: { readonly loaded: number; readonly total: number; readonly name: string }) => void;
}

/** Elements of a piece: 16 MB as floats. */
const PIECE = 2 ** 22;
/** GPT-2's layers that store their weight (in, out). */
const TRANSPOSED = /\.(?:c_attn|c_proj|c_fc)$/;

/**
 * Makes an adapter of what differs between two checkpoints of one model: ΔW = W' − W by a randomised singular value
 * decomposition, of linear layers, embeddings and convolutions. Memory is that of two tensors and a few pieces.
 *
 * The `report` has a line for each module with the error ‖(W' − W) − B A‖ / ‖W' − W‖, and one for each tensor that differs
 * and has no place in factors: norms, biases, fused experts.
 *
 * @param base The checkpoint before.
 * @param tuned The checkpoint after.
 * @param options Rank or energy, and what else there is.
 * @returns The adapter, with s = 1.
 * @throws {MismatchError} If the checkpoints have other tensors or shapes, or nothing differs.
 * @throws {NumericError} If a difference is not finite.
 * @throws {RangeError} If neither rank nor energy is given, or one is out of its range.
 *
 * @example
 * ```ts
 * import { loadAdapter, memoryFolder, memorySink } from "@lowrank/lora";
 * import { extractAdapter, mergeCheckpoint } from "@lowrank/lora/checkpoint";
 * import { folder } from "@lowrank/lora/fs";
 * import assert from "node:assert/strict";
 *
 * const base = folder("examples/models/tiny/base");
 * const tuned = memorySink(); // or a folder
 * await mergeCheckpoint(base, [{ adapter: await loadAdapter(folder("examples/models/tiny/tweets")) }], tuned);
 * const adapter = await extractAdapter(base, memoryFolder(tuned.files), { rank: 4 });
 * assert.equal(adapter.modules.get("model.layers.0.self_attn.q_proj")?.rank, 4);
 * ```
 */
export async function extractAdapter(base: Folder, tuned: Folder, options: ExtractOptions): Promise<Adapter> {
  checkOptions(options);
  const [before, after] = [await openCheckpoint(base, options), await openCheckpoint(tuned, options)];
  const config = await readBaseConfig(base, options);
  const names = commonNames(before, after, config);
  const backend = options.backend ?? await (await import("../open.ts")).openBackend({ prefer: "wasm" });
  const found: Extracted[] = [];
  const sizeOf = (name: string) => before.tensors.get(name)!.length + after.tensors.get(name)!.length;
  const total = names.reduce((sum, name) => sum + sizeOf(name), 0);
  let loaded = 0;
  try {
    for (const name of names) {
      options.onProgress?.({ loaded, total, name });
      options.signal?.throwIfAborted();
      const pair = { name, before: await before.read(name, options), after: await after.read(name, options), config };
      const extracted = await extractTensor(pair, { ...options, backend });
      if (extracted) found.push(extracted);
      loaded += sizeOf(name);
    }
  } finally {
    if (!options.backend) backend.dispose();
  }
  const pairs = found.flatMap(({ pair }) => pair ?? []);
  if (pairs.length === 0) {
    const message = `Cannot extract an adapter from ${quote(tuned.name)}, whose layers are those of ${
      quote(base.name)
    }`;
    throw new MismatchError(`${message}: expected a difference`, { file: tuned.name });
  }
  const fields = fieldsOf(base, config);
  const report = found.map(({ line }) => line);
  const { name = tuned.name, limits } = options;
  return await assembleAdapter({ name, file: tuned.name, pairs, fields, report, limits });
}

function fieldsOf(base: Folder, config: BaseConfig): Map<string, JsonValue> {
  const isCausal = config.architectures.some((name) => name.endsWith("ForCausalLM") || name === "GPT2LMHeadModel");
  return new Map<string, JsonValue>([
    ["base_model_name_or_path", base.name],
    ["task_type", isCausal ? "CAUSAL_LM" : null],
    ["fan_in_fan_out", isGpt2(config)],
  ]);
}

/** One tensor that differs. */
interface Extracted {
  readonly line: ReportLine;
  /** Its factors, where it has some. */
  readonly pair?: ScaledPair;
}

interface TensorPair {
  readonly name: string;
  readonly before: StoredTensor;
  readonly after: StoredTensor;
  readonly config: BaseConfig;
}

function checkOptions({ rank, energy, seed = 0 }: ExtractOptions): void {
  const refuse = (field: string, found: unknown, expected: string) =>
    new RangeError(`Cannot extract an adapter with ${field} ${found}: expected ${expected}`);
  if (rank === undefined && energy === undefined) throw refuse("rank", rank, "it or an energy");
  if (rank !== undefined && !(Number.isSafeInteger(rank) && rank >= 1)) throw refuse("rank", rank, "an integer from 1");
  if (energy !== undefined && !(energy > 0 && energy <= 1)) throw refuse("energy", energy, "above 0 up to 1");
  if (!Number.isSafeInteger(seed)) throw refuse("seed", seed, "an integer");
}

/** The tensors of both; a tied head may be stored by one and not by the other. */
function commonNames(before: Checkpoint, after: Checkpoint, { tied }: BaseConfig): readonly string[] {
  const isHead = (name: string) => tied === true && name === "lm_head.weight";
  const missing = [...before.tensors.keys()].filter((name) => !after.tensors.has(name) && !isHead(name));
  const unexpected = [...after.tensors.keys()].filter((name) => !before.tensors.has(name) && !isHead(name));
  if (missing.length + unexpected.length > 0) {
    const message = `Cannot extract an adapter from ${quote(after.name)} with ${missing.length} tensors missing and ` +
      `${unexpected.length} more, first ${quote([...missing, ...unexpected][0]!)}`;
    const expected = `those of ${quote(before.name)}`;
    throw new MismatchError(`${message}: expected ${expected}`, { file: after.name, missing, unexpected });
  }
  const names = [...before.tensors.keys()].filter((name) => after.tensors.has(name));
  for (const name of names) {
    const [expected, found] = [before.tensors.get(name)!.shape, after.tensors.get(name)!.shape];
    if (expected.join() === found.join()) continue;
    const message = `Cannot extract tensor ${quote(name)} of shape ${formatShape(found)}`;
    throw new MismatchError(`${message}: expected ${formatShape(expected)}`, {
      file: after.name,
      tensor: name,
      found,
      expected,
    });
  }
  return names;
}

async function extractTensor(
  pair: TensorPair,
  options: ExtractOptions & { readonly backend: Backend },
): Promise<Extracted | null> {
  const { name, before, after, config } = pair;
  if (before.dtype === after.dtype && before.bytes.every((byte, i) => byte === after.bytes[i])) return null;
  const module = name.replace(/\.weight$/, "");
  const hasPlace = name.endsWith(".weight") && before.shape.length >= 2 && before.shape.every((length) => length > 0);
  const isTied = config.tied === true && isEmbedding(module);
  const matrix = differenceOf(pair);
  if (!hasPlace || isTied) return leftOut(pair, matrix, isTied);
  const { rank = options.limits?.rank ?? DEFAULT_LIMITS.rank, energy: share, seed = 0 } = options;
  const random = new RandomStream(seed, module);
  const { vectors, energy } = await sketch(matrix, { ...options, rank, random });
  if (!Number.isFinite(energy)) throw notFinite(name);
  if (energy === 0) return null;
  const kept = keptRank(vectors, { rank, wanted: share === undefined ? Infinity : share * energy });
  const factors = { left: cut(vectors.left, kept), right: cut(vectors.right, kept) };
  const stored = storePair(module, factors, { pair, options });
  const error = Math.sqrt(await residual(matrix, storedFactors(stored, isTurned(module, config)), options) / energy);
  const what = `rank ${kept} of ${Math.min(matrix.rows, matrix.columns)}`;
  return { pair: stored, line: { module, what, why: "the largest singular values of what tuning changed", error } };
}

/** The factors as they are stored, rounded. */
function storedFactors({ a, b }: ScaledPair, turned: boolean): { readonly left: Matrix; readonly right: Matrix } {
  const factors = readFactors({ loraA: a, loraB: b });
  return turned ? { left: factors.a, right: factors.b } : { left: factors.b, right: factors.a };
}

/** W' − W as rows of the first dimension, decoded piece by piece. */
function differenceOf({ before, after }: TensorPair): StreamedMatrix {
  const [rows = 1, ...others] = before.shape;
  const columns = others.reduce((product, length) => product * length, 1);
  return {
    rows,
    columns,
    *pieces() {
      const olds = rowPieces(before, columns);
      for (const piece of rowPieces(after, columns)) {
        const old: Float32Array = olds.next().value!;
        yield piece.map((value, i) => value - old[i]!);
      }
    },
  };
}

function* rowPieces(tensor: StoredTensor, columns: number): Generator<Float32Array, undefined> {
  const width = columns * bitsPerElement(tensor.dtype) / 8;
  const step = width * Math.max(1, Math.floor(PIECE / columns));
  for (let from = 0; from < tensor.bytes.length; from += step) {
    const bytes = tensor.bytes.subarray(from, from + step);
    yield toFloat32({ ...tensor, shape: [bytes.length / width, columns], bytes });
  }
}

function leftOut({ name, before }: TensorPair, matrix: StreamedMatrix, isTied: boolean): Extracted {
  const difference = sumOfSquares(matrix.pieces());
  if (!Number.isFinite(difference)) throw notFinite(name);
  const change = Math.sqrt(difference / sumOfSquares(rowPieces(before, matrix.columns))).toPrecision(2);
  const why = isTied ? "input embedding and head are one table here, two in an adapter" : "it is no matrix of a layer";
  return { line: { module: name, what: `differs by ${change} of its size and is left out`, why } };
}

function notFinite(tensor: string): NumericError {
  const message = `Cannot extract tensor ${quote(tensor)} with a difference that is not finite`;
  return new NumericError(`${message}: expected finite weights in both checkpoints`, { tensor });
}

function keptRank({ sigma }: SingularVectors, { rank, wanted }: { readonly rank: number; readonly wanted: number }) {
  let captured = 0;
  let kept = 0;
  while (kept < Math.min(rank, sigma.length) && sigma[kept]! > 0 && captured < wanted) captured += sigma[kept++]! ** 2;
  return Math.max(1, kept);
}

/** A copy of the first rows. */
function cut({ columns, values }: Matrix, rows: number): Matrix {
  return { rows, columns, values: values.slice(0, rows * columns) };
}

/** B and A in PEFT's shapes, balanced: √σ in each. */
function storePair(
  module: string,
  { left, right }: { readonly left: Matrix; readonly right: Matrix },
  { pair: { before, config }, options }: { readonly pair: TensorPair; readonly options: ExtractOptions },
): ScaledPair {
  for (let i = 0; i < left.rows; i++) balance(rowOf(left, i), rowOf(right, i));
  const turned = isTurned(module, config);
  const [a, b] = turned ? [left, right] : [right, left];
  const rank = a.rows;
  const [, ...inner] = before.shape;
  const shapeA = turned ? [rank, a.columns] : [rank, ...inner];
  const store = { dtype: options.dtype ?? "F32", module } as const;
  const name = `${module}.weight`;
  return {
    name: module,
    alpha: rank,
    isEmbedding: isEmbedding(module),
    a: { name, ...storeMatrix(a, shapeA, store) },
    b: { name, ...storeMatrix(transpose(b), [b.columns, rank, ...inner.slice(1).map(() => 1)], store) },
  };
}

function balance(left: Float64Array, right: Float64Array): void {
  const root = Math.sqrt(Math.sqrt(dot(left, left)));
  if (root === 0) return;
  for (let i = 0; i < left.length; i++) left[i]! /= root;
  for (let i = 0; i < right.length; i++) right[i]! *= root;
}

/** Whether the rows of the weight are inputs: tables, and layers stored (in, out). */
function isTurned(module: string, config: BaseConfig): boolean {
  return isEmbedding(module) || (isGpt2(config) && TRANSPOSED.test(module));
}

function isGpt2({ architectures }: BaseConfig): boolean {
  return architectures.some((name) => name.startsWith("GPT2"));
}
