/**
 * Writes torch zip files by hand, honest ones and others: a pickle assembler and a zip writer whose every field a test
 * can set.
 *
 * @module
 */
import { concat } from "../src/formats/concat.ts";

const encoder = new TextEncoder();

function u16(...values: number[]): Uint8Array {
  return new Uint8Array(Uint16Array.from(values).buffer);
}

function u32(...values: number[]): Uint8Array {
  return new Uint8Array(Uint32Array.from(values).buffer);
}

function u64(...values: bigint[]): Uint8Array {
  return new Uint8Array(BigUint64Array.from(values).buffer);
}

type Simple = "proto" | "stop" | "mark" | "tuple" | "emptyTuple" | "dict" | "setItem" | "setItems" | "reduce" | "build";
type Constant = "persistentId" | "none" | "false" | "true";

interface WithOperand {
  raw(...bytes: number[]): Uint8Array;
  global(module: string, name: string): Uint8Array;
  text(text: string): Uint8Array;
  int(value: number): Uint8Array;
  long(value: bigint): Uint8Array;
  put(index: number): Uint8Array;
  get(index: number): Uint8Array;
}

/** Opcodes of pickle protocol 2, as bytes. */
export const op: Readonly<Record<Simple | Constant, Uint8Array> & WithOperand> = {
  raw: (...bytes: number[]) => Uint8Array.from(bytes),
  proto: Uint8Array.of(0x80, 2),
  stop: encoder.encode("."),
  mark: encoder.encode("("),
  tuple: encoder.encode("t"),
  emptyTuple: encoder.encode(")"),
  dict: encoder.encode("}"),
  setItem: encoder.encode("s"),
  setItems: encoder.encode("u"),
  reduce: encoder.encode("R"),
  build: encoder.encode("b"),
  persistentId: encoder.encode("Q"),
  none: encoder.encode("N"),
  false: Uint8Array.of(0x89),
  true: Uint8Array.of(0x88),
  global: (module: string, name: string) => encoder.encode(`c${module}\n${name}\n`),
  text: (text: string) => concat([encoder.encode("X"), u32(encoder.encode(text).length), encoder.encode(text)]),
  int: (value: number) => concat([encoder.encode("J"), new Uint8Array(Int32Array.of(value).buffer)]),
  long: (value: bigint) => concat([Uint8Array.of(0x8a, 8), new Uint8Array(BigInt64Array.of(value).buffer)]),
  put: (index: number) => concat([encoder.encode("r"), u32(index)]),
  get: (index: number) => concat([encoder.encode("j"), u32(index)]),
};

/** A tuple of values that are already opcodes. */
export function tuple(...items: readonly Uint8Array[]): Uint8Array {
  return concat([op.mark, ...items, op.tuple]);
}

/** An empty OrderedDict. */
export function orderedDict(): Uint8Array {
  return concat([op.global("collections", "OrderedDict"), op.emptyTuple, op.reduce]);
}

/** What a test's tensor looks like to a pickle. */
export interface TensorSpec {
  readonly key?: string;
  readonly type?: string;
  /** Elements of the storage. */
  readonly length?: number;
  readonly offset?: number;
  readonly shape?: readonly number[];
  readonly strides?: readonly number[];
  readonly hooks?: Uint8Array;
}

/** A tensor, as torch pickles it. */
export function tensor(spec: TensorSpec = {}): Uint8Array {
  const { key = "0", type = "FloatStorage", length = 6, offset = 0, shape = [2, 3], strides = [3, 1] } = spec;
  const integer = (value: number) => value === (value | 0) ? op.int(value) : op.long(BigInt(value));
  const id = tuple(op.text("storage"), op.global("torch", type), op.text(key), op.text("cpu"), integer(length));
  return concat([
    op.global("torch._utils", "_rebuild_tensor_v2"),
    tuple(
      concat([id, op.persistentId]),
      integer(offset),
      tuple(...shape.map(integer)),
      tuple(...strides.map(integer)),
      op.false,
      spec.hooks ?? orderedDict(),
    ),
    op.reduce,
  ]);
}

/** A pickled dict of values that are already opcodes. */
export function pickle(values: Readonly<Record<string, Uint8Array>>): Uint8Array {
  const items = Object.entries(values).flatMap(([name, value]) => [op.text(name), value]);
  return concat([op.proto, op.dict, op.mark, ...items, op.setItems, op.stop]);
}

/** Fields of one entry that a test may set; what is absent is honest. */
export interface EntryChange {
  readonly name?: string;
  readonly localName?: string;
  readonly method?: number;
  readonly localMethod?: number;
  readonly flags?: number;
  readonly size?: number;
  readonly storedSize?: number;
  readonly localSize?: number;
  readonly offset?: number;
  /** Whether the directory has size and offset in 64-bit fields; these are their values. */
  readonly zip64?: readonly bigint[];
}

/** Fields of the end records that a test may set. */
export interface EndChange {
  readonly count?: number;
  readonly size?: number;
  readonly offset?: number;
  /** Count, size and offset in 64 bits. */
  readonly end64?: readonly bigint[];
  readonly end64At?: bigint;
  readonly comment?: string;
  readonly prefix?: Uint8Array;
}

/** Writes a zip of stored entries. */
export function zip(
  entries: readonly (readonly [name: string, content: Uint8Array, change?: EntryChange])[],
  end: EndChange = {},
): Uint8Array {
  const parts: Uint8Array[] = [end.prefix ?? new Uint8Array()];
  const directory: Uint8Array[] = [];
  let at = parts[0]!.length;
  for (const [name, content, change = {}] of entries) {
    const { method = 0, flags = 0, size = content.length, storedSize = size, offset = at } = change;
    const local = encoder.encode(change.localName ?? change.name ?? name);
    const localSize = change.localSize ?? content.length;
    const header = concat([
      u32(0x04034b50),
      u16(0, flags, change.localMethod ?? method, 0, 0),
      u32(0, localSize, localSize),
      u16(local.length, 0),
    ]);
    parts.push(header, local, content);
    at += header.length + local.length + content.length;
    const central = encoder.encode(change.name ?? name);
    const extra = change.zip64 ? concat([u16(1, 8 * change.zip64.length), u64(...change.zip64)]) : new Uint8Array();
    const sizes = change.zip64 ? [0xffffffff, 0xffffffff] : [storedSize, size];
    directory.push(
      concat([u32(0x02014b50), u16(0, 0, flags, method, 0, 0), u32(0, ...sizes)]),
      concat([u16(central.length, extra.length, 0, 0, 0), u32(0, change.zip64 ? 0xffffffff : offset), central, extra]),
    );
  }
  const bytes = concat(directory);
  return concat([...parts, bytes, endRecords(entries.length, bytes.length, at, end)]);
}

function endRecords(count: number, size: number, offset: number, end: EndChange): Uint8Array {
  const [count64, size64, offset64] = end.end64 ?? [];
  const at64 = end.end64At ?? BigInt(offset + size);
  const records = end.end64 === undefined ? [] : [
    concat([u32(0x06064b50), u64(44n), u16(0, 0), u32(0, 0), u64(count64!, count64!, size64!, offset64!)]),
    concat([u32(0x07064b50, 0), u64(at64), u32(1)]),
  ];
  const short = end.count ?? count;
  const comment = encoder.encode(end.comment ?? "");
  const last = [u32(0x06054b50), u16(0, 0, short, short), u32(end.size ?? size, end.offset ?? offset)];
  return concat([...records, ...last, u16(comment.length), comment]);
}

/** A torch file: its pickle, and storages by key. */
export function torchFile(
  pickled: Uint8Array,
  storages: Readonly<Record<string, Uint8Array>> = { "0": new Uint8Array(24) },
  more: readonly (readonly [name: string, content: Uint8Array])[] = [["a/byteorder", encoder.encode("little")]],
): Uint8Array {
  const data = Object.entries(storages).map(([key, bytes]) => [`a/data/${key}`, bytes] as const);
  return zip([["a/data.pkl", pickled], ...more, ...data]);
}
