/**
 * Shapes: their sizes, how messages write them, and the refusals that every check is made of.
 *
 * @module
 */

import type { Tensor } from "./backend.ts";
import { ShapeError } from "./errors.ts";

/** The sizes of a product y (m, n) = x (m, k) Wᵀ. */
export interface ProductSizes {
  /** Rows. */
  readonly m: number;
  /** Output features. */
  readonly n: number;
  /** Input features. */
  readonly k: number;
}

/** 1 / temperature as a normal f32, so that no kernel multiplies zero by infinity. */
export function inverseTemperature(temperature: number): number {
  return Math.min(Math.max(1 / temperature, 2 ** -126), 2 ** 127);
}

/** Writes a shape as messages do: `[2, 3]`. */
export function formatShape(shape: readonly number[]): string {
  return `[${shape.join(", ")}]`;
}

/**
 * Multiplies the lengths of a shape.
 *
 * @throws {ShapeError} If a length is not a whole number from 0, or the product passes 2^53 - 1.
 */
export function sizeOf(shape: readonly number[]): number {
  let size = 1;
  for (const length of shape) {
    if (!Number.isSafeInteger(length) || length < 0 || (length > 0 && size > Number.MAX_SAFE_INTEGER / length)) {
      const message = `Cannot create a tensor of shape ${formatShape(shape)}: expected whole numbers from 0`;
      throw new ShapeError(`${message} whose product is below 2^53`, { field: "shape", found: shape });
    }
    size *= length;
  }
  return size;
}

/** The error for a tensor of the wrong shape. */
export function refuse(action: string, field: string, found: readonly number[], expected: string): ShapeError {
  const message = `Cannot ${action} with ${field} of shape ${formatShape(found)}: expected ${expected}`;
  return new ShapeError(message, { field, found, expected });
}

/** The error for a wrong number. */
export function refuseValue(action: string, field: string, found: unknown, expected: string): ShapeError {
  return new ShapeError(`Cannot ${action} with ${field} ${found}: expected ${expected}`, { field, found, expected });
}

/** Refuses a tensor that has not exactly this shape. */
export function requireShape(
  operation: string,
  field: string,
  { shape }: Pick<Tensor, "shape">,
  expected: readonly number[],
): void {
  if (shape.length !== expected.length || shape.some((length, i) => length !== expected[i])) {
    throw refuse(`run ${operation}`, field, shape, formatShape(expected));
  }
}

/** Returns `[rows, columns]`, and refuses a tensor of other than two dimensions. */
export function requireMatrix(operation: string, field: string, tensor: Tensor): readonly [number, number] {
  const [rows, columns] = tensor.shape;
  if (tensor.shape.length !== 2 || rows === undefined || columns === undefined) {
    throw refuse(`run ${operation}`, field, tensor.shape, "two dimensions");
  }
  return [rows, columns];
}

/** Returns the rows of a matrix, and refuses one that has not so many columns. */
export function requireColumns(
  operation: string,
  field: string,
  tensor: Tensor,
  columns: number,
  match: string,
): number {
  const [rows, found] = requireMatrix(operation, field, tensor);
  if (found !== columns) {
    throw refuse(`run ${operation}`, field, tensor.shape, `${columns} columns to match ${match}`);
  }
  return rows;
}

/** Refuses a number that is not whole, or below `least`. */
export function requireWhole(operation: string, field: string, value: number, least: number): void {
  if (!Number.isSafeInteger(value) || value < least) {
    throw refuseValue(`run ${operation}`, field, value, `a whole number from ${least}`);
  }
}
