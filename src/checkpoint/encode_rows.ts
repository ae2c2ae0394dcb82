import { isFiniteTensor } from "../formats/float_bits.ts";
import { NumericError } from "../errors.ts";
import { type FloatDtype, fromFloat32, type StoredTensor, toFloat32 } from "../formats/dtype.ts";
import { quote } from "../formats/quote.ts";

/** What merged rows become. */
export interface MergedRows {
  /** The type that they are rounded to, once. */
  readonly dtype: FloatDtype;
  /** Name of the tensor, for the error. */
  readonly tensor: string;
  /** Memory that may be used for them. */
  readonly into: Uint8Array;
}

/** Elements that are added at a time: what is in between stays in the first cache. */
const CHUNK = 4096;

/** Adds values to stored ones in 32 bits and rounds the sums, once. */
export function addFinite({ dtype: from, bytes }: StoredTensor, values: Float32Array, to: MergedRows): Uint8Array {
  const [width, outWidth] = [bytes.length / values.length, to.dtype === "F32" ? 4 : 2];
  const out = to.into.subarray(0, values.length * outWidth);
  const sums = new Float32Array(CHUNK);
  for (let at = 0; at < values.length; at += CHUNK) {
    const count = Math.min(CHUNK, values.length - at);
    const chunk = toFloat32({ dtype: from, shape: [count], bytes: bytes.subarray(at * width, (at + count) * width) });
    for (let i = 0; i < count; i++) sums[i] = chunk[i]! + values[at + i]!;
    out.set(encodeFinite(sums.subarray(0, count), to), at * outWidth);
  }
  return out;
}

/** Rounds values to a stored dtype, once, to nearest even; none of them may be NaN or infinite then. */
export function encodeFinite(values: Float32Array, to: MergedRows): Uint8Array {
  const stored = fromFloat32(values, [values.length], to.dtype);
  if (isFiniteTensor(stored)) return stored.bytes;
  throw notFinite(to);
}

/** The error of a merge whose result is not finite. */
export function notFinite({ tensor, dtype }: MergedRows, cause?: unknown): NumericError {
  const message = `Cannot write tensor ${quote(tensor)} as ${dtype}: it would hold NaN or infinity`;
  const details = { tensor, cause };
  return new NumericError(`${message}, expected finite values; write f32 or bf16, or lower the weight`, details);
}
