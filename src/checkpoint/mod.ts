/**
 * Whole checkpoints: adapters merged into them as a stream, and adapters extracted from two of them.
 *
 * @example
 * ```ts
 * import { loadAdapter, memorySink } from "@lowrank/lora";
 * import { mergeCheckpoint } from "@lowrank/lora/checkpoint";
 * import { folder } from "@lowrank/lora/fs";
 *
 * const adapter = await loadAdapter(folder("examples/models/tiny/news"));
 * const sink = memorySink("merged");
 * await mergeCheckpoint(folder("examples/models/tiny/base"), [{ adapter }], sink);
 * console.log([...sink.files.keys()]);
 * ```
 *
 * @module
 */

export { extractAdapter, type ExtractOptions } from "./extract.ts";
export type { FactorOptions } from "./extract_tensor.ts";
export type { GgufOutType } from "./gguf_output.ts";
export { mergeCheckpoint, type MergeOptions, type MergeReport } from "./merge.ts";
export { type GgufMergeOptions, mergeGguf } from "./merge_gguf.ts";
export type { MergeDtype } from "./merge_dtype.ts";
export type { MergeProgress } from "./weight_file_writer.ts";
