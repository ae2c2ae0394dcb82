/**
 * Merging into packed panels, all or nothing.
 *
 * @module
 */

import { NumericError } from "../errors.ts";
import { formatShape } from "../shape.ts";
import type { WasmWeight } from "./handles.ts";
import type { Kernels } from "./kernels.ts";
import type { BranchAddresses } from "./linear.ts";
import { DTYPE_CODES, type LinearMemory } from "./memory.ts";

/** `{ a: u32, b: u32, r: u32, s: f32 }` in `rust-kernels/src/merge.rs`. */
const RECORD_BYTES = 16;

/**
 * Writes W + Σ s B A into new panels and, if all of it is finite, swaps them in and keeps the old ones.
 *
 * @throws {NumericError} If a result is NaN or infinite; the weight is as it was.
 */
export function mergePanels(
  kernels: Kernels,
  memory: LinearMemory,
  weight: WasmWeight,
  branches: readonly BranchAddresses[],
): void {
  const [n, k] = weight.shape;
  const merged = memory.likeWeight(weight);
  const ranks = branches.reduce((sum, { rank }) => sum + rank, 0);
  let finite = false;
  try {
    finite = memory.scratch(branches.length * RECORD_BYTES, (records) => {
      const bytes = memory.bytes(records, branches.length * RECORD_BYTES);
      const view = new DataView(bytes.buffer, records, bytes.length);
      branches.forEach((branch, i) => writeRecord(view, i * RECORD_BYTES, branch));
      return memory.scratch(kernels.merge_scratch(n, k, ranks), (scratch) => {
        const dtype = DTYPE_CODES[weight.dtype];
        const panels = [merged.address, weight.block.address] as const;
        const range = [0, Math.ceil(n / 8)] as const;
        return kernels.merge(...panels, dtype, records, branches.length, ranks, k, ...range, scratch) === 0;
      });
    });
  } finally {
    if (!finite) merged.release();
  }
  if (!finite) {
    throw new NumericError(`Cannot merge into a weight of shape ${formatShape([n, k])}: a result would not be finite`);
  }
  weight.original = weight.block;
  weight.block = merged;
}

function writeRecord(view: DataView, offset: number, { a, b, rank, scaling }: BranchAddresses): void {
  view.setUint32(offset, a, true);
  view.setUint32(offset + 4, b, true);
  view.setUint32(offset + 8, rank, true);
  view.setFloat32(offset + 12, scaling, true);
}
