/**
 * Any PEFT adapter, in any JavaScript runtime, at the speed of the silicon, with no Python step.
 *
 * LoRA (Hu et al. 2021) adds a low-rank update to a frozen weight: h = W x + (alpha / r) B A x. This entry loads and
 * saves such adapters as Hugging Face PEFT writes them, runs them over a base weight (one, mixed, or another one per
 * row), merges and unmerges them. `./models` runs language models, `./adapters` makes, combines and converts adapters,
 * `./checkpoint` merges whole checkpoints, `./fs` reads folders.
 *
 * @example
 * ```ts
 * import { LoraLinear, openBackend } from "@lowrank/lora";
 * import assert from "node:assert/strict";
 *
 * const matrix = (rows: number, columns: number, ...values: number[]) => ({
 *   shape: [rows, columns] as const,
 *   dtype: "f32" as const,
 *   bytes: new Uint8Array(Float32Array.from(values).buffer),
 * });
 * const backend = await openBackend();
 * const layer = new LoraLinear(backend, {
 *   weight: backend.weight(matrix(1, 2, 1, 1)),
 *   adapters: { twice: { loraA: matrix(1, 2, 1, 1), loraB: matrix(1, 1, 1), scaling: 1 } },
 * });
 * const x = backend.tensor([1, 2], Float32Array.of(3, 4));
 * assert.deepEqual([...await backend.read(layer.forward(x, { adapter: { twice: 0.5 } }))], [10.5]);
 * await layer.merge("twice");
 * assert.deepEqual([...await backend.read(layer.forward(x))], [14]);
 * layer.unmerge();
 * backend.dispose();
 * ```
 *
 * @module
 */

export type {
  AttentionOptions,
  Backend,
  BackendInfo,
  BlockDtype,
  Cache,
  CacheDtype,
  CacheShape,
  ColumnSumOptions,
  ElementDtype,
  GatherLists,
  GpuInfo,
  LinearBackwardOptions,
  LinearOptions,
  LoraBranch,
  LoraGradientBranch,
  MatrixValues,
  MergeLoss,
  MergeRowsOptions,
  RowAffine,
  RowBranches,
  SampleOptions,
  Tensor,
  Weight,
  WeightDtype,
  WeightOptions,
} from "./src/backend.ts";
export {
  Adapter,
  type AdapterParts,
  type LoraKind,
  type LoraModule,
  type ReportLine,
  type TokenRows,
} from "./src/adapter/adapter.ts";
export type { AdapterLimits } from "./src/adapter/limits.ts";
export { type AdapterSource, loadAdapter, type LoadAdapterOptions } from "./src/adapter/load.ts";
export { type LoraConfig, type LoraConfigOptions, parseLoraConfig } from "./src/adapter/lora_config.ts";
export { type BaseModules, checkAgainst, type Match, type MatchOptions } from "./src/adapter/match.ts";
export { saveAdapter } from "./src/adapter/save.ts";
export type { BaseChange, BlockDiagonal, LoraVariants } from "./src/adapter/variant_fields.ts";
export * from "./src/errors.ts";
export {
  type Dtype,
  type FloatDtype,
  type FloatTensor,
  fromFloat32,
  type StoredTensor,
  toFloat32,
} from "./src/formats/dtype.ts";
export type { JsonNumber, JsonValue } from "./src/formats/json.ts";
export { memoryFolder, memorySink, memorySource } from "./src/formats/memory.ts";
export type { Folder, HeldSource, ReadOptions, Sink, SinkFile, Source, Workspace } from "./src/formats/source.ts";
export { urlFolder, type UrlOptions, urlSource } from "./src/formats/url.ts";
export type { LoraFactors, MatrixSource } from "./src/lora/factors.ts";
export type { LoraForwardOptions, LoraLayer } from "./src/lora/layer.ts";
export type { Replacements } from "./src/lora/linear_adapter.ts";
export type { LoraGradients } from "./src/lora/linear_backward.ts";
export type { RowReplacements } from "./src/lora/embedding_adapter.ts";
export type { SparseRows } from "./src/lora/embedding_rows.ts";
export type { PaddingMode } from "./src/lora/conv_patches.ts";
export { type ConvBackwardOptions, type ConvFactors, LoraConv, type LoraConvOptions } from "./src/lora/lora_conv.ts";
export {
  type EmbeddingBackwardOptions,
  type EmbeddingGradients,
  LoraEmbedding,
  type LoraEmbeddingOptions,
} from "./src/lora/lora_embedding.ts";
export { type ExpertsBackwardOptions, LoraExperts, type LoraExpertsOptions } from "./src/lora/lora_experts.ts";
export { type LoraBackwardOptions, LoraLinear, type LoraLinearOptions } from "./src/lora/lora_linear.ts";
export {
  type AdapterChoice,
  type AdapterSelection,
  type Mix,
  resolveChoice,
  resolveSelection,
  type RowMix,
  type SelectionOptions,
} from "./src/lora/selection.ts";
export { type DeviceLike, openBackend, type OpenBackendOptions, type WorkerLike } from "./src/open.ts";
