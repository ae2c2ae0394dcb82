/**
 * Small bases and adapters of any kind, and the merges of both in float64.
 *
 * @module
 */
import assert from "node:assert/strict";
import type { Adapter } from "../src/adapter/adapter.ts";
import { loadAdapter } from "../src/adapter/load.ts";
import { mergeCheckpoint, type MergeOptions, type MergeReport } from "../src/checkpoint/merge.ts";
import { fromFloat32, type StoredTensor, toFloat32 } from "../src/formats/dtype.ts";
import { memoryFolder, memorySink } from "../src/formats/memory.ts";
import { encodeSafetensors } from "../src/formats/safetensors_writer.ts";
import { MODEL, readTensors, relativeError, text } from "./adapter_fixtures.ts";

const PREFIX = "base_model.model.";

/** Values in ±1 without a pattern. */
export function noise(shape: readonly number[], seed: number): StoredTensor {
  const size = shape.reduce((product, length) => product * length, 1);
  const values = new Float32Array(size);
  for (let i = 0; i < size; i++) {
    const x = 43758.5453 * Math.sin(12.9898 * (i + 1) + 78.233 * seed);
    values[i] = 2 * (x - Math.floor(x)) - 1;
  }
  return fromFloat32(values, shape);
}

/** The values in float64. */
export const at = (tensor: StoredTensor): Float64Array => Float64Array.from(toFloat32(tensor));

/** What a merge wrote. */
export interface Merged {
  readonly tensors: ReadonlyMap<string, StoredTensor>;
  readonly config: Record<string, unknown>;
  readonly report: MergeReport;
}

/** A PEFT folder of these tensors, r 2 and alpha 3 unless a test says otherwise. */
export function adapterOf(
  tensors: Readonly<Record<string, StoredTensor>>,
  config: Readonly<Record<string, unknown>> = {},
): Promise<Adapter> {
  const named = Object.entries(tensors).map(([name, tensor]) => [PREFIX + name, tensor] as const);
  const files = new Map([
    ["adapter_config.json", text({ peft_type: "LORA", r: 2, lora_alpha: 3, ...config })],
    ["adapter_model.safetensors", encodeSafetensors(new Map(named))],
  ]);
  return loadAdapter(files);
}

/** Merges adapters into a base of one file. */
export async function merge(
  base: Readonly<Record<string, StoredTensor>>,
  adapters: readonly (Adapter | { readonly adapter: Adapter; readonly weight: number })[],
  { config = {}, ...options }: MergeOptions & { readonly config?: Readonly<Record<string, unknown>> } = {},
): Promise<Merged> {
  const files = new Map([
    [MODEL, encodeSafetensors(new Map(Object.entries(base)))],
    ["config.json", text(JSON.stringify(config, null, 2))],
  ]);
  const sink = memorySink();
  const weighted = adapters.map((one) => "adapter" in one ? one : { adapter: one });
  const report = await mergeCheckpoint(memoryFolder(files), weighted, sink, options);
  return {
    tensors: await readTensors(sink.files.get(MODEL)!),
    config: JSON.parse(new TextDecoder().decode(sink.files.get("config.json"))),
    report,
  };
}

/** s B A, (out, in) in float64. */
export function product(a: StoredTensor, b: StoredTensor, scaling: number): Float64Array {
  const [rank, out] = [a.shape[0]!, b.shape[0]!];
  const [x, y] = [at(a), at(b)];
  const columns = x.length / rank;
  const values = new Float64Array(out * columns);
  for (let o = 0; o < out; o++) {
    for (let k = 0; k < rank; k++) {
      const factor = scaling * y[o * rank + k]!;
      for (let c = 0; c < columns; c++) values[o * columns + c]! += factor * x[k * columns + c]!;
    }
  }
  return values;
}

/** Xᵀ of X with that many columns. */
export function transposed(values: Float64Array, columns: number): Float64Array {
  const rows = values.length / columns;
  const turned = new Float64Array(values.length);
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++) turned[j * rows + i] = values[i * columns + j]!;
  }
  return turned;
}

/** x + factor y. */
export const plus = (x: Float64Array, y: Float64Array, factor = 1): Float64Array =>
  x.map((value, i) => value + factor * y[i]!);

/** m / ‖of‖ ∘ what, per row. */
export function rescaled(what: Float64Array, of: Float64Array, magnitude: Float64Array): Float64Array {
  const columns = what.length / magnitude.length;
  return what.map((value, i) => {
    const row = Math.floor(i / columns);
    const norm = Math.hypot(...of.subarray(row * columns, (row + 1) * columns));
    return magnitude[row]! / norm * value;
  });
}

/** Asserts the bound of the fixtures for 32-bit floats. */
export function assertClose(got: StoredTensor | undefined, want: Float64Array, what = ""): void {
  assert.ok(got, `${what}: no such tensor`);
  const error = relativeError(toFloat32(got), want);
  assert.ok(error <= 1e-6, `${what} differs by ${error}`);
}
