/**
 * loralib's `Conv2d`: A (r k, in k), B (out k, r k), and B A is seen as the weight (out, in, k, k), row by row. With
 * X[a] the block a of in k numbers in a row of A (in, k, k):
 *
 * ```text
 * PEFT's to loralib's  A[a r + j] = X_j[a]                B[o k + a, a r + j] = B_o[j], 0 elsewhere: the same rank r
 * loralib's to PEFT's  A[a r k + j] = A_j in block a, 0 elsewhere      B[o, a r k + j] = B[o k + a, j]: of rank r k²
 * ```
 *
 * Both are exact, and what one of them made is brought back by the other, bit for bit. `Conv1d` and `Conv3d` of loralib
 * work with kernels of length 1 only, where the factors are PEFT's.
 *
 * @module
 */

import { LimitError, MismatchError } from "../../errors.ts";
import { isSameTensor, type StoredTensor } from "../../formats/dtype.ts";
import { quote } from "../../formats/quote.ts";
import { sizeOf } from "../../shape.ts";

/** `kernel_size` by path or tail of path: a number for two dimensions, or the length of each. */
export type KernelSizes = Readonly<Record<string, number | readonly number[]>>;

/** A and B of one layer. */
export interface ConvFactors {
  /** A. */
  readonly a: StoredTensor;
  /** B. */
  readonly b: StoredTensor;
}

/**
 * Finds the kernel of a layer.
 *
 * @param path Path of the layer.
 * @param kernels The kernels known.
 * @returns Its lengths, or undefined for a layer without one.
 */
export function kernelOf(path: string, kernels: KernelSizes): readonly number[] | undefined {
  const size = valueOf(path, kernels);
  return typeof size === "number" ? [size, size] : size;
}

/**
 * Finds what is said of a path.
 *
 * @param path The path.
 * @param values What is said, by path or tail of path.
 * @returns The value of the longest tail, or undefined.
 */
export function valueOf<T>(path: string, values: Readonly<Record<string, T>>): T | undefined {
  for (let tail = path;; tail = tail.slice(tail.indexOf(".") + 1)) {
    if (Object.hasOwn(values, tail)) return values[tail];
    if (!tail.includes(".")) return undefined;
  }
}

/** What bounds the factors made of a file's. */
export interface LayerBounds {
  /** Name of the file, for messages. */
  readonly file: string;
  /** Most rank. */
  readonly maxRank: number;
  /** Is told, before they are allocated, how many bytes a tensor takes; throws where all take too many. */
  spend(tensor: string, bytes: number): void;
}

/**
 * Makes PEFT's factors of loralib's.
 *
 * @param factors Those of the file.
 * @param kernel Lengths of the kernel.
 * @param at The layer, its file and what bounds the result.
 * @returns PEFT's, of rank r if loralib's have the form that {@linkcode toLoralibConv} gives them, else of rank r k².
 * @throws {MismatchError} If they are not those of such a layer.
 * @throws {LimitError} If their rank is above its cap.
 */
export function fromLoralibConv(
  { a, b }: ConvFactors,
  kernel: readonly number[],
  at: LayerBounds & { readonly path: string },
): ConvFactors {
  const message = `Cannot place tensor ${quote(`${at.path}.lora_A`)} of ${quote(at.file)}`;
  const k = requireSquare(kernel, message, { tensor: at.path, file: at.file });
  const [rows = 0, columns = 0] = a.shape;
  const isMatrix = a.shape.length === 2 && b.shape.length === 2 && b.shape[1] === rows;
  if (!isMatrix || [rows, columns, b.shape[0]!].some((length) => length === 0 || length % k !== 0)) {
    const tensor = `${at.path}.lora_B`;
    const found = `factors of shapes [${a.shape.join(", ")}] and [${b.shape.join(", ")}]`;
    const message = `Cannot place tensor ${quote(tensor)} of ${quote(at.file)}, ${found}`;
    const expected = `(r k, in k) and (out k, r k) of a convolution with k = ${k}`;
    throw new MismatchError(`${message}: expected ${expected}`, { file: at.file, tensor, found, expected });
  }
  checkRank(rows / k, at);
  const plain = collapse({ a, b }, k);
  if (isSame(spread(plain, k), { a, b })) return withKernel(plain, kernel);
  checkRank(rows * k, at);
  at.spend(`${at.path}.lora_A`, a.bytes.length * k * k);
  return withKernel(expand({ a, b }, k), kernel);
}

function checkRank(rank: number, { path, file, maxRank }: LayerBounds & { readonly path: string }): void {
  if (rank <= maxRank) return;
  const tensor = `${path}.lora_A`;
  const message = `Cannot read tensor ${quote(tensor)} of ${quote(file)} and rank ${rank}: expected at most ${maxRank}`;
  throw new LimitError(message, { file, tensor, field: "rank", limit: maxRank, value: rank });
}

/** What {@linkcode toLoralibConv} makes. */
export interface LoralibConv extends ConvFactors {
  /** loralib's r. */
  readonly rank: number;
}

/**
 * Makes loralib's factors of PEFT's.
 *
 * @param factors PEFT's.
 * @param module Path of the layer, for messages.
 * @returns loralib's.
 * @throws {MismatchError} If loralib has no such kernel.
 */
export function toLoralibConv({ a, b }: ConvFactors, module: string): LoralibConv {
  const [rank = 0, ...rest] = a.shape;
  const k = requireSquare(rest.slice(1), `Cannot write module ${quote(module)} for loralib`, { tensor: module });
  const flat = {
    a: reshape(a, [rank, a.shape[1]! * k ** (rest.length - 1)]),
    b: reshape(b, [b.shape[0]!, rank]),
  };
  if (k > 1 && rank % (k * k) === 0) {
    const own = contract(flat, k);
    if (isSame(expand(own, k), flat)) return { ...own, rank: rank / k ** 2 };
  }
  return { ...spread(flat, k), rank };
}

function requireSquare(
  kernel: readonly number[],
  message: string,
  at: { readonly tensor: string; readonly file?: string },
): number {
  const [k = 0] = kernel;
  const isSquare = Number.isSafeInteger(k) && k >= 1 && kernel.every((length) => length === k);
  if (isSquare && (k === 1 ? kernel.length <= 3 : kernel.length === 2)) return k;
  const found = kernel.length <= 3 ? `[${kernel.join(", ")}]` : `of ${kernel.length} lengths`;
  const expected = "two dimensions of one length, or a kernel of length 1: loralib computes no other";
  throw new MismatchError(`${message}, a convolution with kernel_size ${found}: expected ${expected}`, {
    code: "kernel",
    ...at,
    field: "kernel_size",
    found: kernel,
    expected,
  });
}

/** PEFT's factors of what has loralib's form. */
function collapse({ a, b }: ConvFactors, k: number): ConvFactors {
  const [rows, columns] = [a.shape[0]! / k, a.shape[1]!];
  const outputs = b.shape[0]! / k;
  const blocks = runs(k * rows, (i) => [i % k * rows + Math.floor(i / k), 0, Math.floor(i / k), i % k * columns]);
  return {
    a: copyRuns(a, [rows, columns * k], columns, blocks),
    b: copyRuns(b, [outputs, rows], rows, runs(outputs, (o) => [o * k, 0, o, 0])),
  };
}

/** The inverse of {@linkcode collapse}. */
function spread({ a, b }: ConvFactors, k: number): ConvFactors {
  const [rank, columns] = [a.shape[0]!, a.shape[1]! / k];
  const outputs = b.shape[0]!;
  const blocks = runs(k * rank, (i) => [i % rank, Math.floor(i / rank) * columns, i, 0]);
  const places = runs(outputs * k, (i) => [Math.floor(i / k), 0, i, i % k * rank]);
  return {
    a: copyRuns(a, [rank * k, columns], columns, blocks),
    b: copyRuns(b, [outputs * k, rank * k], rank, places),
  };
}

/** PEFT's factors of rank r k². */
function expand({ a, b }: ConvFactors, k: number): ConvFactors {
  const [rows, columns] = a.shape as readonly [number, number];
  const blocks = runs(rows * k, (i) => [i % rows, 0, i, Math.floor(i / rows) * columns]);
  return {
    a: copyRuns(a, [rows * k, columns * k], columns, blocks),
    b: reshape(b, [b.shape[0]! / k, rows * k]),
  };
}

/** The inverse of {@linkcode expand}. */
function contract({ a, b }: ConvFactors, k: number): ConvFactors {
  const [rows, columns] = [a.shape[0]! / k, a.shape[1]! / k];
  return {
    a: copyRuns(a, [rows, columns], columns, runs(rows, (i) => [i, 0, i, 0])),
    b: reshape(b, [b.shape[0]! * k, rows]),
  };
}

/** From row and column, to row and column. */
type Run = readonly [fromRow: number, fromColumn: number, toRow: number, toColumn: number];

/** Copies runs of a matrix into zeros. */
function copyRuns(
  { dtype, shape, bytes }: StoredTensor,
  to: readonly [rows: number, columns: number],
  length: number,
  places: Iterable<Run>,
): StoredTensor {
  const columns = shape[1]!;
  const width = bytes.length / (shape[0]! * columns);
  const copy = new Uint8Array(to[0] * to[1] * width);
  for (const [fromRow, fromColumn, toRow, toColumn] of places) {
    const start = (fromRow * columns + fromColumn) * width;
    copy.set(bytes.subarray(start, start + length * width), (toRow * to[1] + toColumn) * width);
  }
  return { dtype, shape: to, bytes: copy };
}

function reshape({ dtype, bytes }: StoredTensor, shape: readonly number[]): StoredTensor {
  return { dtype, shape, bytes };
}

function withKernel({ a, b }: ConvFactors, kernel: readonly number[]): ConvFactors {
  const area = sizeOf(kernel);
  return {
    a: reshape(a, [a.shape[0]!, a.shape[1]! / area, ...kernel]),
    b: reshape(b, [...b.shape, ...kernel.map(() => 1)]),
  };
}

function isSame(x: ConvFactors, y: ConvFactors): boolean {
  return isSameTensor(x.a, y.a) && isSameTensor(x.b, y.b);
}

/** One at a time: they may be as many as the elements of a file. */
function* runs(count: number, runOf: (i: number) => Run): Generator<Run> {
  for (let i = 0; i < count; i++) yield runOf(i);
}
