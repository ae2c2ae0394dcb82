/** A synthetic checkpoint of any size for scripts/merge_stress.ts: the same bytes for the same options. */
import { closeSync, fsyncSync, mkdirSync, openSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { encodeBf16 } from "../src/formats/bfloat16.ts";
import { bitsPerElement, type Dtype } from "../src/formats/dtype.ts";
import { layoutSafetensors, type TensorSpec } from "../src/formats/safetensors_writer.ts";

/** What to make. */
export interface StressModel {
  /** Bytes of the weights, about. */
  readonly bytes: number;
  /** Number of weight files. */
  readonly shards: number;
  /** Width of the model. */
  readonly hidden: number;
  /** r of the adapter. */
  readonly rank: number;
}

const PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"] as const;
/** Random elements that are written again and again, from another place for every tensor. */
const POOL = 2 ** 22;

/** Writes `base`, in bf16, and `adapter`, in f32 on all its linear layers. */
export function writeStressModel(path: string, model: StressModel): void {
  writeBase(join(path, "base"), model);
  writeAdapter(join(path, "adapter"), model);
}

function shapeOf(projection: (typeof PROJECTIONS)[number], hidden: number): readonly [number, number] {
  if (projection === "down_proj") return [hidden, 4 * hidden];
  return projection === "gate_proj" || projection === "up_proj" ? [4 * hidden, hidden] : [hidden, hidden];
}

function layersOf({ bytes, hidden }: StressModel): number {
  return Math.max(1, Math.round(bytes / (2 * 16 * hidden ** 2)));
}

function moduleName(layer: number, projection: string): string {
  const part = /^[qkvo]_/.test(projection) ? "self_attn" : "mlp";
  return `model.layers.${layer}.${part}.${projection}`;
}

function writeBase(path: string, model: StressModel): void {
  mkdirSync(path, { recursive: true });
  const { hidden, shards } = model;
  const specs: TensorSpec[] = [{ name: "model.norm.weight", dtype: "BF16", shape: [hidden] }];
  for (let layer = 0; layer < layersOf(model); layer++) {
    specs.push({ name: `model.layers.${layer}.input_layernorm.weight`, dtype: "BF16", shape: [hidden] });
    for (const projection of PROJECTIONS) {
      specs.push({
        name: `${moduleName(layer, projection)}.weight`,
        dtype: "BF16",
        shape: shapeOf(projection, hidden),
      });
    }
  }
  const pool = encodeBf16(randomFloats(POOL, 1));
  const weightMap: Record<string, string> = {};
  const perShard = Math.ceil(specs.length / shards);
  for (let shard = 0; shard < shards; shard++) {
    const number = (n: number) => String(n).padStart(5, "0");
    const file = `model-${number(shard + 1)}-of-${number(shards)}.safetensors`;
    const own = specs.slice(shard * perShard, (shard + 1) * perShard);
    for (const { name } of own) weightMap[name] = file;
    writeTensors(join(path, file), own, pool);
  }
  writeFileSync(join(path, "model.safetensors.index.json"), JSON.stringify({ metadata: {}, weight_map: weightMap }));
  writeFileSync(join(path, "config.json"), JSON.stringify({ model_type: "llama", dtype: "bfloat16" }));
}

function writeAdapter(path: string, model: StressModel): void {
  mkdirSync(path, { recursive: true });
  const { hidden, rank } = model;
  const specs: TensorSpec[] = [];
  for (let layer = 0; layer < layersOf(model); layer++) {
    for (const projection of PROJECTIONS) {
      const [rows, columns] = shapeOf(projection, hidden);
      const prefix = `base_model.model.${moduleName(layer, projection)}`;
      specs.push({ name: `${prefix}.lora_A.weight`, dtype: "F32", shape: [rank, columns] });
      specs.push({ name: `${prefix}.lora_B.weight`, dtype: "F32", shape: [rows, rank] });
    }
  }
  writeTensors(join(path, "adapter_model.safetensors"), specs, new Uint8Array(randomFloats(POOL, 2).buffer));
  const config = {
    peft_type: "LORA",
    task_type: "CAUSAL_LM",
    r: rank,
    lora_alpha: 2 * rank,
    target_modules: PROJECTIONS,
  };
  writeFileSync(join(path, "adapter_config.json"), JSON.stringify(config));
}

function writeTensors(path: string, specs: readonly TensorSpec[], pool: Uint8Array): void {
  const { header, order } = layoutSafetensors(specs, new Map([["format", "pt"]]));
  const sizes = new Map(specs.map(({ name, dtype, shape }) => [name, byteLength(dtype, shape)]));
  const handle = openSync(path, "w");
  writeSync(handle, header);
  order.forEach((name, index) => {
    let at = index * 4099 * 4 % pool.length;
    for (let left = sizes.get(name)!; left > 0;) {
      const piece = pool.subarray(at, at + left);
      writeSync(handle, piece);
      left -= piece.length;
      at = 0;
    }
  });
  fsyncSync(handle);
  closeSync(handle);
}

function byteLength(dtype: Dtype, shape: readonly number[]): number {
  return shape.reduce((product, length) => product * length, bitsPerElement(dtype) / 8);
}

/** Uniform in ±0.05. */
function randomFloats(count: number, seed: number): Float32Array {
  const next = randomNumbers(seed);
  return Float32Array.from({ length: count }, () => 0.1 * next() - 0.05);
}

/** Numbers from 0 to 1, the same for the same seed (mulberry32). */
export function randomNumbers(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}
