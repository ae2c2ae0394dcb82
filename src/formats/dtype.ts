import { FormatError } from "../errors.ts";
import { alignedView } from "./aligned.ts";
import { decodeBf16, encodeBf16 } from "./bfloat16.ts";
import { decodeF16, encodeF16 } from "./float16.ts";

/** Element type of a stored tensor, by its safetensors name. */
export type Dtype =
  | "BOOL"
  | "F4"
  | "F6_E2M3"
  | "F6_E3M2"
  | "U8"
  | "I8"
  | "F8_E5M2"
  | "F8_E4M3"
  | "F8_E8M0"
  | "F8_E4M3FNUZ"
  | "F8_E5M2FNUZ"
  | "I16"
  | "U16"
  | "F16"
  | "BF16"
  | "I32"
  | "U32"
  | "F32"
  | "C64"
  | "F64"
  | "I64"
  | "U64";

// In the reference's order: its writer sorts by position in this list, largest first.
const BITS: Readonly<Record<Dtype, number>> = {
  BOOL: 8,
  F4: 4,
  F6_E2M3: 6,
  F6_E3M2: 6,
  U8: 8,
  I8: 8,
  F8_E5M2: 8,
  F8_E4M3: 8,
  F8_E8M0: 8,
  F8_E4M3FNUZ: 8,
  F8_E5M2FNUZ: 8,
  I16: 16,
  U16: 16,
  F16: 16,
  BF16: 16,
  I32: 32,
  U32: 32,
  F32: 32,
  C64: 64,
  F64: 64,
  I64: 64,
  U64: 64,
};

/** All element types, in ascending alignment: the order by which the safetensors writer sorts. */
export const DTYPES: readonly Dtype[] = Object.keys(BITS) as Dtype[];

/** A tensor as it lies in a file: little-endian bytes, which need not be aligned to the element size. */
export interface StoredTensor {
  /** Element type. */
  readonly dtype: Dtype;
  /** Row-major shape, outermost dimension first. */
  readonly shape: readonly number[];
  /** The elements, little-endian, without padding. */
  readonly bytes: Uint8Array;
}

/** Element types that factors and base weights may have. */
export type FloatDtype = "F32" | "F16" | "BF16";

/** All of them. */
export const FLOAT_DTYPES: readonly FloatDtype[] = ["F32", "F16", "BF16"];

/** A tensor of such a type. */
export interface FloatTensor extends StoredTensor {
  /** Element type. */
  readonly dtype: FloatDtype;
}

/**
 * Tells whether a name is one of the 22 element types.
 *
 * @param name The name; case matters.
 * @returns True if it is.
 */
export function isDtype(name: string): name is Dtype {
  return Object.hasOwn(BITS, name);
}

/**
 * Gives the size of one element: 4 to 64 bits.
 *
 * @param dtype The element type.
 * @returns The size in bits.
 */
export function bitsPerElement(dtype: Dtype): number {
  return BITS[dtype];
}

/**
 * Converts a stored tensor to 32-bit floats.
 *
 * F16 and BF16 are exact, F64 is rounded to nearest. The result may share memory with an F32 tensor.
 *
 * @param tensor A tensor of dtype F32, F16, BF16 or F64.
 * @returns Its elements in row-major order.
 * @throws {FormatError} If the dtype is another one.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * import { toFloat32 } from "@lowrank/lora";
 * const tensor = { dtype: "BF16", shape: [1], bytes: new Uint8Array([0x80, 0x3f]) } as const;
 * assert.deepEqual(toFloat32(tensor), new Float32Array([1]));
 * ```
 */
export function toFloat32(tensor: StoredTensor): Float32Array {
  switch (tensor.dtype) {
    case "F32":
      return alignedView(tensor.bytes, Float32Array);
    case "F16":
      return decodeF16(tensor.bytes);
    case "BF16":
      return decodeBf16(tensor.bytes);
    case "F64":
      return new Float32Array(alignedView(tensor.bytes, Float64Array));
    default:
      throw new FormatError(
        `Cannot convert a tensor of dtype ${tensor.dtype} to 32-bit floats: expected F32, F16, BF16 or F64`,
        { field: "dtype", found: tensor.dtype, expected: ["F32", "F16", "BF16", "F64"] },
      );
  }
}

/**
 * Stores 32-bit floats, rounded once to nearest even; an F32 tensor shares memory with them.
 *
 * @param values The elements in row-major order.
 * @param shape Their shape.
 * @param dtype The type that they are rounded to; F32 if absent.
 * @returns The tensor.
 *
 * @example
 * ```ts
 * import { fromFloat32, toFloat32 } from "@lowrank/lora";
 * import assert from "node:assert/strict";
 *
 * const tensor = fromFloat32(Float32Array.of(1, 1.001), [2], "BF16");
 * assert.deepEqual([...toFloat32(tensor)], [1, 1]);
 * ```
 */
export function fromFloat32(values: Float32Array, shape: readonly number[], dtype: FloatDtype = "F32"): FloatTensor {
  if (dtype === "F16") return { dtype, shape, bytes: encodeF16(values) };
  if (dtype === "BF16") return { dtype, shape, bytes: encodeBf16(values) };
  return { dtype, shape, bytes: new Uint8Array(values.buffer, values.byteOffset, values.byteLength) };
}

/**
 * Tells whether two tensors are the same: type, shape and every bit.
 *
 * @param x One tensor.
 * @param y The other.
 * @returns True if they are.
 */
export function isSameTensor(x: StoredTensor, y: StoredTensor): boolean {
  return x.dtype === y.dtype && x.shape.join() === y.shape.join() && x.bytes.every((byte, i) => byte === y.bytes[i]);
}
