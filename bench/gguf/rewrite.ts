/**
 * Rewrites a GGUF model in another number format, so that a peer can be measured with the formats that it is good at.
 * Metadata stays byte for byte; matrices of four-bit blocks (and for f32 all tensors) are encoded anew.
 */
import { concat } from "../../src/formats/concat.ts";
import { toFloat32 } from "../../src/formats/dtype.ts";
import { type GgufTensorInfo, type GgufType, readGguf, readGgufTensor } from "../../src/formats/gguf.ts";
import { memorySource } from "../../src/formats/memory.ts";
import { type BlockFormat, encodeBlocks, TYPE_NUMBERS } from "./blocks.ts";

const ALIGNMENT = 32;
const HEADER = 24;
/** ggml's numbers of the types that stay as they are. */
const KEPT_TYPES: ReadonlyMap<GgufType, number> = new Map([["F32", 0], ["F16", 1], ["Q8_0", 8]]);

/** Encodes the file of another format. */
export async function rewriteGguf(file: Uint8Array, format: BlockFormat): Promise<Uint8Array> {
  const source = memorySource("model.gguf", file);
  const { tensors } = await readGguf(source);
  const infos: Uint8Array[] = [];
  const data: Uint8Array[] = [];
  let offset = 0;
  for (const info of tensors.values()) {
    const isRewritten = format === "f32" ? info.type !== "F32" : info.type === "Q4_1";
    const bytes = isRewritten
      ? encodeBlocks(toFloat32(await readGgufTensor(source, info)), format)
      : file.subarray(info.offset, info.offset + info.length);
    infos.push(tensorInfo(info, isRewritten ? TYPE_NUMBERS[format] : keptType(info.type), offset));
    data.push(bytes, padding(bytes.length));
    offset += Math.ceil(bytes.length / ALIGNMENT) * ALIGNMENT;
  }
  const head = concat([file.subarray(0, infoStart(file, tensors.keys().next().value!)), ...infos]);
  return concat([head, padding(head.length), ...data]);
}

/**
 * Where the tensor infos begin: at the length of the first tensor's name. Token texts before it are other texts: no token
 * is called as a tensor is.
 */
function infoStart(file: Uint8Array, name: string): number {
  const wanted = concat([u64(name.length), new TextEncoder().encode(name)]);
  for (let at = file.indexOf(wanted[0]!, HEADER); at >= 0; at = file.indexOf(wanted[0]!, at + 1)) {
    if (wanted.every((byte, index) => file[at + index] === byte)) return at;
  }
  throw new Error(`Cannot find tensor "${name}" in the file's header`);
}

function keptType(type: GgufType): number {
  const number = KEPT_TYPES.get(type);
  if (number === undefined) {
    throw new Error(`Cannot rewrite a model with ${type} tensors: expected F32, F16, Q8_0, Q4_1`);
  }
  return number;
}

function tensorInfo({ name, shape }: GgufTensorInfo, type: number, offset: number): Uint8Array {
  const sizes = shape.toReversed().map(u64);
  return concat([
    u64(name.length),
    new TextEncoder().encode(name),
    u32(shape.length),
    ...sizes,
    u32(type),
    u64(offset),
  ]);
}

function u32(value: number): Uint8Array {
  return new Uint8Array(Uint32Array.of(value).buffer);
}

function u64(value: number): Uint8Array {
  return new Uint8Array(BigUint64Array.of(BigInt(value)).buffer);
}

function padding(length: number): Uint8Array {
  return new Uint8Array(-length & (ALIGNMENT - 1));
}
