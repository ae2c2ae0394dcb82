/**
 * The linear operation on the GPU, its gradients, and merging: each a check, an output and its dispatches.
 *
 * @module
 */

import type { LinearBackwardOptions, LinearOptions, LoraBranch, MergeLoss, Tensor, Weight } from "../backend.ts";
import * as check from "../check.ts";
import { addGradients, addLinear, type PackedBranch, writeDelta } from "./linear.ts";
import { WebGpuMemoryOperations } from "./memory_operations.ts";
import { mergePanels } from "./merge.ts";

/** Products of tensors with weights and adapters. */
export abstract class WebGpuLinearOperations extends WebGpuMemoryOperations {
  /** See `Backend.linear`. */
  linear(x: Tensor, weight: Weight, options: LinearOptions = {}): Tensor {
    const sizes = check.checkLinear(x, weight, options);
    const bias = options.bias ? this.at(options.bias) : null;
    const call = { x: this.at(x), w: this.packed(weight), bias, ...sizes };
    const adapters = options.adapters ?? [];
    const ranges = adapters.map(({ branches, ...rows }) => ({ ...rows, branches: this.#branches(branches) }));
    return this.live.create([sizes.m, sizes.n], (y) => addLinear(this.gpu, { ...call, y }, ranges));
  }

  #branch({ a, b, scaling }: LoraBranch): PackedBranch {
    return { a: this.packed(a).live, b: this.packed(b).live, rank: a.shape[0], scaling };
  }

  #branches(branches: readonly LoraBranch[]): PackedBranch[] {
    return branches.map((branch) => this.#branch(branch));
  }

  /** See `Backend.linearBackward`. */
  linearBackward(dy: Tensor, x: Tensor, weight: Weight, options: LinearBackwardOptions): void {
    const sizes = check.checkLinearBackward(dy, x, weight, options);
    const optional = (tensor: Tensor | undefined) => tensor ? this.at(tensor) : null;
    const [dx, dw, dbias] = [options.dx, options.dw, options.dbias].map(optional);
    const ranges = (options.adapters ?? []).map((range) => ({
      ...range,
      branches: range.branches.map((branch) => ({
        ...this.#branch(branch),
        da: optional(branch.da),
        db: optional(branch.db),
      })),
    }));
    const operands = { dy: this.at(dy), x: this.at(x), w: this.packed(weight) };
    addGradients(this.gpu, { ...operands, dx: dx!, dw: dw!, dbias: dbias!, ...sizes }, ranges);
  }

  /** See `Backend.deltaWeight`. */
  deltaWeight(branch: LoraBranch): Tensor {
    const shape = check.checkDelta(branch);
    const packed = this.#branch(branch);
    return this.live.create(shape, (delta) => writeDelta(this.gpu, delta, packed, shape));
  }

  /** See `Backend.merge`. */
  async merge(weight: Weight, branches: readonly LoraBranch[]): Promise<MergeLoss> {
    check.checkMerge(weight, branches);
    return await mergePanels(this.gpu, this.packed(weight), this.#branches(branches));
  }

  /** See `Backend.unmerge`. */
  unmerge(weight: Weight): void {
    check.checkUnmerge(weight);
    const own = this.packed(weight);
    own.panels.release();
    own.panels = own.original!;
    own.original = null;
  }
}
