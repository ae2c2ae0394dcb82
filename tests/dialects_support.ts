/**
 * Random adapters, and what two of them have in common, for the tests of dialects.
 *
 * @module
 */
import assert from "node:assert/strict";
import type { Adapter, LoraModule } from "../src/adapter/adapter.ts";
import type { BaseFacts } from "../src/adapter/dialects/options.ts";
import { loadAdapter } from "../src/adapter/load.ts";
import { encodeBf16 } from "../src/formats/bfloat16.ts";
import { type StoredTensor, toFloat32 } from "../src/formats/dtype.ts";
import { encodeF16 } from "../src/formats/float16.ts";
import { encodeSafetensors } from "../src/formats/safetensors_writer.ts";
import { random } from "./values.ts";

/** Heads of the llama that random adapters are for: q has 4 of 4 rows, k and v have 2. */
export const FACTS: Required<BaseFacts> & { readonly modules: readonly string[] } = {
  architecture: "llama",
  heads: 4,
  kvHeads: 2,
  modules: [0, 1, 2].flatMap((layer) => [
    ...["q", "k", "v", "o"].map((part) => `model.layers.${layer}.self_attn.${part}_proj`),
    ...["gate", "up", "down"].map((part) => `model.layers.${layer}.mlp.${part}_proj`),
  ]),
};
const ROWS: Readonly<Record<string, number>> = { k_proj: 8, v_proj: 8, q_proj: 16, o_proj: 12 };

/** A matrix of a type. */
export function store(dtype: string, rows: number, columns: number, value: () => number): StoredTensor {
  const values = Float32Array.from({ length: rows * columns }, value);
  const shape = [rows, columns];
  if (dtype === "BF16") return { dtype, shape, bytes: encodeBf16(values) };
  if (dtype === "F16") return { dtype, shape, bytes: encodeF16(values) };
  return { dtype: "F32", shape, bytes: new Uint8Array(values.buffer) };
}

/** Files of a PEFT folder. */
export function peftFiles(
  config: Readonly<Record<string, unknown>>,
  tensors: ReadonlyMap<string, StoredTensor>,
): Map<string, Uint8Array> {
  return new Map([
    ["adapter_config.json", new TextEncoder().encode(JSON.stringify({ peft_type: "LORA", ...config }))],
    ["adapter_model.safetensors", encodeSafetensors(tensors, new Map([["format", "pt"]]))],
  ]);
}

/** A random adapter: modules, ranks, alphas, patterns, rsLoRA and element types, all by its seed. */
export async function randomAdapter(seed: number): Promise<Adapter> {
  const next = random(seed + 1);
  const uniform = () => (next() + 1) / 2;
  const pick = <T>(items: readonly T[]): T => items[Math.min(items.length - 1, Math.floor(uniform() * items.length))]!;
  const chance = (share: number) => uniform() < share;
  const dtype = pick(["F32", "BF16", "F16"]);
  const alphas = pick([[1, 2, 4, 8, 16], [3, 5, 24, 7], [0.3, 22.627416997969522, 1e-3, -2], [0, 4]]);
  const [r, alpha] = [pick([1, 2, 3, 4, 6, 8, 16]), pick(alphas)];
  const [rankPattern, alphaPattern] = [new Map<string, number>(), new Map<string, number>()];
  const names = FACTS.modules.filter(() => chance(0.4));
  if (names.length === 0) names.push(FACTS.modules[seed % FACTS.modules.length]!);
  const [mixesRanks, mixesAlphas] = [chance(0.4), chance(0.4)];
  const tensors = new Map<string, StoredTensor>();
  for (const name of names) {
    const key = name.replaceAll(".", "\\.");
    const rank = mixesRanks && chance(0.5) ? pick([1, 2, 5, 7]) : r;
    if (rank !== r) rankPattern.set(key, rank);
    if (mixesAlphas && chance(0.5)) alphaPattern.set(key, pick(alphas));
    const rows = ROWS[name.slice(name.lastIndexOf(".") + 1)] ?? 20;
    tensors.set(`base_model.model.${name}.lora_A.weight`, store(dtype, rank, 12, next));
    tensors.set(`base_model.model.${name}.lora_B.weight`, store(dtype, rows, rank, next));
  }
  const config = {
    r,
    lora_alpha: alpha,
    use_rslora: chance(0.25),
    rank_pattern: Object.fromEntries(rankPattern),
    alpha_pattern: Object.fromEntries(alphaPattern),
    target_modules: names,
    lora_dropout: 0.05,
    task_type: "CAUSAL_LM",
  };
  return await loadAdapter(peftFiles(config, tensors));
}

/** s B A in float64, row-major. */
export function deltaOf({ loraA, loraB, scaling, rank, inFeatures, outFeatures }: LoraModule): Float64Array {
  const [a, b] = [toFloat32(loraA), toFloat32(loraB)];
  const delta = new Float64Array(outFeatures * inFeatures);
  for (let i = 0; i < outFeatures; i++) {
    for (let j = 0; j < inFeatures; j++) {
      let sum = 0;
      for (let k = 0; k < rank; k++) sum += b[i * rank + k]! * a[k * inFeatures + j]!;
      delta[i * inFeatures + j] = scaling * sum;
    }
  }
  return delta;
}

/** Holds when the modules, bits and scales are the same. */
export function assertSame(got: Adapter, wanted: Adapter, message: string): void {
  assert.deepEqual([...got.modules.keys()].sort(), [...wanted.modules.keys()].sort(), message);
  for (const [name, module] of wanted.modules) {
    const other = got.modules.get(name)!;
    for (const part of ["loraA", "loraB"] as const) {
      assert.equal(other[part].dtype, module[part].dtype, `${message} ${name}`);
      assert.deepEqual(other[part].shape, module[part].shape, `${message} ${name}`);
      assert.deepEqual(Array.from(other[part].bytes), Array.from(module[part].bytes), `${message} ${name} ${part}`);
    }
    assert.equal(other.scaling, module.scaling, `${message} ${name} scaling`);
  }
}

/** ‖got − wanted‖ / ‖wanted‖ over all modules, whose names must be the same. */
export function deltaError(got: Adapter, wanted: Adapter): number {
  assert.deepEqual([...got.modules.keys()].sort(), [...wanted.modules.keys()].sort());
  let [difference, whole] = [0, 0];
  for (const [name, module] of wanted.modules) {
    const [x, y] = [deltaOf(got.modules.get(name)!), deltaOf(module)];
    assert.equal(x.length, y.length);
    for (let i = 0; i < y.length; i++) {
      difference += (x[i]! - y[i]!) ** 2;
      whole += y[i]! ** 2;
    }
  }
  return difference === 0 ? 0 : Math.sqrt(difference / whole);
}
