/**
 * Merging into packed panels, all or nothing.
 *
 * @module
 */

import type { MergeLoss } from "../backend.ts";
import { NumericError } from "../errors.ts";
import { formatShape } from "../shape.ts";
import type { WasmWeight } from "./handles.ts";
import type { Kernels } from "./kernels.ts";
import type { BranchAddresses } from "./linear.ts";
import type { LinearMemory } from "./memory.ts";

/** `{ a: u32, b: u32, r: u32, s: f32 }` in `rust-kernels/src/merge.rs`. */
export const RECORD_BYTES = 16;

/** Two f64 for each panel, of which each thread takes one: the squares of what was lost, and of what was added. */
const SQUARES_BYTES = 16;

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
): MergeLoss {
  const merged = memory.block(weight.block.bytes);
  let report: MergeLoss | null = null;
  try {
    report = writePanels(kernels, memory, { weight, target: merged.address, branches });
  } finally {
    if (!report) merged.release();
  }
  if (!report) {
    const shape = formatShape(weight.shape);
    throw new NumericError(`Cannot merge into a weight of shape ${shape}: a result would not be finite`);
  }
  weight.original = weight.block;
  weight.block = merged;
  return report;
}

interface Merge {
  readonly weight: WasmWeight;
  readonly target: number;
  readonly branches: readonly BranchAddresses[];
}

/** Null if a result is not finite. */
function writePanels(kernels: Kernels, memory: LinearMemory, { weight, target, branches }: Merge): MergeLoss | null {
  const { shape: [n, k], code, block: { address } } = weight;
  const [ranks, panels] = [branches.reduce((sum, { rank }) => sum + rank, 0), Math.ceil(n / 8)];
  const [squaresBytes, recordsBytes] = [panels * SQUARES_BYTES, branches.length * RECORD_BYTES];
  return memory.scratch(squaresBytes + recordsBytes, (squares) => {
    const records = squares + squaresBytes;
    return memory.scratch(kernels.merge_scratch(k, ranks, code), (scratch) => {
      memory.bytes(squares, squaresBytes).fill(0);
      const view = new DataView(memory.bytes(records, recordsBytes).buffer, records, recordsBytes);
      branches.forEach((branch, i) => writeRecord(view, i * RECORD_BYTES, branch));
      const sizes = [branches.length, ranks, k, 0, panels] as const;
      const finite = kernels.merge(target, address, code, records, ...sizes, scratch, squares) === 0;
      const [lost, added] = sumPairs(new Float64Array(memory.bytes(squares, squaresBytes).buffer, squares, 2 * panels));
      return finite ? { error: lost === 0 ? 0 : Math.sqrt(lost / added) } : null;
    });
  });
}

function sumPairs(pairs: Float64Array): readonly [number, number] {
  let [first, second] = [0, 0];
  for (let i = 0; i < pairs.length; i += 2) [first, second] = [first + pairs[i]!, second + pairs[i + 1]!];
  return [first, second];
}

/** Writes a branch as the kernels read it. */
export function writeRecord(view: DataView, offset: number, { a, b, rank, scaling }: BranchAddresses): void {
  view.setUint32(offset, a, true);
  view.setUint32(offset + 4, b, true);
  view.setUint32(offset + 8, rank, true);
  view.setFloat32(offset + 12, scaling, true);
}
