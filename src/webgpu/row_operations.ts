/**
 * Operations on the GPU that go row by row, for adapters that are more than a branch.
 *
 * @module
 */

import type { ColumnSumOptions, GatherLists, LoraBranch, MatrixValues, RowAffine, Tensor, Weight } from "../backend.ts";
import * as check from "../check.ts";
import * as rowCheck from "../check_rows.ts";
import { checkReplace } from "../check_weight.ts";
import { OutOfMemoryError } from "../errors.ts";
import type { DeviceBuffer } from "./buffer_pool.ts";
import { codeOf } from "./forms.ts";
import { cutPanels } from "./handles.ts";
import { GROUP } from "./memory_operations.ts";
import { WebGpuTransformerOperations } from "./transformer_operations.ts";

/** What adapters need beside products. */
export abstract class WebGpuRowOperations extends WebGpuTransformerOperations {
  /** See `Backend.affineRows`. */
  affineRows(x: Tensor, ranges: readonly RowAffine[]): Tensor {
    const { whole, dim } = rowCheck.checkAffineRows(x, ranges);
    const input = this.at(x);
    const calls = whole.map(({ start, end, factor, scale, shift }) => ({
      // What a kernel is told not to read is bound to x.
      buffers: [input, scale ? this.at(scale) : input, shift ? this.at(shift) : input],
      groups: Math.ceil((end - start) * dim / GROUP),
      integers: [start, end - start, dim, (scale ? 1 : 0) + (shift ? 2 : 0)],
      floats: [factor],
    }));
    return this.live.create(x.shape, (y) => {
      for (const call of calls) {
        this.queue.dispatch({ ...call, shader: "affine_rows", buffers: [...call.buffers, y] });
      }
    });
  }

  /** See `Backend.columnSums`. */
  columnSums(sums: Tensor, x: Tensor, options: ColumnSumOptions = {}): void {
    const [rows, dim] = rowCheck.checkColumnSums(sums, x, options);
    const { y, factor = 1 } = options;
    this.queue.dispatch({
      shader: "column_sums",
      buffers: [this.at(x), this.at(y ?? x), this.at(sums)],
      groups: Math.ceil(dim / GROUP),
      integers: [rows, dim, y ? 1 : 0],
      floats: [factor],
    });
  }

  /** See `Backend.gatherSum`. */
  gatherSum(x: Tensor, lists: GatherLists): Tensor {
    const [count, dim] = rowCheck.checkGatherSum(x, lists);
    const { offsets, rows, weights } = lists;
    const bits = weights ? new Uint32Array(weights.slice().buffer) : new Uint32Array();
    const all = new Uint32Array(offsets.length + rows.length + bits.length);
    all.set(offsets);
    all.set(rows, offsets.length);
    all.set(bits, offsets.length + rows.length);
    const input = this.at(x);
    return this.live.indices(all, (at) =>
      this.elements([count, dim], count * dim, {
        shader: "gather_sum",
        buffers: [input, at],
        integers: [count, dim, rows.length, weights ? 1 : 0],
      }));
  }

  /** See `Backend.transpose`. */
  transpose(x: Tensor): Tensor {
    const [batch, rows, columns] = rowCheck.checkTranspose(x);
    const dispatch = { shader: "transpose_each", buffers: [this.at(x)], integers: [x.size, rows, columns] } as const;
    return this.elements([batch, columns, rows], x.size, dispatch);
  }

  /** See `Backend.inverseNorms`. */
  inverseNorms(weight: Weight, branch: LoraBranch, options: { readonly columns?: boolean } = {}): Tensor {
    rowCheck.checkNorms(weight, check.checkDelta(branch));
    const { columns = false } = options;
    const count = weight.shape[columns ? 1 : 0];
    const sums = this.live.zeros([count]);
    try {
      this.#addSquares(this.at(sums), weight, branch, columns);
      const groups = Math.ceil(count / GROUP);
      this.queue.dispatch({ shader: "inverse_roots", buffers: [this.at(sums)], groups, integers: [count] });
      return sums;
    } catch (error) {
      sums.dispose();
      throw error;
    }
  }

  #addSquares(sums: DeviceBuffer, weight: Weight, { a, b, scaling }: LoraBranch, columns: boolean): void {
    const { live, form, shape: [n, k] } = this.packed(weight);
    const factors = cutPanels(this.packed(a).live);
    if (factors.length > 1) throw new OutOfMemoryError("Cannot bind A of an adapter: it is larger than a binding");
    for (const { first, count, parts: [main, second] } of cutPanels(live, this.packed(b).live)) {
      this.queue.dispatch({
        shader: "add_squares",
        constants: { FORM: codeOf(form), BY_COLUMN: columns ? 1 : 0 },
        buffers: [main!.buffer, factors[0]!.parts[0]!.buffer, second!.buffer, sums],
        groups: columns ? Math.ceil(k / GROUP) : count,
        integers: [n, k, a.shape[0], first, count, main!.panel, second!.panel],
        floats: [scaling],
      });
    }
  }

  /** See `Backend.replace`. */
  replace(weight: Weight, values: MatrixValues): void {
    checkReplace(weight, values);
    const own = this.packed(weight);
    if (own.merging) throw new RangeError("Cannot merge twice: a merge into this weight is under way");
    const { panels } = this.live.pack(values, own);
    own.original = own.panels;
    own.panels = panels;
  }
}
