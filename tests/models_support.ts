/**
 * What the tests of language models share: the fixtures' folders and truths, and small models made here.
 *
 * @module
 */
import assert from "node:assert/strict";
import type { Backend } from "../src/backend.ts";
import { type Checkpoint, openCheckpoint } from "../src/formats/checkpoint.ts";
import { memoryFolder, memorySource } from "../src/formats/memory.ts";
import { readSafetensorsHeader, readTensor } from "../src/formats/safetensors.ts";
import { encodeSafetensors } from "../src/formats/safetensors_writer.ts";
import type { Folder, Source } from "../src/formats/source.ts";
import { file, folder } from "../src/fs/mod.ts";
import type { LanguageModel } from "../src/models/mod.ts";
import { loadModel } from "../src/models/mod.ts";

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
  const stored = new Map(
    [...tensors].map(([name, { shape, values }]) => {
      const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
      return [name, { dtype: "F32" as const, shape, bytes }];
    }),
  );
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

/** What a GGUF file is made of. */
export interface GgufParts {
  readonly metadata: Readonly<Record<string, string | number | boolean | readonly string[]>>;
  readonly tensors: ReadonlyMap<string, { readonly shape: readonly number[]; readonly values: Float32Array }>;
}

/** Writes a GGUF file of float32 tensors: strings, floats (numbers with a fraction), uint32 and lists of strings. */
export function ggufSource(name: string, { metadata, tensors }: GgufParts): Source {
  const chunks: Uint8Array[] = [];
  const encoder = new TextEncoder();
  const put = (bytes: number, write: (view: DataView) => void): void => {
    const chunk = new Uint8Array(bytes);
    write(new DataView(chunk.buffer));
    chunks.push(chunk);
  };
  const u32 = (value: number): void => put(4, (view) => view.setUint32(0, value, true));
  const u64 = (value: number): void => put(8, (view) => view.setBigUint64(0, BigInt(value), true));
  const text = (value: string): void => {
    const bytes = encoder.encode(value);
    u64(bytes.length);
    chunks.push(bytes);
  };
  u32(0x46554747);
  u32(3);
  u64(tensors.size);
  u64(Object.keys(metadata).length);
  for (const [key, value] of Object.entries(metadata)) {
    text(key);
    if (typeof value === "string") (u32(8), text(value));
    else if (typeof value === "boolean") (u32(7), put(1, (view) => view.setUint8(0, Number(value))));
    else if (typeof value === "object") (u32(9), u32(8), u64(value.length), value.forEach(text));
    else if (Number.isInteger(value)) (u32(4), u32(value));
    else (u32(6), put(4, (view) => view.setFloat32(0, value, true)));
  }
  let offset = 0;
  for (const [tensor, { shape, values }] of tensors) {
    text(tensor);
    u32(shape.length);
    [...shape].reverse().forEach(u64);
    u32(0);
    u64(offset);
    offset += Math.ceil(values.byteLength / 32) * 32;
  }
  const pad = (): void => {
    const length = chunks.reduce((sum, chunk) => sum + chunk.length, 0);
    chunks.push(new Uint8Array((32 - length % 32) % 32));
  };
  pad();
  for (const { values } of tensors.values()) {
    chunks.push(new Uint8Array(values.buffer, values.byteOffset, values.byteLength));
    pad();
  }
  const bytes = new Uint8Array(chunks.reduce((sum, chunk) => sum + chunk.length, 0));
  chunks.reduce((at, chunk) => (bytes.set(chunk, at), at + chunk.length), 0);
  return memorySource(name, bytes);
}
