/** ggml's block formats of 32 elements, written: the layouts that src/formats/gguf_quants.ts reads. */
import { encodeF16 } from "../../src/formats/float16.ts";

/** A format that a GGUF file can be rewritten in. */
export type BlockFormat = "q4_0" | "q8_0" | "f32";

const BLOCK = 32;

/** ggml's number of the tensor type. */
export const TYPE_NUMBERS: Readonly<Record<BlockFormat, number>> = { f32: 0, q4_0: 2, q8_0: 8 };

/** Encodes values in blocks along the rows. */
export function encodeBlocks(values: Float32Array, format: BlockFormat): Uint8Array {
  switch (format) {
    case "f32":
      return new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
    case "q4_0":
      return encode(values, 18, encodeQ40);
    case "q8_0":
      return encode(values, 34, encodeQ80);
  }
}

function encode(
  values: Float32Array,
  blockBytes: number,
  block: (values: Float32Array, out: Uint8Array) => void,
): Uint8Array {
  const out = new Uint8Array(values.length / BLOCK * blockBytes);
  for (let index = 0; index * BLOCK < values.length; index++) {
    const from = values.subarray(index * BLOCK, (index + 1) * BLOCK);
    block(from, out.subarray(index * blockBytes, (index + 1) * blockBytes));
  }
  return out;
}

/** x = d (q - 8): the value farthest from zero becomes q = 0. */
function encodeQ40(values: Float32Array, out: Uint8Array): void {
  const d = Math.fround(farthest(values) / -8);
  const inverse = d === 0 ? 0 : 1 / d;
  const quant = (value: number) => Math.min(15, Math.trunc(value * inverse + 8.5));
  out.set(encodeF16(Float32Array.of(d)));
  for (let i = 0; i < BLOCK / 2; i++) out[2 + i] = quant(values[i]!) | quant(values[i + BLOCK / 2]!) << 4;
}

/** x = d q. */
function encodeQ80(values: Float32Array, out: Uint8Array): void {
  const d = Math.fround(Math.abs(farthest(values)) / 127);
  const inverse = d === 0 ? 0 : 1 / d;
  out.set(encodeF16(Float32Array.of(d)));
  for (let i = 0; i < BLOCK; i++) out[2 + i] = Math.round(values[i]! * inverse);
}

function farthest(values: Float32Array): number {
  return values.reduce((most, value) => Math.abs(value) > Math.abs(most) ? value : most, 0);
}
