/**
 * Operations on the CPU that go row by row, for adapters that are more than a branch.
 *
 * @module
 */

import type { ColumnSumOptions, GatherLists, LoraBranch, MatrixValues, RowAffine, Tensor, Weight } from "../backend.ts";
import * as check from "../check.ts";
import * as rowCheck from "../check_rows.ts";
import { checkReplace } from "../check_weight.ts";
import { DTYPE_CODES } from "./dtypes.ts";
import { packReplacement, weightBytes } from "./pack.ts";
import { WasmTransformerOperations } from "./transformer_operations.ts";

/** Rows are normed in pieces of about this size. */
const PIECE_BYTES = 4 << 20;

/** What adapters need beside products. */
export abstract class WasmRowOperations extends WasmTransformerOperations {
  /** See `Backend.affineRows`. */
  affineRows(x: Tensor, ranges: readonly RowAffine[]): Tensor {
    const { whole, dim } = rowCheck.checkAffineRows(x, ranges);
    const input = this.at(x);
    const calls = whole.map(({ start, end, factor, scale, shift }) => {
      const vectors = [scale ? this.at(scale) : 0, shift ? this.at(shift) : 0] as const;
      return [start * dim * 4, ...vectors, factor, end - start] as const;
    });
    return this.memory.produce(x.shape, (y) => {
      for (const [at, scale, shift, factor, rows] of calls) {
        this.kernels.affine_rows(y + at, input + at, scale, shift, factor, rows, dim);
      }
    });
  }

  /** See `Backend.columnSums`. */
  columnSums(sums: Tensor, x: Tensor, options: ColumnSumOptions = {}): void {
    const [rows, dim] = rowCheck.checkColumnSums(sums, x, options);
    const { y, factor = 1 } = options;
    this.kernels.column_sums(this.at(sums), this.at(x), y ? this.at(y) : 0, factor, rows, dim);
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
    return this.memory.produce([count, dim], (y) => {
      this.memory.indices(all, (at) => {
        const rowsAt = at + offsets.byteLength;
        const weightsAt = weights ? rowsAt + rows.byteLength : 0;
        this.kernels.gather_sum(y, input, at, rowsAt, weightsAt, count, dim);
      });
    });
  }

  /** See `Backend.transpose`. */
  transpose(x: Tensor): Tensor {
    const [batch, rows, columns] = rowCheck.checkTranspose(x);
    const input = this.at(x);
    return this.memory.produce([batch, columns, rows], (y) => {
      this.kernels.transpose_each(y, input, batch, rows, columns);
    });
  }

  /** See `Backend.inverseNorms`. */
  inverseNorms(weight: Weight, branch: LoraBranch, options: { readonly columns?: boolean } = {}): Tensor {
    rowCheck.checkNorms(weight, check.checkDelta(branch));
    const [n, k] = weight.shape;
    const { columns = false } = options;
    const { kernels, memory } = this;
    const [w, code] = this.weightAt(weight);
    const [a, b] = [this.weightAt(branch.a)[0], this.weightAt(branch.b)[0]];
    const rank = branch.a.shape[0];
    const step = Math.max(8, Math.floor(PIECE_BYTES / Math.max(k * 4, 1) / 8) * 8);
    const [count, piece] = [columns ? k : n, Math.min(step, n) * k * 4];
    return memory.produce([count], (out) => {
      memory.scratch(count * 8 + 2 * piece + kernels.delta_weight_scratch(Math.min(step, n), k, rank), (sums) => {
        const [values, delta, scratch] = [sums + count * 8, sums + count * 8 + piece, sums + count * 8 + 2 * piece];
        memory.bytes(sums, count * 8).fill(0);
        for (let row = 0; row < n; row += step) {
          const rows = Math.min(step, n - row);
          kernels.unpack(values, w + weightBytes(kernels, [row, k], code), rows, k, code);
          const part = b + weightBytes(kernels, [row, rank], DTYPE_CODES.f32);
          kernels.delta_weight(delta, a, part, branch.scaling, rows, k, rank, scratch);
          kernels.add_squares(columns ? sums : sums + row * 8, values, delta, rows, k, columns ? 1 : 0);
        }
        kernels.inverse_roots(out, sums, count);
      });
    });
  }

  /** See `Backend.replace`. */
  replace(weight: Weight, values: MatrixValues): void {
    checkReplace(weight, values);
    const own = this.memory.ownWeight(weight);
    this.weightAt(own);
    const block = packReplacement(this.kernels, this.memory, values, own);
    own.original = own.block;
    own.block = block;
  }
}
