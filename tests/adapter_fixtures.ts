/**
 * The golden fixtures as folders and numbers, and small adapters made by hand.
 *
 * @module
 */
import { readdirSync, readFileSync } from "node:fs";
import type { Adapter } from "../src/adapter/adapter.ts";
import { mergeCheckpoint, type MergeOptions } from "../src/checkpoint/merge.ts";
import { fromFloat32, type StoredTensor } from "../src/formats/dtype.ts";
import { memoryFolder, memorySink, memorySource } from "../src/formats/memory.ts";
import { readSafetensorsHeader, readTensor } from "../src/formats/safetensors.ts";
import { encodeSafetensors } from "../src/formats/safetensors_writer.ts";
import type { Folder, Sink } from "../src/formats/source.ts";
import { sizeOf } from "../src/shape.ts";

/** File names of a checkpoint. */
export const MODEL = "model.safetensors";
export const INDEX = "model.safetensors.index.json";
const METADATA = new Map([["format", "pt"]]);
const FIXTURES = new URL("./fixtures/", import.meta.url);

/** Bytes of one fixture. */
export function fixture(path: string): Uint8Array {
  return new Uint8Array(readFileSync(new URL(path, FIXTURES)));
}

/** The files of a fixture folder. */
export function fixtureFiles(path: string): Map<string, Uint8Array> {
  const names = readdirSync(new URL(`${path}/`, FIXTURES));
  return new Map(names.map((name) => [name, fixture(`${path}/${name}`)]));
}

/** A fixture folder, held in memory. */
export function fixtureFolder(path: string): Folder {
  return memoryFolder(fixtureFiles(path), path);
}

/** All tensors of a safetensors file. */
export async function readTensors(bytes: Uint8Array): Promise<Map<string, StoredTensor>> {
  const source = memorySource("tensors", bytes);
  const { tensors } = await readSafetensorsHeader(source);
  const read = [...tensors].map(async ([name, info]) => [name, await readTensor(source, info)] as const);
  return new Map(await Promise.all(read));
}

/** Names and shapes of an adapter's tensors in a file, but for the base's own table beside an embedding's factors. */
export async function tensorShapes(bytes: Uint8Array): Promise<string[]> {
  const found = [...await readTensors(bytes)].map(([key, { shape }]) => `${key} ${shape}`);
  return found.filter((line) => !line.includes(".base_layer.weight")).sort();
}

/** A float64 tensor of `expected.safetensors`. */
export interface Expected {
  readonly shape: readonly number[];
  readonly values: Float64Array;
}

/** The float64 tensors of a case whose names start with a prefix, by the rest of their names. */
export async function expectedTensors(path: string, prefix: string): Promise<Map<string, Expected>> {
  const tensors = await readTensors(fixture(`${path}/expected.safetensors`));
  const found = new Map<string, Expected>();
  for (const [name, { dtype, shape, bytes }] of tensors) {
    if (!name.startsWith(prefix) || dtype !== "F64") continue;
    found.set(name.slice(prefix.length), { shape, values: new Float64Array(bytes.slice().buffer) });
  }
  return found;
}

/** max|got − want| / max|want|; NaN counts as infinite. */
export function relativeError(got: ArrayLike<number>, want: ArrayLike<number>): number {
  let [difference, size] = [0, 0];
  for (let i = 0; i < want.length; i++) {
    const error = Math.abs(got[i]! - want[i]!);
    difference = Math.max(difference, Number.isNaN(error) ? Infinity : error);
    size = Math.max(size, Math.abs(want[i]!));
  }
  return got.length === want.length ? difference / (size || 1) : Infinity;
}

/** An F32 tensor of one repeated value. */
export function filled(shape: readonly number[], value = 0.5): StoredTensor {
  return fromFloat32(new Float32Array(sizeOf(shape)).fill(value), shape);
}

/** A PEFT folder of one module "layers.0.q_proj" (4 in, 6 out) with rank 2, and what a test changes. */
export function smallAdapter(
  change: {
    readonly config?: Readonly<Record<string, unknown>>;
    readonly tensors?: Readonly<Record<string, StoredTensor | undefined>>;
  } = {},
): Map<string, Uint8Array> {
  const config = { peft_type: "LORA", r: 2, lora_alpha: 4, target_modules: ["q_proj"], ...change.config };
  const path = "base_model.model.layers.0.q_proj";
  const tensors = {
    [`${path}.lora_A.weight`]: filled([2, 4]),
    [`${path}.lora_B.weight`]: filled([6, 2]),
    ...change.tensors,
  };
  const present = Object.entries(tensors).filter((entry): entry is [string, StoredTensor] => entry[1] !== undefined);
  return new Map([
    ["adapter_config.json", new TextEncoder().encode(JSON.stringify(config))],
    ["adapter_model.safetensors", encodeSafetensors(new Map(present), METADATA)],
  ]);
}

/** A text, or JSON, as a file. */
export const text = (value: unknown): Uint8Array =>
  new TextEncoder().encode(typeof value === "string" ? value : JSON.stringify(value));

/** A base of one file with layers.0.q_proj (6, 4), and what a test adds. */
export function smallBase(
  tensors: Readonly<Record<string, StoredTensor>> = {},
  files: Readonly<Record<string, unknown>> = {},
): Map<string, Uint8Array> {
  const all = new Map(Object.entries({ "layers.0.q_proj.weight": filled([6, 4], 1), ...tensors }));
  const others = Object.entries(files).map(([name, value]) => [name, text(value)] as const);
  return new Map([[MODEL, encodeSafetensors(all, METADATA)], ...others]);
}

/** smallBase() in two shards, the second with a weight that is not adapted. */
export function sharded(): Map<string, Uint8Array> {
  const [first, second] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
  const index = {
    metadata: { total_parameters: 27, total_size: 108 },
    weight_map: { "layers.0.q_proj.weight": second, norm: first },
  };
  return new Map([
    [first, encodeSafetensors(new Map([["norm", filled([3], 0.1)]]), METADATA)],
    [second, encodeSafetensors(new Map([["layers.0.q_proj.weight", filled([6, 4], 1)]]), METADATA)],
    [INDEX, text(JSON.stringify(index, null, 2) + "\n")],
    ["config.json", text({ torch_dtype: "float32", text_config: { dtype: "float32" }, name: "float32" })],
    ["tokenizer.json", text("{}")],
    ["training_args.bin", text("left out")],
  ]);
}

/** A sink that remembers what happened. */
export function recordingSink(): Sink & {
  readonly files: ReadonlyMap<string, Uint8Array>;
  readonly log: readonly string[];
} {
  const inner = memorySink();
  const log: string[] = [];
  const create = async (name: string) => {
    log.push(`create ${name}`);
    const file = await inner.create(name);
    const said = (what: "commit" | "abort") => () => {
      log.push(`${what} ${name}`);
      return file[what]();
    };
    return { write: file.write, commit: said("commit"), abort: said("abort") };
  };
  return { name: "recording", files: inner.files, log, create };
}

/** The tensors of a merge that gives one file. */
export async function merged(
  base: ReadonlyMap<string, Uint8Array>,
  adapters: readonly Adapter[] | Adapter,
  options: MergeOptions = {},
): Promise<ReadonlyMap<string, StoredTensor>> {
  const sink = memorySink();
  await mergeCheckpoint(memoryFolder(base), [adapters].flat().map((adapter) => ({ adapter })), sink, options);
  return await readTensors(sink.files.get(MODEL)!);
}
