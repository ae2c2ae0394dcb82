/**
 * The linear operation on the CPU, its gradients, and merging: each a check, an output and a kernel call.
 *
 * @module
 */

import type {
  LinearBackwardOptions,
  LinearOptions,
  LoraBranch,
  MatrixValues,
  MergeLoss,
  MergeRowsOptions,
  Tensor,
  Weight,
} from "../backend.ts";
import * as check from "../check.ts";
import { checkStoredRows } from "../check_weight.ts";
import { addGradients, runLinear } from "./linear.ts";
import { WasmMemoryOperations } from "./memory_operations.ts";
import { mergePanels } from "./merge.ts";
import { mergeStoredRows } from "./merge_rows.ts";

/** Products of tensors with weights and adapters. */
export abstract class WasmLinearOperations extends WasmMemoryOperations {
  /** See `Backend.linear`. */
  linear(x: Tensor, weight: Weight, options: LinearOptions = {}): Tensor {
    const sizes = check.checkLinear(x, weight, options);
    const bias = options.bias ? this.at(options.bias) : 0;
    const [input, [w, dtype]] = [this.at(x), this.weightAt(weight)];
    const ranges = (options.adapters ?? []).map((range) => ({ ...range, branches: this.#branches(range.branches) }));
    return this.memory.produce([sizes.m, sizes.n], (y) => {
      runLinear(this.kernels, this.memory, { y, x: input, w, dtype, bias, ...sizes }, ranges);
    });
  }

  #branches(branches: readonly LoraBranch[]): { a: number; b: number; rank: number; scaling: number }[] {
    return branches.map(({ a, b, scaling }) => {
      return { a: this.weightAt(a)[0], b: this.weightAt(b)[0], rank: a.shape[0], scaling };
    });
  }

  /** See `Backend.linearBackward`. */
  linearBackward(dy: Tensor, x: Tensor, weight: Weight, options: LinearBackwardOptions): void {
    const sizes = check.checkLinearBackward(dy, x, weight, options);
    const [w, dtype] = this.weightAt(weight);
    const optional = (tensor: Tensor | undefined) => tensor ? this.at(tensor) : 0;
    const [dx, dw, dbias] = [options.dx, options.dw, options.dbias].map(optional) as [number, number, number];
    const ranges = (options.adapters ?? []).map(({ start, end, branches }) => {
      const addresses = this.#branches(branches);
      const gradients = branches.map(({ da, db }, i) => ({ ...addresses[i]!, da: optional(da), db: optional(db) }));
      return { start, end, branches: gradients };
    });
    const call = { dy: this.at(dy), x: this.at(x), w, dtype, dx, dw, dbias, ...sizes };
    addGradients(this.kernels, this.memory, call, ranges);
  }

  /** See `Backend.deltaWeight`. */
  deltaWeight(branch: LoraBranch): Tensor {
    const [n, k] = check.checkDelta(branch);
    const [a, b, rank] = [this.weightAt(branch.a)[0], this.weightAt(branch.b)[0], branch.a.shape[0]];
    return this.memory.produce([n, k], (delta) => {
      this.memory.scratch(this.kernels.delta_weight_scratch(n, k, rank), (scratch) => {
        this.kernels.delta_weight(delta, a, b, branch.scaling, n, k, rank, scratch);
      });
    });
  }

  /** See `Backend.merge`. */
  // deno-lint-ignore require-await -- as in read()
  async merge(weight: Weight, branches: readonly LoraBranch[]): Promise<MergeLoss> {
    check.checkMerge(weight, branches);
    return mergePanels(this.kernels, this.memory, this.memory.ownWeight(weight), this.#branches(branches));
  }

  /** See `Backend.mergeRows`. */
  // deno-lint-ignore require-await -- as in read()
  async mergeRows(
    rows: MatrixValues,
    branches: readonly LoraBranch[],
    options: MergeRowsOptions,
  ): Promise<Uint8Array> {
    checkStoredRows(rows, options);
    check.checkMergeRows(rows, branches);
    return mergeStoredRows(this.kernels, this.memory, rows, this.#branches(branches), options);
  }

  /** See `Backend.unmerge`. */
  unmerge(weight: Weight): void {
    check.checkUnmerge(weight);
    const own = this.memory.ownWeight(weight);
    this.weightAt(own);
    own.block.release();
    own.block = own.original!;
    own.original = null;
  }
}
