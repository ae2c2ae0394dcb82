import { FormatError } from "../../errors.ts";
import { type StoredTensor, toFloat32 } from "../../formats/dtype.ts";
import { quote } from "../../formats/quote.ts";

/**
 * Reads an alpha that is stored as a tensor.
 *
 * @param stored The tensor.
 * @param tensor Its name.
 * @param file Name of the file.
 * @returns The alpha.
 * @throws {FormatError} If it is not one float.
 */
export function readAlpha(stored: StoredTensor, tensor: string, file: string): number {
  const isScalar = stored.shape.every((dimension) => dimension === 1) && stored.shape.length <= 1;
  const isFloat = ["F32", "F16", "BF16", "F64"].includes(stored.dtype);
  if (isScalar && isFloat) return toFloat32(stored)[0]!;
  const found = `${stored.dtype} of shape [${stored.shape.join(", ")}]`;
  const message = `Cannot read tensor ${quote(tensor)} of ${quote(file)} as an alpha with ${found}`;
  throw new FormatError(`${message}: expected one float`, { file, tensor, found, expected: "one float" });
}
