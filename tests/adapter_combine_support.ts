/**
 * Adapters made by hand, their updates in naive float64, and PEFT's formulas written down once more.
 *
 * @module
 */
import assert from "node:assert/strict";
import type { Adapter, LoraModule } from "../src/adapter/adapter.ts";
import { loadAdapter } from "../src/adapter/load.ts";
import { fromFloat32, type StoredTensor, toFloat32 } from "../src/formats/dtype.ts";
import { encodeSafetensors } from "../src/formats/safetensors_writer.ts";
import { add, type Matrix, matrix, product, scaled } from "./reference.ts";
import { random } from "./values.ts";

/** A module of a made adapter. */
export interface ModuleSpec {
  readonly rank: number;
  readonly inFeatures?: number;
  readonly outFeatures?: number;
}

/** An adapter with random factors. */
export async function makeAdapter(
  seed: number,
  modules: Readonly<Record<string, ModuleSpec>>,
  config: Readonly<Record<string, unknown>> = {},
): Promise<Adapter> {
  const next = random(seed);
  const factor = (rows: number, columns: number): StoredTensor => {
    return fromFloat32(Float32Array.from({ length: rows * columns }, next), [rows, columns]);
  };
  const tensors = new Map<string, StoredTensor>();
  for (const [path, { rank, inFeatures = 12, outFeatures = 9 }] of Object.entries(modules)) {
    tensors.set(`base_model.model.${path}.lora_A.weight`, factor(rank, inFeatures));
    tensors.set(`base_model.model.${path}.lora_B.weight`, factor(outFeatures, rank));
  }
  const ranks = Object.values(modules).map(({ rank }) => rank);
  const pattern = Object.fromEntries(Object.entries(modules).map(([path, { rank }]) => [path, rank]));
  const whole = {
    peft_type: "LORA",
    r: ranks[0],
    lora_alpha: 6,
    target_modules: Object.keys(modules),
    ...(ranks.some((rank) => rank !== ranks[0]) && { rank_pattern: pattern }),
    ...config,
  };
  return await loadAdapter(
    new Map([
      ["adapter_config.json", new TextEncoder().encode(JSON.stringify(whole))],
      ["adapter_model.safetensors", encodeSafetensors(tensors)],
    ]),
  );
}

/** The values of a stored matrix. */
export function valuesOf(tensor: StoredTensor): Matrix {
  const values = toFloat32(tensor);
  const [rows, columns] = tensor.shape;
  return matrix(rows!, columns!, (i, j) => values[i * columns! + j]!);
}

/** s B A. */
export function deltaOf(module: LoraModule): Matrix {
  return scaled(product(valuesOf(module.loraB), valuesOf(module.loraA)), module.scaling);
}

/** Σ weight · ΔW of a module. */
export function wantedSum(terms: readonly (readonly [adapter: Adapter, weight: number])[], module: string): Matrix {
  const updates = terms.flatMap(([{ modules }, weight]) => {
    const found = modules.get(module);
    return found ? [scaled(deltaOf(found), weight)] : [];
  });
  return updates.reduce(add);
}

/** Root of the sum of squares. */
export function norm({ values }: Matrix): number {
  return Math.sqrt(values.reduce((sum, value) => sum + value * value, 0));
}

/** ‖got − want‖ / ‖want‖. */
export function distance(got: Matrix, want: Matrix): number {
  return norm(add(got, scaled(want, -1))) / norm(want);
}

/** The error that a report has for a module. */
export function reportedError({ report }: Adapter, module: string): number {
  const line = report.find((line) => line.module === module && line.error !== undefined);
  assert.ok(line?.error !== undefined, `no error of ${module} in the report`);
  return line.error;
}
