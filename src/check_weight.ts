/**
 * The checks of what weights are made of, made once, before dispatch, for all backends.
 *
 * @module
 */

import type { MatrixValues, MergeRowsOptions, Weight, WeightDtype, WeightOptions } from "./backend.ts";
import { NumericError, ShapeError } from "./errors.ts";
import { formatShape, refuse, refuseValue, sizeOf } from "./shape.ts";

interface ValueType {
  /** Elements that are stored together. */
  readonly block: number;
  /** Their bytes. */
  readonly bytes: number;
  /** The only type that takes them, if not all do. */
  readonly only?: WeightDtype;
}

const VALUE_TYPES: Readonly<Record<MatrixValues["dtype"], ValueType>> = {
  f32: { block: 1, bytes: 4 },
  f16: { block: 1, bytes: 2 },
  bf16: { block: 1, bytes: 2 },
  q8_0: { block: 32, bytes: 34, only: "int8" },
  q4_0: { block: 32, bytes: 18, only: "int4" },
  q4_1: { block: 32, bytes: 20, only: "int4" },
};
const WEIGHT_DTYPES: readonly string[] = ["f32", "bf16", "f16", "f8", "int8", "int4", "nf4"];

/** Checks a matrix for `weight`: known types that this backend stores, and as many bytes as its shape says. */
export function checkMatrixValues(
  { shape, dtype, bytes }: MatrixValues,
  { dtype: wanted = "f32", transposed = false }: WeightOptions,
  stored: readonly WeightDtype[],
): void {
  const type: ValueType | undefined = Object.hasOwn(VALUE_TYPES, dtype) ? VALUE_TYPES[dtype] : undefined;
  if (type === undefined || !WEIGHT_DTYPES.includes(wanted)) {
    const expected = `${WEIGHT_DTYPES.join(", ")} from ${Object.keys(VALUE_TYPES).join(", ")}`;
    throw new TypeError(`Cannot create a "${wanted}" weight from "${dtype}": expected ${expected}`);
  }
  if (!stored.includes(wanted)) {
    throw refuseDtype(`"${wanted}" weight`, wanted, `${stored.join(" or ")} on this backend`);
  }
  if (type.only !== undefined && (wanted !== type.only || transposed)) {
    throw refuseDtype(`"${wanted}" weight from "${dtype}"`, dtype, `its own form, ${type.only}, not transposed`);
  }
  if (!(bytes instanceof Uint8Array)) {
    throw new TypeError(`Cannot create a weight from bytes of type ${typeof bytes}: expected a Uint8Array`);
  }
  if (shape.length !== 2) throw refuse("create a weight", "values", shape, "two dimensions");
  if (shape[1] % type.block !== 0) {
    throw refuse("create a weight", "values", shape, `columns that are a multiple of ${type.block} for ${dtype}`);
  }
  const length = sizeOf(shape) / type.block * type.bytes;
  if (bytes.byteLength !== length) {
    throw refuseValue("create a weight", "bytes", bytes.byteLength, `${length} for ${dtype} ${formatShape(shape)}`);
  }
}

function refuseDtype(what: string, found: string, expected: string): ShapeError {
  const message = `Cannot create ${/^"[aeiou]/.test(what) ? "an" : "a"} ${what}: expected ${expected}`;
  return new ShapeError(message, { field: "dtype", found, expected });
}

/** Checks rows as files store them, and what `mergeRows` makes of them. */
export function checkStoredRows(rows: MatrixValues, { dtype, into }: MergeRowsOptions): void {
  checkMatrixValues(rows, {}, ["f32"]);
  const floats = ["f32", "f16", "bf16"];
  const other = [rows.dtype, dtype].find((dtype) => !floats.includes(dtype));
  if (other !== undefined) throw new TypeError(`Cannot merge rows of "${other}": expected ${floats.join(", ")}`);
  const length = sizeOf(rows.shape) * VALUE_TYPES[dtype].bytes;
  if (into && into.length < length) {
    throw refuseValue("merge rows", "into of", `${into.length} bytes`, `at least ${length}`);
  }
}

/** Checks the arguments of `replace`: as many finite values as the weight has, and nothing merged yet. */
export function checkReplace(weight: Weight, values: MatrixValues): void {
  checkMatrixValues(values, { dtype: weight.dtype }, [weight.dtype]);
  if (VALUE_TYPES[values.dtype].only) throw refuseDtype(`replacement from "${values.dtype}"`, values.dtype, "floats");
  if (weight.merged) throw new RangeError("Cannot merge twice: adapters are already merged into this weight");
  if (values.shape[0] !== weight.shape[0] || values.shape[1] !== weight.shape[1]) {
    throw refuse("replace a weight", "values", values.shape, formatShape(weight.shape));
  }
  if (!isFinite(values, weight.dtype)) {
    throw new NumericError("Cannot replace a weight with values that are not finite");
  }
}

/** Whether no value has all bits of its exponent set, nor gets them when it is rounded. */
function isFinite({ dtype, bytes }: MatrixValues, target: Weight["dtype"]): boolean {
  const [width, exponent] = dtype === "f32" ? [4, 0x7f80] : [2, dtype === "f16" ? 0x7c00 : 0x7f80];
  const narrows = dtype === "f32" && target === "bf16";
  for (let high = width - 2; high < bytes.length; high += width) {
    const bits = bytes[high]! | bytes[high + 1]! << 8;
    if ((bits & exponent) === exponent) return false;
    if (narrows && (bits & 0x7fff) === 0x7f7f && bytes[high - 1]! >= 0x80) return false;
  }
  return true;
}
