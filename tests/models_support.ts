/**
 * What the tests of language models share: the fixtures' folders and truths, and small models made here.
 *
 * @module
 */
import assert from "node:assert/strict";
import type { Backend } from "../src/backend.ts";
import { type Checkpoint, openCheckpoint } from "../src/formats/checkpoint.ts";
import { memoryFolder } from "../src/formats/memory.ts";
import { readSafetensorsHeader, readTensor } from "../src/formats/safetensors.ts";
import { encodeSafetensors } from "../src/formats/safetensors_writer.ts";
import type { Folder } from "../src/formats/source.ts";
import { file, folder } from "../src/fs/mod.ts";
import { type LanguageModel, loadModel } from "../src/models/mod.ts";
import { openBackend } from "../src/open.ts";
import { fromFloat32 } from "../src/formats/dtype.ts";

export function fixture(path: string): Folder {
  return folder(new URL(`./fixtures/${path}`, import.meta.url));
}

/** The tensors of an `expected.safetensors`: float64, and int64 ids as numbers. */
export async function readTruth(
  path: string,
): Promise<(name: string) => Promise<{ shape: readonly number[]; values: Float64Array }>> {
  const source = file(new URL(`./fixtures/${path}/expected.safetensors`, import.meta.url));
  const { tensors } = await readSafetensorsHeader(source);
  return async (name) => {
    const { shape, dtype, bytes } = await readTensor(source, tensors.get(name)!);
    const buffer = bytes.slice().buffer;
    const values = dtype === "I64" ? Float64Array.from(new BigInt64Array(buffer), Number) : new Float64Array(buffer);
    return { shape, values };
  };
}

/** Rows of a matrix as arrays. */
export function rowsOf({ shape, values }: { shape: readonly number[]; values: ArrayLike<number> }): number[][] {
  const length = shape.at(-1)!;
  return Array.from(
    { length: values.length / length },
    (_, i) => Array.from(values).slice(i * length, (i + 1) * length),
  );
}

/** Fails unless max |got − want| <= tolerance · max |want|. */
export function assertNear(got: ArrayLike<number>, want: ArrayLike<number>, tolerance: number, label: string): void {
  assert.equal(got.length, want.length, `${label}: number of elements`);
  let [error, scale] = [0, 0];
  for (let i = 0; i < want.length; i++) {
    const difference = Math.abs(got[i]! - want[i]!);
    // Written so that NaN fails.
    error = difference <= error ? error : difference;
    scale = Math.max(scale, Math.abs(want[i]!));
  }
  assert.ok(error <= tolerance * scale, `${label}: off by ${error / scale} of the largest, at most ${tolerance}`);
}

/** Logits of a whole batch. */
export async function logitsOf(
  model: LanguageModel,
  ids: readonly (readonly number[])[],
  adapter: Parameters<LanguageModel["forward"]>[1] = {},
): Promise<Float32Array> {
  return (await model.forward(ids, adapter)).values;
}

/** Runs a whole generation. */
export async function generate(
  model: LanguageModel,
  ...args: Parameters<LanguageModel["generate"]>
): Promise<{ text: string; tokens: number[]; promptTokens: number }> {
  const generation = model.generate(...args);
  let text = "";
  for await (const piece of generation) text += piece;
  return { text, tokens: generation.tokens, promptTokens: generation.promptTokens };
}

/** Opens a base of the fixtures in float32. */
export function loadBase(backend: Backend, name: string): Promise<LanguageModel> {
  return loadModel(fixture(`base/${name}`), { backend, dtype: "f32" });
}

/** Sizes of the tensors of a small model, as its config says them. */
export type SmallConfig = Readonly<Record<string, unknown>>;

/** A folder with a config and the tensors given. */
export function modelFolder(
  config: SmallConfig,
  tensors: ReadonlyMap<string, { shape: readonly number[]; values: Float32Array }>,
): Folder {
  const stored = new Map([...tensors].map(([name, { shape, values }]) => [name, fromFloat32(values, shape)]));
  return memoryFolder(
    new Map([
      ["config.json", new TextEncoder().encode(JSON.stringify(config))],
      ["model.safetensors", encodeSafetensors(stored)],
    ]),
  );
}

/** All tensors of a checkpoint folder. */
export async function readCheckpoint(
  from: Folder,
): Promise<Map<string, { shape: readonly number[]; values: Float32Array }>> {
  const checkpoint: Checkpoint = await openCheckpoint(from);
  const tensors = new Map<string, { shape: readonly number[]; values: Float32Array }>();
  for (const name of checkpoint.tensors.keys()) {
    const { dtype, shape, bytes } = await checkpoint.read(name);
    assert.equal(dtype, "F32");
    tensors.set(name, { shape, values: new Float32Array(bytes.slice().buffer) });
  }
  return tensors;
}

/** Ids of the fixtures' vocabulary. */
export const IDS: readonly (readonly number[])[] = [[5, 17, 99, 4, 42, 7]];

/** Runs a test on the fixtures' llama with the adapter "a"; its memory goes with it. */
export async function withLlama(body: (model: LanguageModel, backend: Backend) => Promise<void>): Promise<void> {
  const backend = await openBackend();
  try {
    const model = await loadBase(backend, "llama");
    await model.loadAdapter("a", fixture("llama-plain/adapter"));
    await body(model, backend);
  } finally {
    backend.dispose();
  }
}

/** All files of a folder, for tests that change one. */
export async function readFiles(from: Folder): Promise<Map<string, Uint8Array>> {
  const files = new Map<string, Uint8Array>();
  for (const name of await from.list!()) {
    const source = from.open(name);
    files.set(name, await source.read(0, await source.size()));
  }
  return files;
}

/** llama-plain's adapter with an invocation. */
export async function waitingAdapter(tokens: readonly number[]): Promise<Folder> {
  const files = await readFiles(fixture("llama-plain/adapter"));
  const config = JSON.parse(new TextDecoder().decode(files.get("adapter_config.json")));
  const json = JSON.stringify({ ...config, alora_invocation_tokens: tokens });
  return memoryFolder(new Map([...files, ["adapter_config.json", new TextEncoder().encode(json)]]));
}
