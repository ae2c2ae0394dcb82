/**
 * Making, changing and converting adapters: creation with PEFT's initialisations, combination, resizing, comparison,
 * other tools' files in both directions, torch pickles as data, and what an adapter costs.
 *
 * @example
 * ```ts
 * import { loadAdapter } from "@lowrank/lora";
 * import { combineAdapters } from "@lowrank/lora/adapters";
 * import { folder } from "@lowrank/lora/fs";
 *
 * const [news, tweets] = await Promise.all(
 *   ["news", "tweets"].map((name) => loadAdapter(folder(`examples/models/tiny/${name}`))),
 * );
 * const both = await combineAdapters([{ adapter: news!, weight: 0.7 }, { adapter: tweets!, weight: 0.3 }]);
 * console.log(both.parameters);
 * ```
 *
 * @module
 */

export { combineAdapters, type CombineOptions, resizeAdapter, type ResizeOptions } from "./combine.ts";
export type { CombineMethod } from "./combine_options.ts";
export {
  type AdapterComparison,
  compareAdapters,
  type CompareOptions,
  deltaNorm,
  type ModuleComparison,
  type Similarity,
} from "./compare.ts";
export { type AdapterCosts, adapterCosts, moduleCosts } from "./costs.ts";
export { listLayers } from "./base_layers.ts";
export { type BaseModule, createAdapter, type CreateAdapterOptions } from "./create.ts";
export type { InitName } from "./inits.ts";
export { readBaseFacts } from "./dialects/base_facts.ts";
export type { KernelSizes } from "./dialects/conv_kernel.ts";
export { DIALECTS, type ReadAdapter, readAdapter, writeAdapter } from "./dialects/convert.ts";
export { FLUX_LAYERS } from "./dialects/flux.ts";
export { type FusedLayer, joinFused, splitFused } from "./dialects/fused.ts";
export type { BaseFacts, Dialect, ReadDialectOptions, WriteDialectOptions } from "./dialects/options.ts";
export { recogniseDialect } from "./dialects/recognise.ts";
export type { FloatDtype } from "../formats/dtype.ts";
export type { MajoritySign, PruningMethod } from "./pruning.ts";
export { toPlainLora, type ToPlainOptions } from "./to_plain.ts";
export type { WeightedAdapter } from "./weighted_adapter.ts";
export { readTorch, type TorchOptions } from "../formats/torch.ts";
