/**
 * Edits for fuzzing that know what they change: values of a JSON document, fields of a binary file, bytes. fast-check
 * makes lists of them and shortens a list that breaks something.
 *
 * @module
 */
import fc from "fast-check";

/** A change of one place; places and choices are taken modulo what there is. */
export interface Edit {
  readonly kind: number;
  readonly at: number;
  readonly choice: number;
}

/** Lists of edits, short ones mostly: each has a good part of the file left. */
export function edits(maxLength = 3): fc.Arbitrary<Edit[]> {
  const edit = fc.record({ kind: fc.nat(15), at: fc.nat(0xffff), choice: fc.nat(0xffff) });
  return fc.array(edit, { maxLength, size: "max" });
}

function pick<T>(items: readonly T[], choice: number): T {
  return items[choice % items.length]!;
}

/** A JSON document that can hold what no JavaScript value can: numbers as text, keys twice, broken tokens. */
export type Tree = Raw | Members | Tree[];

/** Text that goes into the document as it is. */
class Raw {
  readonly text: string;
  constructor(text: string) {
    this.text = text;
  }
}

/** An object, its entries in order. */
interface Members {
  readonly members: readonly Member[];
}

interface Member {
  readonly key: string;
  readonly value: Tree;
}

/** Values that a format has to judge, as JSON texts. */
const HOSTILE: readonly string[] = [
  ..."null true false 0 1 2 3 -1 -0 1e0 1.0 1.5 1e400 31 64 256 257 NaN 0x10".split(" "),
  ..."2147483647 4294967296 9007199254740991 9007199254740993 18446744073709551615".split(" "),
  ...["[]", "{}", "[[]]", "[0]", "[0,0]", "[1,1,1]", "[4294967296,4294967296]", '{"a":1}', "[1e0]", "[-1]", '["",""]'],
  ...['""', '"a"', '"q_proj"', '"__proto__"', '"constructor"', '"\\ud800"', '"\\u0000"', '"../a"', '"%2e%2e/a"'],
  ...['"F32"', '"BF16"', '"F4"', '"f32"', '"LORA"', '"default"', '"model.safetensors"', '"all-linear"', '"all"'],
  ...['"^(a+)+$"', '".*.*.*.*q_proj"', '"(?=a)"', '"["', '"a{99999}"', '"((((a*)*)*)*)*"', '"(a|a)*b"', '"\\\\d+"'],
  "[".repeat(40),
  `${"[".repeat(200)}${"]".repeat(200)}`,
  `"${"a".repeat(3000)}"`,
  `[${"0,".repeat(99)}1]`,
  "",
  ",",
];
const KEYS: readonly string[] = ["", "__proto__", "__metadata__", "dtype", "r", "q_proj", "model.layers.0.q_proj", "é"];

/** Parses an honest document. */
export function parseTree(text: string): Tree {
  return asTree(JSON.parse(text));
}

function asTree(value: unknown): Tree {
  if (Array.isArray(value)) return value.map(asTree);
  if (typeof value !== "object" || value === null) return new Raw(JSON.stringify(value));
  return { members: Object.entries(value).map(([key, item]) => ({ key, value: asTree(item) })) };
}

/** Writes a document. */
export function stringifyTree(tree: Tree): string {
  if (tree instanceof Raw) return tree.text;
  if (Array.isArray(tree)) return `[${tree.map(stringifyTree).join(",")}]`;
  return `{${tree.members.map(({ key, value }) => `${JSON.stringify(key)}:${stringifyTree(value)}`).join(",")}}`;
}

/** Changes values, keys and entries of a document. */
export function editTree(tree: Tree, list: readonly Edit[]): Tree {
  return list.reduce(editOnce, tree);
}

function editOnce(tree: Tree, edit: Edit): Tree {
  const size = tree instanceof Raw ? 0 : Array.isArray(tree) ? tree.length : tree.members.length;
  if (tree instanceof Raw || size === 0 || edit.at % 97 === 0) return new Raw(pick(HOSTILE, edit.choice));
  const index = edit.at % size;
  const inner = { ...edit, at: Math.floor(edit.at / size) };
  if (Array.isArray(tree)) return editList(tree, index, { ...edit, inner: (item) => editOnce(item, inner) });
  const changes = { ...edit, inner: ({ key, value }: Member) => ({ key, value: editOnce(value, inner) }) };
  return { members: editMember(tree.members, index, changes) };
}

type Change<T> = Edit & { readonly inner: (item: T) => T };

/** Drops, doubles or changes one item. */
function editList<T>(items: readonly T[], index: number, { kind, inner }: Change<T>): T[] {
  const copy = [...items];
  if (kind % 8 === 0) copy.splice(index, 1);
  else if (kind % 8 === 1) copy.splice(index, 0, copy[index]!);
  else copy[index] = inner(copy[index]!);
  return copy;
}

function editMember(members: readonly Member[], index: number, change: Change<Member>): Member[] {
  const { kind, choice } = change;
  const other = pick(members, choice);
  const replacement: Partial<Member> = {
    2: { key: pick(KEYS, choice) },
    3: { key: other.key },
    4: { value: new Raw(pick(HOSTILE, choice)) },
    5: { value: other.value },
  }[kind % 8] ?? {};
  if (Object.keys(replacement).length === 0) return editList(members, index, change);
  return members.map((member, i) => i === index ? { ...member, ...replacement } : member);
}

/** Numbers at which widths, signs and products break. */
export const EXTREMES: readonly bigint[] = [0n, 1n, 3n, 31n, 64n, 255n, 256n, 0xffffn, 0xffff_ffffn]
  .concat([2n ** 31n, 2n ** 32n, 2n ** 53n - 1n, 2n ** 53n, 2n ** 62n, 2n ** 63n, 2n ** 64n - 1n]);

/** Changes fields of a file that is a list of fields: drops, doubles, swaps, replaces by numbers or by others. */
export function editFields(
  fields: readonly Uint8Array[],
  list: readonly Edit[],
  pool: readonly Uint8Array[] = [],
): Uint8Array[] {
  const edited = [...fields];
  for (const { kind, at, choice } of list) {
    if (edited.length === 0) return edited;
    const index = at % edited.length;
    const field = edited[index]!;
    const way = kind % 6;
    if (way === 0) edited.splice(index, 1);
    else if (way === 1) edited.splice(index, 0, field);
    else if (way === 2 && pool.length > 0) edited.splice(index, 0, pick(pool, choice));
    else if (way === 3 && pool.length > 0) edited[index] = pick(pool, choice);
    else if (way === 4) edited[index] = pick(edited, choice);
    else edited[index] = number(field.length, pick(EXTREMES, choice));
  }
  return edited;
}

/** A number in a field of its length; in one that is longer than eight bytes at its start. */
function number(length: number, value: bigint): Uint8Array {
  const wide = new Uint8Array(Math.max(8, length));
  new DataView(wide.buffer).setBigUint64(0, value, true);
  return wide.subarray(0, length);
}

const TOKENS: readonly Uint8Array[] = [...'{}[],:"\\ \0', "\\ud800", "null", "-0", "1e9", '"shape"', "../", "\ufeff"]
  .map((token) => new TextEncoder().encode(token));

/** Changes bytes: a bit, a byte, a token, a number, a cut, a copied piece, more at the end. */
export function editBytes(file: Uint8Array, list: readonly Edit[]): Uint8Array {
  let bytes = file.slice();
  for (const { kind, at, choice } of list) {
    if (bytes.length < 16) return bytes;
    const place = at % (bytes.length - 8);
    const way = kind % 8;
    if (way === 0) bytes[place]! ^= 1 << choice % 8;
    else if (way === 1) bytes[place] = choice;
    else if (way === 2) bytes.set(pick(TOKENS, choice).subarray(0, bytes.length - place), place);
    else if (way === 3) new DataView(bytes.buffer).setBigUint64(place, pick(EXTREMES, choice), true);
    else if (way === 4) {
      new DataView(bytes.buffer).setUint32(place, Number(pick(EXTREMES, choice) & 0xffff_ffffn), true);
    } else if (way === 5) bytes.copyWithin(place, choice % bytes.length, (choice % bytes.length) + 16);
    else if (way === 6) bytes = bytes.slice(0, place + 8);
    else bytes = new Uint8Array([...bytes, ...bytes.subarray(place, place + 1 + choice % 64)]);
  }
  return bytes;
}
