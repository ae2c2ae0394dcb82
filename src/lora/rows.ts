/**
 * Ranges of rows: taken out of a tensor, and put together again.
 *
 * @module
 */

import type { Backend, Tensor } from "../backend.ts";

/** Rows `start <= row < end`. */
export interface RowRange {
  /** First row. */
  readonly start: number;
  /** One past the last row. */
  readonly end: number;
}

/** The numbers from `start` below `end`. */
export function numbersFrom({ start, end }: RowRange): Uint32Array {
  return Uint32Array.from({ length: end - start }, (_, i) => start + i);
}

/** Rows of x (n, dim); x itself if they are all of it. */
export function rowsOf(backend: Backend, x: Tensor, range: RowRange): Tensor {
  return range.start === 0 && range.end === x.shape[0] ? x : backend.takeRows(x, numbersFrom(range));
}

/** Writes x (rows, dim) over the rows of y (n, dim) from `start` on. */
export function putRows(backend: Backend, y: Tensor, x: Tensor, start: number): void {
  backend.append(backend.reshape(y, [1, ...y.shape]), x, start);
}

/** Ranges that cover all rows: those given, and what lies between them as `rest` makes it. */
export function coverRows<Range extends RowRange>(
  ranges: readonly Range[],
  rows: number,
  rest: (range: RowRange) => Range,
): Range[] {
  const all: Range[] = [];
  let next = 0;
  for (const range of ranges) {
    if (range.start > next) all.push(rest({ start: next, end: range.start }));
    if (range.end > range.start) all.push(range);
    next = range.end;
  }
  if (next < rows) all.push(rest({ start: next, end: rows }));
  return all;
}

/** One tensor (n, dim) of what `part` makes of each range, which together cover n rows. */
export function assemble<Range extends RowRange>(
  backend: Backend,
  ranges: readonly Range[],
  [rows, dim]: readonly [number, number],
  part: (range: Range) => Tensor,
): Tensor {
  if (ranges.length === 1) return part(ranges[0]!);
  const y = backend.tensor([rows, dim]);
  for (const range of ranges) putRows(backend, y, part(range), range.start);
  return y;
}
