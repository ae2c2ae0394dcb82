/**
 * The checks of every operation's arguments, made once, before dispatch, for all backends.
 *
 * @module
 */

import type {
  LinearBackwardOptions,
  LinearOptions,
  LoraBranch,
  LoraGradientBranch,
  MatrixValues,
  RowBranches,
  Tensor,
  Weight,
} from "./backend.ts";
import { NumericError } from "./errors.ts";
import {
  formatShape,
  type ProductSizes,
  refuse,
  refuseValue,
  requireColumns,
  requireMatrix,
  requireShape,
  sizeOf,
} from "./shape.ts";

/** Checks that as many values are given as the tensor holds. */
export function checkValues(shape: readonly number[], size: number, values: Float32Array): void {
  if (!(values instanceof Float32Array)) {
    throw new TypeError(`Cannot fill a tensor from ${typeof values}: values must be a Float32Array`);
  }
  if (values.length !== size) {
    throw refuseValue("fill a tensor", "values", values.length, `${size} for shape ${formatShape(shape)}`);
  }
}

/** Checks that a new shape has as many elements, and returns it. */
export function checkReshape(tensor: Tensor, shape: readonly number[]): void {
  if (sizeOf(shape) !== tensor.size) {
    throw refuse("run reshape", "tensor", tensor.shape, `as many elements as ${formatShape(shape)} has`);
  }
}

function checkBranch(operation: string, branch: LoraBranch, n: number, k: number): void {
  const [rank, inFeatures] = branch.a.shape;
  if (inFeatures !== k) throw refuse(`run ${operation}`, "A", branch.a.shape, `${k} columns to match W [${n}, ${k}]`);
  if (branch.b.shape[0] !== n || branch.b.shape[1] !== rank) {
    throw refuse(`run ${operation}`, "B", branch.b.shape, `[${n}, ${rank}] to match W [${n}, ${k}] and A`);
  }
  if (branch.a.dtype !== "f32" || branch.b.dtype !== "f32") {
    throw refuseValue(`run ${operation}`, "factors of dtype", `${branch.a.dtype} and ${branch.b.dtype}`, "f32");
  }
  if (!Number.isFinite(Math.fround(branch.scaling))) {
    throw new NumericError(`Cannot run ${operation} with scaling ${branch.scaling}: expected a finite f32`, {
      field: "scaling",
      found: branch.scaling,
    });
  }
}

function checkRanges(operation: string, ranges: readonly RowBranches[], { m, n, k }: ProductSizes): void {
  let end = 0;
  for (const range of ranges) {
    if (!(Number.isSafeInteger(range.start) && range.start >= end && range.end >= range.start && range.end <= m)) {
      const found = `${range.start} to ${range.end}`;
      throw refuseValue(`run ${operation}`, "rows", found, `ascending ranges without overlap in 0 to ${m}`);
    }
    end = range.end;
    for (const branch of range.branches) checkBranch(operation, branch, n, k);
  }
}

/** Checks the arguments of `linear`. */
export function checkLinear(x: Tensor, weight: Weight, options: LinearOptions): ProductSizes {
  const [n, k] = weight.shape;
  const m = requireColumns("linear", "x", x, k, `W of shape ${formatShape(weight.shape)}`);
  if (options.bias) requireShape("linear", "bias", options.bias, [n]);
  checkRanges("linear", options.adapters ?? [], { m, n, k });
  return { m, n, k };
}

function checkGradients(branch: LoraGradientBranch): void {
  if (branch.da) requireShape("linearBackward", "da", branch.da, branch.a.shape);
  if (branch.db) requireShape("linearBackward", "db", branch.db, branch.b.shape);
}

/** Checks the arguments of `linearBackward`. */
export function checkLinearBackward(
  dy: Tensor,
  x: Tensor,
  weight: Weight,
  options: LinearBackwardOptions,
): ProductSizes {
  const operation = "linearBackward";
  const [n, k] = weight.shape;
  const m = requireColumns(operation, "x", x, k, `W of shape ${formatShape(weight.shape)}`);
  requireShape(operation, "dy", dy, [m, n]);
  if (weight.merged) {
    throw new RangeError("Cannot run linearBackward on a merged weight: unmerge it first");
  }
  if (options.dx) requireShape(operation, "dx", options.dx, [m, k]);
  if (options.dw) requireShape(operation, "dw", options.dw, [n, k]);
  if (options.dbias) requireShape(operation, "dbias", options.dbias, [n]);
  checkRanges(operation, options.adapters ?? [], { m, n, k });
  for (const range of options.adapters ?? []) range.branches.forEach(checkGradients);
  return { m, n, k };
}

/** Checks one branch of its own, for `deltaWeight`. */
export function checkDelta(branch: LoraBranch): readonly [number, number] {
  const [n, k] = [branch.b.shape[0], branch.a.shape[1]];
  checkBranch("deltaWeight", branch, n, k);
  return [n, k];
}

/** Checks the arguments of `merge`. */
export function checkMerge(weight: Weight, branches: readonly LoraBranch[]): void {
  if (weight.merged) throw new RangeError("Cannot merge twice: adapters are already merged into this weight");
  for (const branch of branches) checkBranch("merge", branch, weight.shape[0], weight.shape[1]);
}

/** Checks that the branches of `mergeRows` fit the rows. */
export function checkMergeRows({ shape }: MatrixValues, branches: readonly LoraBranch[]): void {
  for (const branch of branches) checkBranch("mergeRows", branch, ...shape);
}

/** Checks the argument of `unmerge`. */
export function checkUnmerge(weight: Weight): void {
  if (!weight.merged) throw new RangeError("Cannot unmerge a weight: no adapter is merged into it");
}

/** Checks that every index is below `count`. */
export function checkIndices(operation: string, field: string, indices: Uint32Array, count: number): void {
  if (!(indices instanceof Uint32Array)) {
    throw new TypeError(`Cannot run ${operation} with ${field} of type ${typeof indices}: expected a Uint32Array`);
  }
  const at = indices.findIndex((index) => index >= count);
  if (at >= 0) throw refuseValue(`run ${operation}`, `${field}[${at}] =`, indices[at], `below ${count}`);
}

/** Checks the arguments of `takeRows`. */
export function checkTakeRows(x: Tensor, rows: Uint32Array): readonly [number, number] {
  const sizes = requireMatrix("takeRows", "x", x);
  checkIndices("takeRows", "rows", rows, sizes[0]);
  return sizes;
}

/** Checks the arguments of `rmsNorm`, and returns `[rows, dim]`. */
export function checkRmsNorm(x: Tensor, gain: Tensor, eps: number): readonly [number, number] {
  const dim = gain.shape[0] ?? 0;
  if (gain.shape.length !== 1 || dim === 0) throw refuse("run rmsNorm", "gain", gain.shape, "one dimension from 1");
  const columns = x.shape.at(-1) ?? 0;
  if (columns % dim !== 0) throw refuse("run rmsNorm", "x", x.shape, `a last dimension that is a multiple of ${dim}`);
  if (!(eps >= 0 && Number.isFinite(eps))) throw refuseValue("run rmsNorm", "eps", eps, "a finite number from 0");
  return [x.size / dim, dim];
}

/** Checks the arguments of `rope`. */
export function checkRope(x: Tensor, cos: Tensor, sin: Tensor): { rows: number; heads: number; half: number } {
  const [rows, columns] = requireMatrix("rope", "x", x);
  const half = cos.shape[1] ?? 0;
  requireShape("rope", "cos", cos, [rows, half]);
  requireShape("rope", "sin", sin, [rows, half]);
  if (half === 0 || columns % (2 * half) !== 0) {
    throw refuse("run rope", "x", x.shape, `columns that are a multiple of ${2 * half}, twice the columns of cos`);
  }
  return { rows, heads: columns / (2 * half), half };
}

/** Checks that two tensors have one shape. */
export function checkSame(
  operation: string,
  first: readonly [string, Tensor],
  second: readonly [string, Tensor],
): void {
  requireShape(operation, second[0], second[1], first[1].shape);
}

/** Checks the arguments of `crossEntropy`. */
export function checkCrossEntropy(logits: Tensor, targets: Uint32Array): readonly [number, number] {
  const [rows, classes] = requireMatrix("crossEntropy", "logits", logits);
  checkIndices("crossEntropy", "targets", targets, classes);
  if (targets.length !== rows) throw refuseValue("run crossEntropy", "targets", targets.length, `${rows}, one per row`);
  return [rows, classes];
}
