/**
 * The checks of operations that go row by row, made once, before dispatch, for all backends.
 *
 * @module
 */

import type { ColumnSumOptions, GatherLists, RowAffine, Tensor, Weight } from "./backend.ts";
import { NumericError } from "./errors.ts";
import { refuse, refuseValue, requireMatrix, requireShape } from "./shape.ts";

/** Checks the arguments of `layerNorm`, and returns `[rows, dim]`. */
export function checkLayerNorm(x: Tensor, gain: Tensor, bias: Tensor, eps: number): readonly [number, number] {
  const dim = gain.shape[0] ?? 0;
  if (gain.shape.length !== 1 || dim === 0) throw refuse("run layerNorm", "gain", gain.shape, "one dimension from 1");
  requireShape("layerNorm", "bias", bias, [dim]);
  if (x.shape.at(-1) !== dim) throw refuse("run layerNorm", "x", x.shape, `a last dimension of ${dim}`);
  if (!(eps >= 0 && Number.isFinite(eps))) throw refuseValue("run layerNorm", "eps", eps, "a finite number from 0");
  return [x.size / dim, dim];
}

/** A range of rows with what `affineRows` does to it; all are given. */
export type WholeAffine = Required<Pick<RowAffine, "start" | "end" | "factor">> & Pick<RowAffine, "scale" | "shift">;

/** Checks the arguments of `affineRows`, and returns ranges that cover all rows, with the number of columns. */
export function checkAffineRows(x: Tensor, ranges: readonly RowAffine[]): { whole: WholeAffine[]; dim: number } {
  const [rows, dim] = requireMatrix("affineRows", "x", x);
  const whole: WholeAffine[] = [];
  let next = 0;
  for (const { start, end, factor = 1, scale, shift } of ranges) {
    if (!(Number.isSafeInteger(start) && start >= next && end >= start && end <= rows)) {
      const expected = `ascending ranges without overlap in 0 to ${rows}`;
      throw refuseValue("run affineRows", "rows", `${start} to ${end}`, expected);
    }
    requireFinite("affineRows", factor);
    if (scale) requireShape("affineRows", "scale", scale, [dim]);
    if (shift) requireShape("affineRows", "shift", shift, [dim]);
    if (start > next) whole.push({ start: next, end: start, factor: 1 });
    whole.push({ start, end, factor, ...(scale && { scale }), ...(shift && { shift }) });
    next = end;
  }
  if (next < rows) whole.push({ start: next, end: rows, factor: 1 });
  return { whole, dim };
}

function requireFinite(operation: string, factor: number): void {
  if (Number.isFinite(Math.fround(factor))) return;
  const message = `Cannot run ${operation} with factor ${factor}: expected a finite f32`;
  throw new NumericError(message, { field: "factor", found: factor });
}

/** Checks the arguments of `columnSums`, and returns `[rows, dim]`. */
export function checkColumnSums(sums: Tensor, x: Tensor, options: ColumnSumOptions): readonly [number, number] {
  const [rows, dim] = requireMatrix("columnSums", "x", x);
  requireShape("columnSums", "sums", sums, [dim]);
  if (options.y) requireShape("columnSums", "y", options.y, x.shape);
  requireFinite("columnSums", options.factor ?? 1);
  return [rows, dim];
}

/** Checks the arguments of `gatherSum`, and returns `[rows of y, dim]`. */
export function checkGatherSum(x: Tensor, { offsets, rows, weights }: GatherLists): readonly [number, number] {
  const operation = "run gatherSum";
  const [count, dim] = requireMatrix("gatherSum", "x", x);
  if (!(offsets instanceof Uint32Array && rows instanceof Uint32Array)) {
    throw new TypeError(`Cannot ${operation} with offsets and rows that are no Uint32Array`);
  }
  if (weights !== undefined && !(weights instanceof Float32Array)) {
    throw new TypeError(`Cannot ${operation} with weights of type ${typeof weights}: expected a Float32Array`);
  }
  const ascending = offsets.every((offset, i) => i === 0 ? offset === 0 : offset >= offsets[i - 1]!);
  if (offsets.length === 0 || !ascending || offsets.at(-1) !== rows.length) {
    throw refuseValue(operation, "offsets", `to ${offsets.at(-1)}`, `ascending from 0 to the ${rows.length} terms`);
  }
  if (weights && weights.length !== rows.length) {
    throw refuseValue(operation, "weights", weights.length, `${rows.length}, one per term`);
  }
  const at = rows.findIndex((row) => row >= count);
  if (at >= 0) throw refuseValue(operation, `rows[${at}] =`, rows[at], `below ${count}`);
  return [offsets.length - 1, dim];
}

/** Checks the argument of `transpose`, and returns its sizes. */
export function checkTranspose(x: Tensor): readonly [batch: number, rows: number, columns: number] {
  const [batch = 0, rows = 0, columns = 0] = x.shape;
  if (x.shape.length !== 3) throw refuse("run transpose", "x", x.shape, "[batch, rows, columns]");
  return [batch, rows, columns];
}

/** Checks that a branch belongs to the weight of `inverseNorms`. */
export function checkNorms(weight: Weight, [out, inner]: readonly [number, number]): void {
  const [n, k] = weight.shape;
  if (n === out && k === inner) return;
  throw refuse("run inverseNorms", "the branch", [out, inner], `[${n}, ${k}] to match W`);
}
