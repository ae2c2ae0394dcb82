/**
 * The pickles that torch writes, as data: a closed list of opcodes of protocol 2 that build tuples, lists, dicts and
 * descriptions of tensors. There is nothing in here that could run what a pickle names.
 *
 * @module
 */

import { FormatError, LimitError } from "../errors.ts";
import { PickleCursor } from "./pickle_cursor.ts";
import {
  allowedGlobal,
  describeValue,
  isKind,
  persistentStorage,
  type PickledItems,
  type PickledTensor,
  type PickleValue,
  reduce,
} from "./pickle_values.ts";
import { quote } from "./quote.ts";

export type { PickledStorage, PickledTensor } from "./pickle_values.ts";

/** Options of {@linkcode readPickledTensors}. */
export interface PickleOptions {
  /** Name of the file, for error messages. */
  readonly file: string;
  /** Most tensors; 16,384 if absent. */
  readonly maxTensors?: number;
}

const DEFAULT_MAX_TENSORS = 16_384;
/** torch writes batches of 1000 pairs; a dict in a dict needs little more. */
const MAX_STACK = 4096;
const MAX_MARKS = 64;
/** What a pickle may hold in memory; a tensor of torch costs about 60: one for a value or a memo, four for an object. */
const COST_PER_TENSOR = 128;
const OBJECT_COST = 4;

const PROTOCOL = 0x80;
const STOP = 0x2e;

/**
 * Reads a pickled dict of tensors by name.
 *
 * @param bytes The pickle.
 * @param options Name of the file and a cap.
 * @returns What the dict says of each tensor, in its order; every view lies within its storage.
 * @throws {FormatError} If any opcode, global or value is outside the closed lists; the error names it and its position.
 * @throws {LimitError} If there are more tensors than the cap.
 */
export function readPickledTensors(bytes: Uint8Array, options: PickleOptions): ReadonlyMap<string, PickledTensor> {
  return new PickleReader(bytes, options).read();
}

type Step = (reader: PickleReader) => void;

class PickleReader {
  readonly cursor: PickleCursor;
  readonly #bytes: Uint8Array;
  readonly #file: string;
  readonly #maxTensors: number;
  readonly #stack: PickleValue[] = [];
  readonly #marks: number[] = [];
  readonly #memo: PickleValue[] = [];
  #cost = 0;
  /** Position of the opcode now running. */
  #start = 0;

  constructor(bytes: Uint8Array, options: PickleOptions) {
    this.cursor = new PickleCursor(bytes, options.file, (expected) => this.refuse(expected));
    this.#bytes = bytes;
    this.#file = options.file;
    this.#maxTensors = options.maxTensors ?? DEFAULT_MAX_TENSORS;
  }

  read(): ReadonlyMap<string, PickledTensor> {
    if (this.cursor.integer(1) !== PROTOCOL || this.cursor.integer(1) !== 2) {
      throw this.refuse("a pickle of protocol 2");
    }
    for (;;) {
      this.#start = this.cursor.at;
      const opcode = this.cursor.integer(1);
      if (opcode === STOP) return this.#end();
      const step = OPCODES.get(opcode)?.step;
      if (!step) throw this.refuse("only opcodes that torch writes for tensors");
      step(this);
    }
  }

  global(): void {
    const [module, name] = [this.cursor.line(), this.cursor.line()];
    const value = allowedGlobal(module, name);
    if (value) return this.push(value);
    const found = `${module}.${name}`;
    throw this.refuse("only the globals of tensors: nothing in a pickle is ever called", found);
  }

  push(value: PickleValue): void {
    if (this.#stack.length >= MAX_STACK) throw this.refuse(`a stack of at most ${MAX_STACK} values`);
    this.#spend(typeof value === "object" ? OBJECT_COST : 1);
    this.#stack.push(value);
  }

  pop(): PickleValue {
    if (this.#stack.length <= (this.#marks.at(-1) ?? 0)) throw this.refuse("a value on the stack");
    return this.#stack.pop()!;
  }

  top(): PickleValue {
    const value = this.pop();
    this.#stack.push(value);
    return value;
  }

  mark(): void {
    if (this.#marks.length >= MAX_MARKS) throw this.refuse(`at most ${MAX_MARKS} marks`);
    this.#marks.push(this.#stack.length);
  }

  popToMark(): PickleValue[] {
    const mark = this.#marks.pop();
    if (mark === undefined) throw this.refuse("a mark on the stack");
    return this.#stack.splice(mark);
  }

  /** Numbers are given in order, so a memo is never larger than the pickle. */
  put(index: number): void {
    if (index !== this.#memo.length) throw this.refuse(`memo number ${this.#memo.length}, the next`);
    this.#spend(1);
    this.#memo.push(this.top());
  }

  get(index: number): void {
    if (index >= this.#memo.length) throw this.refuse(`one of ${this.#memo.length} memo numbers`);
    this.push(this.#memo[index]!);
  }

  append(items: readonly PickleValue[], kinds: readonly string[]): void {
    const target = this.top();
    if (typeof target !== "object" || target === null || !("items" in target) || !kinds.includes(target.kind)) {
      throw this.refuse(`a ${kinds[0]}`, describeValue(target));
    }
    for (const item of items) target.items.push(item);
  }

  setItems(items: readonly PickleValue[]): void {
    if (items.length % 2 !== 0) throw this.refuse("keys and values in pairs");
    this.append(items, ["dict", "OrderedDict"]);
  }

  reduce(): void {
    const args = this.pop();
    const callee = this.pop();
    const result = reduce(callee, args);
    if (typeof result === "string") throw this.refuse(result, describeValue(callee));
    this.push(result.value);
  }

  persistentId(): void {
    const storage = persistentStorage(this.pop());
    if (typeof storage === "string") throw this.refuse(storage);
    this.push(storage);
  }

  /** torch keeps versions of modules as an attribute of the OrderedDict; they say nothing about tensors. */
  build(): void {
    const state = this.pop();
    const target = this.top();
    if (!isKind(target, "OrderedDict")) throw this.refuse("attributes of an OrderedDict only", describeValue(target));
    if (!isKind(state, "dict")) throw this.refuse("attributes in a dict", describeValue(state));
  }

  refuse(expected: string, found?: string): FormatError {
    const name = opcodeName(this.#bytes[this.#start]);
    const what = `opcode ${name}${found === undefined ? "" : ` on ${quote(found)}`}`;
    const field = `byte ${this.#start}`;
    const message = `Cannot read ${quote(this.#file)} with ${what} at ${field} of its pickle`;
    return new FormatError(`${message}: expected ${expected}`, {
      code: "pickle",
      file: this.#file,
      field,
      found: found ?? name,
      expected,
    });
  }

  #end(): ReadonlyMap<string, PickledTensor> {
    const root = this.pop();
    if (this.#stack.length > 0 || this.cursor.at !== this.#bytes.length) {
      throw this.refuse("one value and then the end");
    }
    if (!isKind(root, "dict") && !isKind(root, "OrderedDict")) {
      throw this.refuse("a dict of tensors", describeValue(root));
    }
    return this.#tensors(root);
  }

  #tensors({ items }: PickledItems<"dict" | "OrderedDict">): ReadonlyMap<string, PickledTensor> {
    if (items.length > 2 * this.#maxTensors) throw this.#limit(items.length / 2);
    const tensors = new Map<string, PickledTensor>();
    for (let i = 0; i < items.length; i += 2) {
      const [name, value] = [items[i], items[i + 1]];
      if (typeof name !== "string") throw this.refuse("names of tensors as keys", describeValue(name));
      if (tensors.has(name)) throw this.refuse("every name once", name);
      if (!isKind(value, "tensor")) throw this.refuse(`a tensor under ${quote(name)}`, describeValue(value));
      tensors.set(name, value);
    }
    return tensors;
  }

  #spend(cost: number): void {
    this.#cost += cost;
    const limit = COST_PER_TENSOR * this.#maxTensors;
    if (this.#cost > limit) throw this.#limit(Math.ceil(this.#cost / COST_PER_TENSOR));
  }

  #limit(value: number): LimitError {
    const limit = this.#maxTensors;
    const message = `Cannot read ${quote(this.#file)} with the pickled values of ${value} tensors`;
    const details = { code: "pickle", file: this.#file, field: `byte ${this.#start}`, limit, value };
    return new LimitError(`${message}: expected at most ${limit}`, details);
  }
}

function opcodeName(opcode: number | undefined): string {
  if (opcode === undefined) return "missing";
  if (opcode === PROTOCOL || opcode === STOP) return opcode === STOP ? "STOP" : "PROTO";
  return OPCODES.get(opcode)?.name ?? `0x${opcode.toString(16).padStart(2, "0")}`;
}

function opcode(name: string, step: Step): { readonly name: string; readonly step: Step } {
  return { name, step };
}

const OPCODES: ReadonlyMap<number, ReturnType<typeof opcode>> = new Map([
  [0x28, opcode("MARK", (r) => r.mark())],
  [0x29, opcode("EMPTY_TUPLE", (r) => r.push({ kind: "tuple", items: [] }))],
  [0x47, opcode("BINFLOAT", (r) => r.push(r.cursor.double()))],
  [0x4a, opcode("BININT", (r) => r.push(r.cursor.signed()))],
  [0x4b, opcode("BININT1", (r) => r.push(r.cursor.integer(1)))],
  [0x4d, opcode("BININT2", (r) => r.push(r.cursor.integer(2)))],
  [0x4e, opcode("NONE", (r) => r.push(null))],
  [0x51, opcode("BINPERSID", (r) => r.persistentId())],
  [0x52, opcode("REDUCE", (r) => r.reduce())],
  [0x58, opcode("BINUNICODE", (r) => r.push(r.cursor.text()))],
  [0x5d, opcode("EMPTY_LIST", (r) => r.push({ kind: "list", items: [] }))],
  [0x61, opcode("APPEND", (r) => r.append([r.pop()], ["list"]))],
  [0x62, opcode("BUILD", (r) => r.build())],
  [0x63, opcode("GLOBAL", (r) => r.global())],
  [0x65, opcode("APPENDS", (r) => r.append(r.popToMark(), ["list"]))],
  [0x68, opcode("BINGET", (r) => r.get(r.cursor.integer(1)))],
  [0x6a, opcode("LONG_BINGET", (r) => r.get(r.cursor.integer(4)))],
  [0x71, opcode("BINPUT", (r) => r.put(r.cursor.integer(1)))],
  [0x72, opcode("LONG_BINPUT", (r) => r.put(r.cursor.integer(4)))],
  [0x73, opcode("SETITEM", (r) => r.setItems([r.pop(), r.pop()].reverse()))],
  [0x74, opcode("TUPLE", (r) => r.push({ kind: "tuple", items: r.popToMark() }))],
  [0x75, opcode("SETITEMS", (r) => r.setItems(r.popToMark()))],
  [0x7d, opcode("EMPTY_DICT", (r) => r.push({ kind: "dict", items: [] }))],
  [0x85, opcode("TUPLE1", (r) => r.push({ kind: "tuple", items: [r.pop()] }))],
  [0x86, opcode("TUPLE2", (r) => r.push({ kind: "tuple", items: [r.pop(), r.pop()].reverse() }))],
  [0x87, opcode("TUPLE3", (r) => r.push({ kind: "tuple", items: [r.pop(), r.pop(), r.pop()].reverse() }))],
  [0x88, opcode("NEWTRUE", (r) => r.push(true))],
  [0x89, opcode("NEWFALSE", (r) => r.push(false))],
  [0x8a, opcode("LONG1", (r) => r.push(r.cursor.long()))],
]);
