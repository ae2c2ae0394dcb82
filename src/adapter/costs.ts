/**
 * What adapters cost, by the counts of LoRA (Hu et al. 2021): trained values and floating-point operations per token.
 *
 * @module
 */

import { sizeOf } from "../shape.ts";
import { type Adapter, countParameters, type LoraModule } from "./adapter.ts";

/** Counts of one module or of several; operations are multiplications and additions, per token or place of a kernel. */
export interface AdapterCosts {
  /** Trained values. */
  readonly parameters: number;
  /** Forward of the layers that are adapted: 2 · in · out. */
  readonly baseFlops: number;
  /** What the branches add to it: 2 · r (in + out); nothing once merged. */
  readonly branchFlops: number;
  /** Backward through the frozen layers, dx only: 2 · in · out. */
  readonly baseBackwardFlops: number;
  /** Backward of the branches: 4 · r (in + out). */
  readonly branchBackwardFlops: number;
  /** Values that an optimizer of two moments keeps: none for the base. */
  readonly optimizerValues: number;
}

/**
 * Counts what a module costs. An embedding looks its rows up, which takes no operations; all experts of a fused module
 * count once, though a token passes only some of them.
 *
 * @param module The module, or its sizes alone.
 * @returns The counts.
 *
 * @example
 * ```ts
 * import { moduleCosts } from "@lowrank/lora/adapters";
 * import assert from "node:assert/strict";
 *
 * const { baseFlops, branchFlops } = moduleCosts({ kind: "linear", rank: 32, inFeatures: 4096, outFeatures: 4096 });
 * assert.equal((branchFlops / baseFlops * 100).toFixed(1), "1.6"); // per cent
 * ```
 */
export function moduleCosts(
  module: LoraModule | Pick<LoraModule, "kind" | "rank" | "inFeatures" | "outFeatures">,
): AdapterCosts {
  const { kind, rank, inFeatures, outFeatures } = module;
  const [shapeA, shapeB] = "loraA" in module
    ? [module.loraA.shape, module.loraB.shape]
    : [[rank, inFeatures], [outFeatures, rank]];
  const values = sizeOf(shapeA) + sizeOf(shapeB);
  const kernel = sizeOf(shapeA.slice(2));
  const groups = kind === "conv" ? rank / shapeB[1]! : 1;
  const isTable = kind === "embedding";
  const experts = "experts" in module ? module.experts ?? 1 : 1;
  const base = isTable ? 0 : 2 * experts * inFeatures * kernel * outFeatures / groups;
  const branch = isTable ? 2 * rank * outFeatures : 2 * values;
  const parameters = "loraA" in module ? countParameters(module) : values;
  return {
    parameters,
    baseFlops: base,
    branchFlops: branch,
    baseBackwardFlops: base,
    branchBackwardFlops: 2 * branch,
    optimizerValues: 2 * parameters,
  };
}

/**
 * Counts what an adapter costs: all its modules, and the values that it stores in full.
 *
 * @param adapter The adapter.
 * @returns The counts.
 *
 * @example
 * ```ts
 * import { loadAdapter } from "@lowrank/lora";
 * import { adapterCosts } from "@lowrank/lora/adapters";
 * import { folder } from "@lowrank/lora/fs";
 * import assert from "node:assert/strict";
 *
 * const { branchFlops, baseFlops } = adapterCosts(await loadAdapter(folder("examples/models/tiny/news")));
 * assert.ok(branchFlops < baseFlops);
 * ```
 */
export function adapterCosts(adapter: Adapter): AdapterCosts {
  const costs = Array.from(adapter.modules.values(), moduleCosts);
  const sum = (field: keyof AdapterCosts) => costs.reduce((total, cost) => total + cost[field], 0);
  const { parameters } = adapter;
  return {
    parameters,
    baseFlops: sum("baseFlops"),
    branchFlops: sum("branchFlops"),
    baseBackwardFlops: sum("baseBackwardFlops"),
    branchBackwardFlops: sum("branchBackwardFlops"),
    optimizerValues: 2 * parameters,
  };
}
