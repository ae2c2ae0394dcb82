/**
 * Writes GGUF files for tests.
 *
 * @module
 */
import { memorySource } from "../src/formats/memory.ts";
import type { Source } from "../src/formats/source.ts";

/** A value: whole numbers become uint32, others float32, as those do that are marked. */
export type MetadataValue = string | number | boolean | readonly string[] | { readonly f32: number };

/** What a GGUF file is made of. */
export interface GgufParts {
  readonly metadata: Readonly<Record<string, MetadataValue>>;
  readonly tensors: ReadonlyMap<string, { readonly shape: readonly number[]; readonly values: Float32Array }>;
}

const ALIGNMENT = 32;

class Writer {
  readonly #chunks: Uint8Array[] = [];
  #length = 0;

  bytes(chunk: Uint8Array): void {
    this.#chunks.push(chunk);
    this.#length += chunk.length;
  }

  u32(value: number): void {
    this.bytes(new Uint8Array(Uint32Array.of(value).buffer));
  }

  u64(value: number): void {
    this.bytes(new Uint8Array(BigUint64Array.of(BigInt(value)).buffer));
  }

  text(value: string): void {
    const bytes = new TextEncoder().encode(value);
    this.u64(bytes.length);
    this.bytes(bytes);
  }

  /** A value with its type before it. */
  value(value: MetadataValue): void {
    if (typeof value === "string") {
      this.u32(8);
      this.text(value);
    } else if (typeof value === "boolean") {
      this.u32(7);
      this.bytes(Uint8Array.of(Number(value)));
    } else if (typeof value === "object" && "f32" in value) {
      this.u32(6);
      this.bytes(new Uint8Array(Float32Array.of(value.f32).buffer));
    } else if (typeof value === "object") {
      this.u32(9);
      this.u32(8);
      this.u64(value.length);
      for (const each of value) this.text(each);
    } else if (Number.isInteger(value)) {
      this.u32(4);
      this.u32(value);
    } else {
      this.u32(6);
      this.bytes(new Uint8Array(Float32Array.of(value).buffer));
    }
  }

  pad(): void {
    this.bytes(new Uint8Array((ALIGNMENT - this.#length % ALIGNMENT) % ALIGNMENT));
  }

  finish(): Uint8Array {
    const all = new Uint8Array(this.#length);
    let at = 0;
    for (const chunk of this.#chunks) {
      all.set(chunk, at);
      at += chunk.length;
    }
    return all;
  }
}

/** A GGUF file of float32 tensors. */
export function ggufSource(name: string, { metadata, tensors }: GgufParts): Source {
  const writer = new Writer();
  writer.u32(0x46554747);
  writer.u32(3);
  writer.u64(tensors.size);
  writer.u64(Object.keys(metadata).length);
  for (const [key, value] of Object.entries(metadata)) {
    writer.text(key);
    writer.value(value);
  }
  let offset = 0;
  for (const [tensor, { shape, values }] of tensors) {
    writer.text(tensor);
    writer.u32(shape.length);
    for (const length of [...shape].reverse()) writer.u64(length);
    writer.u32(0);
    writer.u64(offset);
    offset += Math.ceil(values.byteLength / ALIGNMENT) * ALIGNMENT;
  }
  writer.pad();
  for (const { values } of tensors.values()) {
    writer.bytes(new Uint8Array(values.buffer, values.byteOffset, values.byteLength));
    writer.pad();
  }
  return memorySource(name, writer.finish());
}
