/**
 * Merging rows as files store them, in memory that is free again afterwards.
 *
 * @module
 */

import type { MatrixValues, MergeRowsOptions } from "../backend.ts";
import { NumericError } from "../errors.ts";
import { formatShape } from "../shape.ts";
import { DTYPE_CODES } from "./dtypes.ts";
import type { Kernels } from "./kernels.ts";
import type { BranchAddresses } from "./linear.ts";
import type { LinearMemory } from "./memory.ts";
import { RECORD_BYTES, writeRecord } from "./merge.ts";

/**
 * Computes W + Σ s B A of stored rows.
 *
 * @throws {NumericError} If a result is NaN or infinite.
 */
export function mergeStoredRows(
  kernels: Kernels,
  memory: LinearMemory,
  { shape: [n, k], dtype, bytes }: MatrixValues,
  branches: readonly BranchAddresses[],
  { dtype: to, into }: MergeRowsOptions,
): Uint8Array {
  const length = n * k * (to === "f32" ? 4 : 2);
  const result = into?.subarray(0, length) ?? new Uint8Array(length);
  // W, the result, scratch; the kernel works in whole vectors, so that 16 bytes are free behind the first two.
  const [from, at] = [aligned(bytes.length), aligned(bytes.length) + aligned(length)];
  const size = at + kernels.merge_rows_scratch(n, k, sumRanks(branches));
  const isFinite = withRecords(memory, branches, (records) =>
    memory.scratch(size, (w) => {
      memory.bytes(w, bytes.length).set(bytes);
      memory.bytes(w + bytes.length, from - bytes.length).fill(0);
      const codes = [w + from, DTYPE_CODES[to], w, DTYPE_CODES[dtype]] as const;
      if (kernels.merge_rows(...codes, records, branches.length, n, k, 0, w + at) !== 0) return false;
      result.set(memory.bytes(w + from, length));
      return true;
    }));
  if (isFinite) return result;
  throw new NumericError(`Cannot merge rows of shape ${formatShape([n, k])} into ${to}: a result would not be finite`);
}

/** Room for so many bytes, 16 more, and what makes the next address a multiple of 16. */
function aligned(bytes: number): number {
  return 16 * Math.ceil(bytes / 16 + 1);
}

function sumRanks(branches: readonly BranchAddresses[]): number {
  return branches.reduce((sum, { rank }) => sum + rank, 0);
}

/** Runs `body` with the address of the branches' records. */
function withRecords<T>(memory: LinearMemory, branches: readonly BranchAddresses[], body: (at: number) => T): T {
  return memory.scratch(branches.length * RECORD_BYTES, (records) => {
    const bytes = memory.bytes(records, branches.length * RECORD_BYTES);
    const view = new DataView(bytes.buffer, records, bytes.length);
    branches.forEach((branch, i) => writeRecord(view, i * RECORD_BYTES, branch));
    return body(records);
  });
}
