/**
 * A merged GGUF file: the base's metadata byte for byte, its tensors in the base's order.
 *
 * @module
 */

import type { ReportLine } from "../adapter/adapter.ts";
import { MismatchError } from "../errors.ts";
import { concat } from "../formats/concat.ts";
import type { Gguf, GgufTensorInfo } from "../formats/gguf.ts";
import { quantizeQ80 } from "../formats/gguf_q8.ts";
import { dequantizer } from "../formats/gguf_quants.ts";
import { type GgufType, ggufTypeNamed } from "../formats/gguf_types.ts";
import { alignedView } from "../formats/aligned.ts";
import { quote } from "../formats/quote.ts";
import { hold, readExactly, type ReadOptions, type Source } from "../formats/source.ts";
import { sizeOf } from "../shape.ts";
import type { FilePlan, TensorPlan } from "./file_plan.ts";

/** Type of the matrices of a merged GGUF file. */
export type GgufOutType = "q8_0" | "f16" | "f32";

/** What each choice is in ggml, and `general.file_type` of a file of such matrices. */
const OUT_TYPES: Readonly<Record<GgufOutType, { readonly type: GgufType; readonly file: number }>> = {
  f32: { type: "F32", file: 0 },
  f16: { type: "F16", file: 1 },
  q8_0: { type: "Q8_0", file: 7 },
};
/** The choices. */
export const GGUF_OUT_TYPES: readonly string[] = Object.keys(OUT_TYPES);
const FILE_TYPE = "general.file_type";
/** Types that a merged tensor keeps. */
const KEPT: ReadonlySet<GgufType> = new Set(["F32", "F16", "BF16", "Q8_0"]);
const FLOATS: ReadonlySet<GgufType> = new Set(["F32", "F16", "BF16"]);
const BLOCK = 32;

/** What a merged GGUF file is made of. */
export interface GgufParts {
  /** The base. */
  readonly source: Source;
  /** Its header. */
  readonly gguf: Gguf;
  /** Name of the output. */
  readonly file: string;
  /** Names of the tensors that change. */
  readonly changed: ReadonlySet<string>;
  /** Type of all matrices; each keeps its own if undefined, where it can be written. */
  readonly outType: GgufOutType | undefined;
}

/** Lays out the file. */
export async function planGguf(
  parts: GgufParts,
  options: ReadOptions,
): Promise<{ readonly plan: FilePlan; readonly report: readonly ReportLine[] }> {
  const { source, gguf, file, outType } = parts;
  const types = new Map([...gguf.tensors].map(([name, info]) => [name, typeOf(info, parts)]));
  const report = outType === undefined ? reportTypes(gguf, types, file) : [];
  const header = await readHeader(parts, types, options);
  const tensors = [...gguf.tensors.values()].map((info) => planTensor(info, types.get(info.name)!, parts));
  const sizes = [...gguf.tensors.values()].map((info) => storedLength(info, types.get(info.name)!));
  const bytes = sizes.reduce((sum, size) => sum + align(size, gguf.alignment), header.length);
  return { plan: { name: file, header, tensors, bytes, open: () => hold(source) }, report };
}

/** One line for each type that some of the changed tensors lose. */
function reportTypes(gguf: Gguf, types: ReadonlyMap<string, GgufType>, file: string): ReportLine[] {
  const changes = [...types].filter(([name, type]) => type !== gguf.tensors.get(name)!.type);
  const kinds = Map.groupBy(changes, ([name, type]) => `${gguf.tensors.get(name)!.type} become ${type}`);
  const why = "what is added would be lost in coarser steps; --out-type (outType) chooses a type for all matrices";
  return Array.from(kinds, ([kind, { length }]) => ({ module: file, what: `${length} tensors of type ${kind}`, why }));
}

function typeOf(info: GgufTensorInfo, { changed, outType, source }: GgufParts): GgufType {
  const { name, type, shape } = info;
  const isMatrix = shape.length > 1;
  const wanted = outType && isMatrix ? OUT_TYPES[outType].type : changed.has(name) && !KEPT.has(type) ? "Q8_0" : type;
  if (wanted === type && !changed.has(name)) return type;
  if (!FLOATS.has(type) && !dequantizer(type)) {
    const message =
      `Cannot merge tensor ${quote(name)} of ${quote(source.name)} with type ${type}: expected F32, F16, ` +
      "BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K or Q6_K";
    throw new MismatchError(message, { file: source.name, tensor: name, field: "type", found: type });
  }
  // ggml's blocks lie in one row.
  return wanted === "Q8_0" && shape.at(-1)! % BLOCK !== 0 ? "F16" : wanted;
}

function planTensor(info: GgufTensorInfo, type: GgufType, { changed, gguf }: GgufParts): TensorPlan {
  const { name, offset, length, shape } = info;
  const place = {
    name,
    offset,
    length,
    padding: align(storedLength(info, type), gguf.alignment) - storedLength(info, type),
  };
  if (type === info.type && !changed.has(name)) {
    return { ...place, shape: [length], from: "U8", to: "U8" };
  }
  const dequantize = dequantizer(info.type);
  const { blockSize, blockBytes } = ggufTypeNamed(info.type);
  return {
    ...place,
    shape,
    from: (dequantize ? "F32" : info.type) as TensorPlan["from"],
    to: (type === "Q8_0" ? "F32" : type) as TensorPlan["to"],
    ...(dequantize && {
      decode: (blocks) => {
        const values = new Float32Array(blocks.length / blockBytes * blockSize);
        dequantize(blocks, values);
        return new Uint8Array(values.buffer);
      },
    }),
    ...(type === "Q8_0" && { encode: (elements) => quantizeQ80(alignedView(elements, Float32Array), name) }),
  };
}

function storedLength({ shape }: GgufTensorInfo, type: GgufType): number {
  const { blockSize, blockBytes } = ggufTypeNamed(type);
  return sizeOf(shape) / blockSize * blockBytes;
}

function align(length: number, alignment: number): number {
  return Math.ceil(length / alignment) * alignment;
}

async function readHeader(
  { source, gguf, outType }: GgufParts,
  types: ReadonlyMap<string, GgufType>,
  options: ReadOptions,
): Promise<Uint8Array> {
  const parts = [new TextEncoder().encode("GGUF"), u32(3), u64(gguf.tensors.size), u64(gguf.entries.size)];
  for (const [key, [start, end]] of gguf.entries) {
    const entry = await readExactly(source, start, end - start, options);
    // The file type is a u32 at the end of its entry.
    if (key === FILE_TYPE && outType && entry.length === 8 + key.length + 8) {
      entry.set(u32(OUT_TYPES[outType].file), entry.length - 4);
    }
    parts.push(entry);
  }
  let offset = 0;
  for (const info of gguf.tensors.values()) {
    const name = new TextEncoder().encode(info.name);
    const type = types.get(info.name)!;
    parts.push(u64(name.length), name, u32(info.shape.length), ...info.shape.toReversed().map(u64));
    parts.push(u32(ggufTypeNamed(type).id), u64(offset));
    offset += align(storedLength(info, type), gguf.alignment);
  }
  const header = concat(parts);
  return concat([header, new Uint8Array(align(header.length, gguf.alignment) - header.length)]);
}

function u32(value: number): Uint8Array {
  return new Uint8Array(Uint32Array.of(value).buffer);
}

function u64(value: number): Uint8Array {
  return new Uint8Array(BigUint64Array.of(BigInt(value)).buffer);
}
