import { NumericError, ShapeError } from "../errors.ts";
import { bitsPerElement, type StoredTensor, toFloat32 } from "../formats/dtype.ts";
import { quote } from "../formats/quote.ts";
import { formatShape, sizeOf } from "../shape.ts";
import type { CreateAdapterOptions } from "./create_options.ts";

type WeightOf = NonNullable<CreateAdapterOptions["weightOf"]>;

/**
 * Makes a caller's function check what it gives: factors and norms of NaN would look like those of a weight.
 *
 * @param weightOf Gives the weight of a module, or the inputs that it sees.
 * @returns The same, which throws a ShapeError for bytes that do not fill their shape, a NumericError for NaN and infinity.
 */
export function checkedWeights(weightOf: WeightOf): WeightOf {
  return async (module) => {
    const tensor: StoredTensor | undefined = await weightOf(module);
    if (tensor) checkWeight(tensor, module);
    return tensor;
  };
}

function checkWeight(tensor: StoredTensor, module: string): void {
  const { dtype, shape, bytes } = tensor;
  const what = `Cannot create ${quote(module)} of a tensor of shape ${formatShape(shape)}`;
  const expected = sizeOf(shape) * bitsPerElement(dtype) / 8;
  if (bytes.length !== expected) {
    const details = { tensor: module, field: "bytes", found: bytes.length, expected };
    throw new ShapeError(`${what} with ${bytes.length} bytes: expected ${expected}`, details);
  }
  const values = toFloat32(tensor);
  // a loop: a call for every element takes ten times as long
  for (let i = 0; i < values.length; i++) {
    if (Number.isFinite(values[i])) continue;
    const details = { tensor: module, found: values[i] };
    throw new NumericError(`${what} with ${values[i]} at ${i}: expected finite numbers`, details);
  }
}
