import type { Dtype } from "./dtype.ts";

/** A tensor as a pickle describes it: a strided view of a storage. Offset and strides count elements. */
export interface PickledTensor {
  /** Tells it from the other values. */
  readonly kind: "tensor";
  /** What it views. */
  readonly storage: PickledStorage;
  /** First element. */
  readonly offset: number;
  /** Shape, outermost dimension first. */
  readonly shape: readonly number[];
  /** Distance of neighbours along each dimension, from 0. */
  readonly strides: readonly number[];
}

/** A run of elements that a pickle names and another entry of the file holds. */
export interface PickledStorage {
  /** Tells it from the other values. */
  readonly kind: "storage";
  /** Name of the entry in the folder "data". */
  readonly key: string;
  /** Element type. */
  readonly dtype: Dtype;
  /** Number of elements. */
  readonly length: number;
}

/** An allowed name: a tag that nothing is called by. */
export interface PickledGlobal {
  /** Tells it from the other values. */
  readonly kind: "global";
  /** Module and name, joined by a dot. */
  readonly name: string;
  /** Element type, where it is a storage type. */
  readonly dtype?: Dtype;
}

/** A tuple or a list, or a dict as its keys and values in turn; only the root ever becomes a map. */
export interface PickledItems<K extends "tuple" | "list" | "dict" | "OrderedDict"> {
  /** Tells it from the other values. */
  readonly kind: K;
  /** What it holds. */
  readonly items: PickleValue[];
}

/** What the stack and the memo hold. */
export type PickleValue =
  | null
  | boolean
  | number
  | string
  | PickledTensor
  | PickledStorage
  | PickledGlobal
  | PickledItems<"tuple">
  | PickledItems<"list">
  | PickledItems<"dict">
  | PickledItems<"OrderedDict">;

const ORDERED_DICT = "collections.OrderedDict";
const REBUILD_TENSOR = "torch._utils._rebuild_tensor_v2";
const REBUILD_PARAMETER = "torch._utils._rebuild_parameter";
const STORAGES: ReadonlyMap<string, Dtype> = new Map<string, Dtype>([
  ["DoubleStorage", "F64"],
  ["FloatStorage", "F32"],
  ["HalfStorage", "F16"],
  ["BFloat16Storage", "BF16"],
  ["LongStorage", "I64"],
  ["IntStorage", "I32"],
  ["ShortStorage", "I16"],
  ["CharStorage", "I8"],
  ["ByteStorage", "U8"],
  ["BoolStorage", "BOOL"],
  ["ComplexFloatStorage", "C64"],
]);
const MAX_DIMENSIONS = 64;

/**
 * Looks a global up in the closed list: two rebuilders, OrderedDict, and the storage types.
 *
 * @param module Its module.
 * @param name Its name in the module.
 * @returns An inert tag, or undefined where the list lacks it.
 */
export function allowedGlobal(module: string, name: string): PickledGlobal | undefined {
  const path = `${module}.${name}`;
  if (path === ORDERED_DICT || path === REBUILD_TENSOR || path === REBUILD_PARAMETER) {
    return { kind: "global", name: path };
  }
  const dtype = module === "torch" ? STORAGES.get(name) : undefined;
  return dtype && { kind: "global", name: path, dtype };
}

/**
 * Says what REDUCE gives for an allowed global: a description of the result, as no code is there to be called.
 *
 * @param callee What is on the stack as the function.
 * @param args What is on the stack as its arguments.
 * @returns The value; a text says what was expected instead.
 */
export function reduce(callee: PickleValue, args: PickleValue): { readonly value: PickleValue } | string {
  if (!isKind(callee, "global") || callee.dtype) return "an allowed function";
  if (!isKind(args, "tuple")) return "a tuple of arguments";
  if (callee.name === ORDERED_DICT) {
    return args.items.length === 0 ? { value: { kind: "OrderedDict", items: [] } } : "no arguments";
  }
  return callee.name === REBUILD_TENSOR ? rebuildTensor(args.items) : rebuildParameter(args.items);
}

/**
 * Says what a persistent id stands for: ("storage", type, key, location, number of elements).
 *
 * @param id What is on the stack.
 * @returns The storage; a text says what was expected instead.
 */
export function persistentStorage(id: PickleValue): PickledStorage | string {
  const items = isKind(id, "tuple") ? id.items : [];
  const [tag, type, key, location, length] = items;
  if (tag !== "storage" || typeof key !== "string" || typeof location !== "string" || items.length !== 5) {
    return 'a tuple ("storage", type, key, location, length)';
  }
  if (!isKind(type, "global") || !type.dtype) return "a storage type of torch";
  if (!isCount(length)) return "a length from 0 to 2^53 - 1";
  return { kind: "storage", key, dtype: type.dtype, length };
}

/** Tells whether a value is of a kind. */
export function isKind<K extends Extract<PickleValue, { readonly kind: string }>["kind"]>(
  value: PickleValue | undefined,
  kind: K,
): value is Extract<PickleValue, { readonly kind: K }> {
  return typeof value === "object" && value !== null && value.kind === kind;
}

/** Names a value for an error message. */
export function describeValue(value: PickleValue | undefined): string {
  if (value === undefined) return "nothing";
  if (typeof value === "object" && value !== null) return value.kind === "global" ? value.name : `a ${value.kind}`;
  if (typeof value === "string") return "a string";
  return typeof value === "number" ? "a number" : String(value);
}

function rebuildTensor(args: readonly PickleValue[]): { readonly value: PickledTensor } | string {
  const [storage, offset, size, stride, requiresGrad, hooks, metadata = null] = args;
  if (args.length < 6 || args.length > 7 || !isKind(storage, "storage")) return "a storage and five more arguments";
  if (typeof requiresGrad !== "boolean") return "true or false as requires_grad";
  if (!isEmptyDict(hooks) || !(metadata === null || isEmptyDict(metadata))) return "no hooks and no metadata";
  const shape = counts(size);
  const strides = counts(stride);
  if (!isCount(offset) || !shape || !strides) return "offset, shape and strides of whole numbers from 0";
  if (shape.length !== strides.length || shape.length > MAX_DIMENSIONS) {
    return `as many strides as dimensions, at most ${MAX_DIMENSIONS}`;
  }
  if (lastElement(offset, shape, strides) >= storage.length) return `elements within its storage of ${storage.length}`;
  return { value: { kind: "tensor", storage, offset, shape, strides } };
}

function rebuildParameter(args: readonly PickleValue[]): { readonly value: PickledTensor } | string {
  const [tensor, requiresGrad, hooks] = args;
  if (args.length !== 3 || !isKind(tensor, "tensor")) return "a tensor and two more arguments";
  if (typeof requiresGrad !== "boolean" || !isEmptyDict(hooks)) return "true or false as requires_grad, and no hooks";
  return { value: tensor };
}

/** Index of the last element that a view touches; -1 where it has none. Beyond 2^53 it is only known to be too large. */
function lastElement(offset: number, shape: readonly number[], strides: readonly number[]): number {
  if (shape.includes(0)) return -1;
  return shape.reduce((last, length, dimension) => last + (length - 1) * strides[dimension]!, offset);
}

function counts(value: PickleValue | undefined): readonly number[] | undefined {
  if (!isKind(value, "tuple")) return undefined;
  const items: readonly PickleValue[] = value.items;
  return items.every(isCount) ? items : undefined;
}

function isCount(value: PickleValue | undefined): value is number {
  return typeof value === "number" && Number.isSafeInteger(value) && value >= 0;
}

function isEmptyDict(value: PickleValue | undefined): boolean {
  return (isKind(value, "OrderedDict") || isKind(value, "dict")) && value.items.length === 0;
}
