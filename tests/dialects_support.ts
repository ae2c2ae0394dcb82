/**
 * Random adapters, and what two of them have in common, for the tests of dialects.
 *
 * @module
 */
import assert from "node:assert/strict";
import fc from "fast-check";
import type { Adapter, LoraModule } from "../src/adapter/adapter.ts";
import type { BaseFacts } from "../src/adapter/dialects/options.ts";
import { loadAdapter } from "../src/adapter/load.ts";
import { fromFloat32, type StoredTensor, toFloat32 } from "../src/formats/dtype.ts";
import { readGguf, readGgufTensor } from "../src/formats/gguf.ts";
import { encodeGguf, type GgufField } from "../src/formats/gguf_writer.ts";
import { memoryFolder, memorySource } from "../src/formats/memory.ts";
import { readSafetensorsHeader, readTensor } from "../src/formats/safetensors.ts";
import { encodeSafetensors } from "../src/formats/safetensors_writer.ts";
import type { Folder, Source } from "../src/formats/source.ts";
import { readTorch } from "../src/formats/torch.ts";
import { encodeTorch } from "../src/formats/torch_writer.ts";
import { random } from "./values.ts";

/** Heads of the llama that random adapters are for: q has 4 of 4 rows, k and v have 2. */
export const FACTS: Required<Omit<BaseFacts, "merged" | "kernels" | "modelType">> & {
  readonly modules: readonly string[];
} = {
  architecture: "llama",
  tied: false,
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
  return fromFloat32(values, [rows, columns], dtype === "BF16" || dtype === "F16" ? dtype : "F32");
}

/** A matrix of small whole numbers, of which every product and sum is exact. */
export function whole(rows: number, columns: number, seed: number, dtype = "F32"): StoredTensor {
  const next = random(seed);
  return store(dtype, rows, columns, () => Math.round(next() * 4));
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

/** What decides a random adapter. */
export interface AdapterSpec {
  readonly dtype: string;
  readonly r: number;
  readonly alpha: number;
  readonly rslora: boolean;
  readonly dora: boolean;
  /** Its modules, with the rank or alpha that a pattern gives them. */
  readonly modules: readonly { readonly name: string; readonly rank: number | null; readonly alpha: number | null }[];
  readonly seed: number;
  /** Zeros of both signs and subnormal numbers among the values; none if absent. */
  readonly extremes?: boolean;
  /** An embedding too, of which several dialects have none; none if absent. */
  readonly table?: boolean;
}

const ALPHAS = [0.3, 1, 2, 3, 4, 7, 8, 16, 24, 22.627416997969522, 1e-3, -2, 0];

/** Adapters of the llama: modules, ranks, alphas, patterns, rsLoRA, DoRA and element types. */
export const ADAPTERS: fc.Arbitrary<AdapterSpec> = fc.record({
  dtype: fc.constantFrom("F32", "BF16", "F16"),
  r: fc.constantFrom(1, 2, 3, 4, 6, 8, 16),
  alpha: fc.constantFrom(...ALPHAS),
  rslora: fc.boolean(),
  dora: fc.boolean(),
  modules: fc.uniqueArray(
    fc.record({
      name: fc.constantFrom(...FACTS.modules),
      rank: fc.option(fc.constantFrom(1, 2, 5, 7), { freq: 2 }),
      alpha: fc.option(fc.constantFrom(...ALPHAS), { freq: 2 }),
    }),
    { minLength: 1, maxLength: 8, selector: ({ name }) => name },
  ),
  seed: fc.nat(0xffff),
  extremes: fc.boolean(),
  table: fc.boolean(),
});

/** Zeros of both signs, and what gives subnormal numbers in F16, and in F32 and BF16. */
const MAGNITUDES = [1, 1, 1, 0, 1, -0, 1, 2 ** -20, 1, 2 ** -140];

/** The adapter of a spec. */
export async function buildAdapter(
  { dtype, r, alpha, rslora, dora, modules, seed, extremes = false, table = false }: AdapterSpec,
): Promise<Adapter> {
  const uniform = random(seed + 1);
  let at = 0;
  const next = extremes ? () => uniform() * MAGNITUDES[at++ % MAGNITUDES.length]! : uniform;
  const tensors = new Map<string, StoredTensor>();
  for (const { name, rank } of modules) {
    const rows = ROWS[name.slice(name.lastIndexOf(".") + 1)] ?? 20;
    const key = `base_model.model.${name}.lora_`;
    tensors.set(`${key}A.weight`, store(dtype, rank ?? r, 12, next));
    tensors.set(`${key}B.weight`, store(dtype, rows, rank ?? r, next));
    if (dora) tensors.set(`${key}magnitude_vector`, { ...store(dtype, 1, rows, () => 2 + next()), shape: [rows] });
  }
  if (table) {
    tensors.set("base_model.model.model.embed_tokens.lora_embedding_A", store(dtype, r, 9, next));
    tensors.set("base_model.model.model.embed_tokens.lora_embedding_B", store(dtype, 12, r, next));
    const norms = { ...store(dtype, 1, 12, () => 2 + next()), shape: [12] };
    if (dora) tensors.set("base_model.model.model.embed_tokens.lora_magnitude_vector", norms);
  }
  const pattern = (field: "rank" | "alpha") =>
    Object.fromEntries(modules.flatMap((module) => {
      const value = module[field];
      return value === null ? [] : [[module.name.replaceAll(".", "\\."), value]];
    }));
  const config = {
    ...{ r, lora_alpha: alpha, use_rslora: rslora, use_dora: dora, lora_dropout: 0.05, task_type: "CAUSAL_LM" },
    ...{
      rank_pattern: pattern("rank"),
      alpha_pattern: pattern("alpha"),
      target_modules: [...modules.map(({ name }) => name), ...(table ? ["embed_tokens"] : [])],
    },
  };
  return await loadAdapter(peftFiles(config, tensors));
}

/** One adapter without DoRA, by a seed. */
export async function randomAdapter(seed: number): Promise<Adapter> {
  const [spec] = fc.sample(ADAPTERS, { seed, numRuns: 1 });
  return await buildAdapter({ ...spec!, dora: false, extremes: false, table: false });
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
export function assertSame(got: Adapter, wanted: Pick<Adapter, "modules">, message: string): void {
  assert.deepEqual([...got.modules.keys()].sort(), [...wanted.modules.keys()].sort(), message);
  for (const [name, module] of wanted.modules) {
    const other = got.modules.get(name)!;
    assert.equal(other.kind, module.kind, `${message} ${name}`);
    for (const part of ["loraA", "loraB", "magnitude", "loraBias"] as const) {
      const [found, expected] = [other[part], module[part]];
      assert.equal(found?.dtype, expected?.dtype, `${message} ${name} ${part}`);
      assert.deepEqual(found?.shape, expected?.shape, `${message} ${name} ${part}`);
      assert.deepEqual(found && [...found.bytes], expected && [...expected.bytes], `${message} ${name} ${part}`);
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

/** The same files without what only this package puts into them. */
export async function foreign(files: ReadonlyMap<string, Uint8Array>): Promise<Folder> {
  const stripped = new Map<string, Uint8Array>();
  for (const [name, bytes] of files) stripped.set(name, await strip(name, bytes));
  return memoryFolder(stripped);
}

/** All tensors of a safetensors file. */
export async function tensorsOf(source: Source): Promise<Map<string, StoredTensor>> {
  const { tensors } = await readSafetensorsHeader(source);
  const stored = new Map<string, StoredTensor>();
  for (const [tensor, info] of tensors) stored.set(tensor, await readTensor(source, info));
  return stored;
}

/** One of them. */
export async function strip(name: string, bytes: Uint8Array): Promise<Uint8Array> {
  const source = memorySource(name, bytes);
  if (name.endsWith(".pt")) return encodeTorch(await readTorch(source));
  if (name.endsWith(".json")) {
    const { peft_config: _, ...config } = JSON.parse(new TextDecoder().decode(bytes));
    return new TextEncoder().encode(JSON.stringify(config));
  }
  if (!name.endsWith(".gguf")) return encodeSafetensors(await tensorsOf(source));
  const stored = new Map<string, StoredTensor>();
  const { metadata, tensors } = await readGguf(source);
  for (const [tensor, info] of tensors) stored.set(tensor, await readGgufTensor(source, info));
  const fields = Array.from(metadata, ([key, value]): [string, GgufField] => {
    if (typeof value === "string") return [key, { type: "string", value }];
    if (Array.isArray(value)) return [key, { type: "u32s", value }];
    return [key, { type: key.endsWith(".alpha") ? "f32" : "u32", value: value as number }];
  });
  return encodeGguf(new Map(fields.filter(([key]) => !/peft_config|^lowrank/.test(key))), stored);
}

/** An adapter as mlx-lm saves it. */
export function mlxFolder(
  parameters: unknown,
  tensors: Readonly<Record<string, StoredTensor>>,
  more: object = {},
): Folder {
  const config = { fine_tune_type: "lora", num_layers: 2, lora_parameters: parameters, ...more };
  return memoryFolder(
    new Map([
      ["adapter_config.json", new TextEncoder().encode(JSON.stringify(config))],
      ["adapters.safetensors", encodeSafetensors(new Map(Object.entries(tensors)))],
    ]),
  );
}
