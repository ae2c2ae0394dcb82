/**
 * The writer of `torch.save` files: a dict of contiguous tensors, as `torch.load(weights_only=True)` reads it.
 *
 * @module
 */

import { FormatError, LimitError } from "../errors.ts";
import { concat } from "./concat.ts";
import { bitsPerElement, type Dtype, type StoredTensor } from "./dtype.ts";
import { quote } from "./quote.ts";
import { METADATA } from "./torch.ts";

const STORAGES: ReadonlyMap<Dtype, string> = new Map<Dtype, string>([
  ["F64", "DoubleStorage"],
  ["F32", "FloatStorage"],
  ["F16", "HalfStorage"],
  ["BF16", "BFloat16Storage"],
]);
const ROOT = "archive";
/** Items that one opcode puts into the dict: readers cap their stack. */
const BATCH = 1000;
/** Sizes and offsets above need the 64-bit fields of zip, which this writer has not. */
const MAX_FILE = 2 ** 32 - 1;
const MAX_ENTRIES = 2 ** 16 - 1;

/**
 * Encodes a dict of tensors.
 *
 * @param tensors The tensors by name: F64, F32, F16 or BF16.
 * @param metadata Texts for `readTorchMetadata()`, in an entry that torch passes over; none is written if empty.
 * @returns The file.
 * @throws {FormatError} If a tensor has another type.
 * @throws {LimitError} If the file would be 4 GiB or larger, or hold more than 65,531 tensors.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * import { memorySource } from "./memory.ts";
 * import { readTorch } from "./torch.ts";
 * const tensor = { dtype: "F16", shape: [1], bytes: new Uint8Array([0, 0x3c]) } as const;
 * const tensors = await readTorch(memorySource("a.pt", encodeTorch(new Map([["w", tensor]]))));
 * assert.deepEqual(tensors.get("w"), tensor);
 * ```
 */
export function encodeTorch(
  tensors: ReadonlyMap<string, StoredTensor>,
  metadata: ReadonlyMap<string, string> = new Map(),
): Uint8Array {
  const entries = [...tensors].map(([, { bytes }], key) => [`${ROOT}/data/${key}`, bytes] as const);
  const texts = [`${ROOT}/${METADATA}`, ascii(JSON.stringify(Object.fromEntries(metadata)))] as const;
  return encodeZip([
    [`${ROOT}/data.pkl`, encodePickle(tensors)],
    [`${ROOT}/byteorder`, ascii("little")],
    ...entries,
    ...(metadata.size > 0 ? [texts] : []),
    [`${ROOT}/version`, ascii("3\n")],
  ]);
}

/** Protocol 2: a dict whose values call `torch._utils._rebuild_tensor_v2`, filled by thousands as Python does. */
function encodePickle(tensors: ReadonlyMap<string, StoredTensor>): Uint8Array {
  const parts = [Uint8Array.of(0x80, 2), ascii("}")];
  let key = 0;
  for (const [name, tensor] of tensors) {
    if (key % BATCH === 0) parts.push(ascii(key === 0 ? "(" : "u("));
    parts.push(text(name), ...rebuild(name, String(key++), tensor));
  }
  parts.push(ascii(key === 0 ? "." : "u."));
  return concat(parts);
}

function rebuild(name: string, key: string, { dtype, shape, bytes }: StoredTensor): Uint8Array[] {
  const storage = STORAGES.get(dtype);
  if (storage === undefined) {
    const expected = [...STORAGES.keys()];
    const message = `Cannot write tensor ${quote(name)} of dtype ${dtype} for torch: expected ${expected.join(", ")}`;
    throw new FormatError(message, { tensor: name, field: "dtype", found: dtype, expected });
  }
  const length = bytes.length * 8 / bitsPerElement(dtype);
  const strides = shape.map((_, i) => shape.slice(i + 1).reduce((product, dimension) => product * dimension, 1));
  return [
    ascii("ctorch._utils\n_rebuild_tensor_v2\n(("),
    text("storage"),
    ascii(`ctorch\n${storage}\n`),
    text(key),
    text("cpu"),
    ...integer(length),
    ascii("tQ"),
    ...integer(0),
    ...integers(shape),
    ...integers(strides),
    // requires_grad is False; the backward hooks are an empty OrderedDict.
    Uint8Array.of(0x89),
    ascii("ccollections\nOrderedDict\n)RtR"),
  ];
}

function integers(values: readonly number[]): Uint8Array[] {
  return [ascii("("), ...values.flatMap(integer), ascii("t")];
}

function integer(value: number): Uint8Array[] {
  if (value <= 0x7fffffff) return [ascii("J"), words(value)];
  return [Uint8Array.of(0x8a, 8), new Uint8Array(BigUint64Array.of(BigInt(value)).buffer)];
}

function text(value: string): Uint8Array {
  const bytes = new TextEncoder().encode(value);
  return concat([ascii("X"), words(bytes.length), bytes]);
}

function encodeZip(entries: readonly (readonly [name: string, content: Uint8Array])[]): Uint8Array {
  const parts: Uint8Array[] = [];
  const directory: Uint8Array[] = [];
  let at = 0;
  for (const [name, content] of entries) {
    const sums = concat([words(crc32(content), content.length, content.length), halves(name.length, 0)]);
    const local = concat([words(0x04034b50), halves(0, 0, 0, 0, 0), sums, ascii(name)]);
    directory.push(words(0x02014b50), halves(0, 0, 0, 0, 0, 0), sums, halves(0, 0, 0), words(0, at), ascii(name));
    parts.push(local, content);
    at += local.length + content.length;
  }
  const end = concat(directory);
  const size = at + end.length;
  const [limit, value] = size > MAX_FILE ? [MAX_FILE, size] : [MAX_ENTRIES, entries.length];
  if (value > limit) {
    throw new LimitError(`Cannot write a torch file with ${value} bytes or entries: expected at most ${limit}`, {
      field: "entries",
      limit,
      value,
    });
  }
  const { length } = entries;
  return concat([...parts, end, words(0x06054b50), halves(0, 0, length, length), words(end.length, at), halves(0)]);
}

function crc32(bytes: Uint8Array): number {
  const table = Uint32Array.from({ length: 256 }, (_, byte) => {
    let rest = byte;
    for (let bit = 0; bit < 8; bit++) rest = rest & 1 ? (rest >>> 1) ^ 0xedb88320 : rest >>> 1;
    return rest;
  });
  let rest = 0xffffffff;
  for (const byte of bytes) rest = table[(rest ^ byte) & 0xff]! ^ (rest >>> 8);
  return ~rest >>> 0;
}

function ascii(value: string): Uint8Array {
  return new TextEncoder().encode(value);
}

function words(...values: number[]): Uint8Array {
  return new Uint8Array(Uint32Array.from(values).buffer);
}

function halves(...values: number[]): Uint8Array {
  return new Uint8Array(Uint16Array.from(values).buffer);
}
