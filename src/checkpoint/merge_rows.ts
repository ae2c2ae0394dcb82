import { type FloatDtype, isFiniteTensor } from "../adapter/factor_values.ts";
import type { Backend, Weight } from "../backend.ts";
import { NumericError } from "../errors.ts";
import { encodeBf16 } from "../formats/bfloat16.ts";
import { type StoredTensor, toFloat32 } from "../formats/dtype.ts";
import { encodeF16 } from "../formats/float16.ts";
import { quote } from "../formats/quote.ts";
import { type DeltaFactors, layOutFactors, type Magnitudes, magnitudesOf } from "./merge_factors.ts";
import type { MergeBranch, MergeTarget } from "./merge_plan.ts";

/** Merges the rows of one stored tensor, piece by piece. */
export class RowMerger implements Disposable {
  readonly #backend: Backend;
  readonly #target: MergeTarget;
  readonly #steps: readonly PackedStep[];

  /** Packs the factors of the tensor's branches. */
  constructor(backend: Backend, target: MergeTarget) {
    this.#backend = backend;
    this.#target = target;
    const steps: PackedStep[] = [];
    this.#steps = steps;
    try {
      for (const step of target.steps) {
        if (step.kind === "branch") pack(backend, step, target.columns, steps);
        else steps.push({ kind: "vector", values: toFloat32(step.values), factor: step.factor });
      }
    } catch (error) {
      this[Symbol.dispose]();
      throw error;
    }
  }

  /** Whether all rows must be measured before any is merged: DoRA's norms may run over them. */
  get needsMeasuring(): boolean {
    return this.#steps.some((step) => step.kind === "branch" && step.sums !== undefined);
  }

  /**
   * Adds rows to the norms that run over all of them.
   *
   * @param start Index of the first row.
   * @param rows The stored rows.
   */
  async measure(start: number, rows: StoredTensor): Promise<void> {
    const base = this.#widen(start, rows);
    for (const step of this.#steps) {
      if (step.kind !== "branch" || !step.sums) continue;
      addSquares(step.sums, base, await this.#delta(step, start, base.length));
    }
  }

  /**
   * Merges rows: W + Σ s B A, and what else the target asks for. Plain sums are taken in 32 bits, as each product is.
   *
   * @param start Index of the first row.
   * @param rows The stored rows.
   * @param dtype What the merged rows are rounded to, once.
   * @param tensor Name of the tensor, for the error.
   * @returns The merged rows as stored.
   * @throws {NumericError} If a merged value is not finite, or not in that dtype.
   */
  async merge(start: number, rows: StoredTensor, dtype: FloatDtype, tensor: string): Promise<Uint8Array> {
    const { groups, rows: replaced } = this.#target;
    const plain = groups === 1 && replaced.length === 0 && this.#steps.every((step) => !isRescaling(step));
    if (plain) {
      const sum = await this.#sum(start, rows.shape[0]! * this.#target.columns);
      return addFinite(rows, sum, dtype, tensor);
    }
    const values = await this.#compute(this.#widen(start, rows), start);
    return encodeFinite(Float32Array.from(values), dtype, tensor);
  }

  async #sum(start: number, size: number): Promise<Float32Array> {
    let sum: Float32Array | null = null;
    for (const step of this.#steps) {
      const delta = await this.#delta(step, start, size);
      if (sum === null) sum = delta;
      else for (let i = 0; i < sum.length; i++) sum[i]! += delta[i]!;
    }
    return sum ?? new Float32Array(size);
  }

  async #compute(base: Float64Array, start: number): Promise<Float64Array> {
    const { columns } = this.#target;
    const merged = base.slice();
    for (const step of this.#steps) {
      const delta = await this.#delta(step, start, base.length);
      for (let i = 0; i < merged.length; i++) merged[i]! += delta[i]!;
      if (step.kind !== "branch" || !step.magnitudes) continue;
      const { perColumn, values } = step.magnitudes;
      const norms = step.sums?.map(Math.sqrt) ?? rowNorms(base, delta, columns);
      const factors = norms.map((norm, i) => values[perColumn ? i : start + i]! / norm);
      for (let i = 0, row = 0; i < merged.length; row++) {
        for (let column = 0; column < columns; column++, i++) merged[i]! *= factors[perColumn ? column : row]!;
      }
    }
    return merged;
  }

  /** The rows in 64 bits, with those that are replaced, and with the zeros between groups. */
  #widen(start: number, rows: StoredTensor): Float64Array {
    const { columns, groups, rows: replaced, shape } = this.#target;
    const count = rows.shape[0]!;
    const stored = toFloat32(rows);
    const values = new Float64Array(count * columns);
    const width = columns / groups;
    for (let i = 0; i < count; i++) {
      const group = groups === 1 ? 0 : Math.floor((start + i) / (shape[0]! / groups));
      values.set(stored.subarray(i * width, (i + 1) * width), i * columns + group * width);
    }
    for (const { indices, rows: table } of replaced) {
      const given = toFloat32(table);
      indices.forEach((index, k) => {
        if (index < start || index >= start + count) return;
        values.set(given.subarray(k * columns, (k + 1) * columns), (index - start) * columns);
      });
    }
    return values;
  }

  /** What a step adds to `size` elements from row `start` on. */
  async #delta(step: PackedStep, start: number, size: number): Promise<Float32Array> {
    if (step.kind === "vector") return step.values.map((value) => step.factor * value);
    const { columns } = this.#target;
    const end = start + size / columns;
    const parts = step.parts.filter((part) => part.start < end && part.end > start);
    const [first] = parts;
    if (first && first.start <= start && first.end >= end) {
      return await this.#product(first, step.scaling, { start, end });
    }
    const delta = new Float32Array(size);
    for (const part of parts) {
      const range = { start: Math.max(start, part.start), end: Math.min(end, part.end) };
      delta.set(await this.#product(part, step.scaling, range), (range.start - start) * columns);
    }
    return delta;
  }

  async #product(part: PackedPart, scaling: number, { start, end }: { start: number; end: number }) {
    const backend = this.#backend;
    const b = backend.weight(takeRows(part.left, start - part.start, end - start));
    try {
      const delta = backend.deltaWeight({ a: part.weight, b, scaling });
      try {
        return await backend.read(delta);
      } finally {
        delta.dispose();
      }
    } finally {
      b.dispose();
    }
  }

  /** Frees the packed factors. */
  [Symbol.dispose](): void {
    for (const step of this.#steps) {
      if (step.kind === "branch") { for (const { weight } of step.parts) weight.dispose(); }
    }
  }
}

interface PackedPart extends DeltaFactors {
  readonly weight: Weight;
}

interface PackedBranch {
  readonly kind: "branch";
  readonly parts: PackedPart[];
  readonly scaling: number;
  readonly magnitudes: Magnitudes | undefined;
  /** Σ (W + ΔW)² per column, as far as it is measured. */
  readonly sums: Float64Array | undefined;
}

type PackedStep = PackedBranch | { readonly kind: "vector"; readonly values: Float32Array; readonly factor: number };

function pack(backend: Backend, branch: MergeBranch, columns: number, steps: PackedStep[]): void {
  const magnitudes = magnitudesOf(branch);
  const sums = magnitudes?.perColumn ? new Float64Array(columns) : undefined;
  const parts: PackedPart[] = [];
  steps.push({ kind: "branch", parts, scaling: branch.scaling, magnitudes, sums });
  for (const part of layOutFactors(branch)) {
    parts.push({ ...part, weight: backend.weight(part.right, { transposed: part.isRightTransposed }) });
  }
}

function isRescaling(step: PackedStep): boolean {
  return step.kind === "branch" && step.magnitudes !== undefined;
}

/** Adds Σ (W + ΔW)² of some rows to the sum of every column. */
function addSquares(sums: Float64Array, base: Float64Array, delta: Float32Array): void {
  for (let i = 0; i < base.length;) {
    for (let column = 0; column < sums.length; column++, i++) sums[column]! += (base[i]! + delta[i]!) ** 2;
  }
}

/** ‖W + ΔW‖ of every row. */
function rowNorms(base: Float64Array, delta: Float32Array, columns: number): Float64Array {
  return new Float64Array(base.length / columns).map((_, row) => {
    let sum = 0;
    for (let i = row * columns; i < (row + 1) * columns; i++) sum += (base[i]! + delta[i]!) ** 2;
    return Math.sqrt(sum);
  });
}

function takeRows(
  { dtype, shape: [, columns], bytes }: DeltaFactors["left"],
  start: number,
  count: number,
): DeltaFactors["left"] {
  const row = columns * (dtype === "f32" ? 4 : 2);
  return { dtype, shape: [count, columns], bytes: bytes.subarray(start * row, (start + count) * row) };
}

/** Elements that are added at a time: what is in between stays in the first cache. */
const CHUNK = 4096;

/**
 * Adds values to stored ones in 32 bits and rounds the sums to a stored dtype.
 *
 * @param stored The stored values.
 * @param values What is added.
 * @param dtype The dtype.
 * @param tensor Name of the tensor, for the error.
 * @returns The stored bytes.
 * @throws {NumericError} If a sum is not finite, or not in that dtype.
 */
function addFinite({ dtype: from, bytes }: StoredTensor, values: Float32Array, dtype: FloatDtype, tensor: string) {
  const [width, outWidth] = [bytes.length / values.length, dtype === "F32" ? 4 : 2];
  const out = new Uint8Array(values.length * outWidth);
  const sums = new Float32Array(CHUNK);
  for (let at = 0; at < values.length; at += CHUNK) {
    const count = Math.min(CHUNK, values.length - at);
    const chunk = toFloat32({ dtype: from, shape: [count], bytes: bytes.subarray(at * width, (at + count) * width) });
    for (let i = 0; i < count; i++) sums[i] = chunk[i]! + values[at + i]!;
    const encoded = encodeFloats(sums.subarray(0, count), dtype);
    if (!isFiniteTensor({ dtype, shape: [count], bytes: encoded })) throw notFinite(tensor, dtype, sums);
    out.set(encoded, at * outWidth);
  }
  return out;
}

/** Rounds values to a stored dtype, once, to nearest even; none of them may be NaN or infinite then. */
function encodeFinite(values: Float32Array, dtype: FloatDtype, tensor: string): Uint8Array {
  const bytes = encodeFloats(values, dtype);
  if (isFiniteTensor({ dtype, shape: [values.length], bytes })) return bytes;
  throw notFinite(tensor, dtype, values);
}

function notFinite(tensor: string, dtype: FloatDtype, values: Float32Array): NumericError {
  const message = `Cannot write tensor ${quote(tensor)} as ${dtype}: it would hold NaN or infinity`;
  return new NumericError(message, { tensor, found: values.find((value) => !Number.isFinite(value)) });
}

/** Rounds values to a stored dtype, whatever they are. */
export function encodeFloats(values: Float32Array, dtype: FloatDtype): Uint8Array {
  if (dtype === "F16") return encodeF16(values);
  if (dtype === "BF16") return encodeBf16(values);
  return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
}
