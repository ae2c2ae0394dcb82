/**
 * Reads and writes adapters in every dialect.
 *
 * @module
 */

import { MismatchError } from "../../errors.ts";
import { checkOptionTypes, type OptionType } from "../../formats/check_options.ts";
import { checkWritable } from "../../formats/check_place.ts";
import { quote } from "../../formats/quote.ts";
import type { Folder, Sink, Source } from "../../formats/source.ts";
import type { Adapter, ReportLine } from "../adapter.ts";
import { loadAdapter } from "../load.ts";
import { saveAdapter } from "../save.ts";
import { readDiffusers, writeDiffusers } from "./diffusers.ts";
import { readGgufAdapter, writeGgufAdapter } from "./gguf.ts";
import { readKohya, writeKohya } from "./kohya.ts";
import { readLoralib, writeLoralib } from "./loralib.ts";
import { readMlx, writeMlx } from "./mlx.ts";
import type { Dialect, ReadDialectOptions, WriteDialectOptions } from "./options.ts";
import { recognise, type Recognised } from "./recognise.ts";

/** The dialects, by name. */
export const DIALECTS: readonly Dialect[] = ["peft", "kohya", "diffusers", "gguf", "mlx", "loralib"];

/** The types of {@linkcode ReadDialectOptions} and {@linkcode WriteDialectOptions}. */
const OPTION_TYPES: Readonly<Record<string, OptionType>> = {
  modules: "object",
  modelType: "string",
  architecture: "string",
  heads: "number",
  kvHeads: "number",
  merged: "object",
  kernels: "object",
  limits: "object",
  allowPickle: "boolean",
  allowLoss: "boolean",
  alpha: "number",
  component: "string",
  rank: "number",
  file: "string",
};

/** An adapter, and the dialect it was read from. */
export interface ReadAdapter {
  /** The dialect. */
  readonly dialect: Dialect;
  /** The adapter. */
  readonly adapter: Adapter;
}

/**
 * Reads an adapter in any dialect, which is told by what the files hold.
 *
 * @param source A folder, or the one file that kohya, diffusers, GGUF and loralib have.
 * @param options What the dialect needs beside the files.
 * @returns The adapter and its dialect.
 * @throws {FormatError} If it is of no dialect known, or a tensor is none that its dialect has a place for.
 * @throws {MismatchError} If a factor or a fact about the base is missing.
 * @throws {LimitError} If a cap is passed.
 * @throws {NumericError} If a factor or a scale is not finite.
 *
 * @example
 * ```ts
 * import { loadAdapter, memoryFolder, memorySink } from "@lowrank/lora";
 * import { readAdapter, writeAdapter } from "@lowrank/lora/adapters";
 * import { folder } from "@lowrank/lora/fs";
 * import assert from "node:assert/strict";
 *
 * const news = await loadAdapter(folder("examples/models/tiny/news"));
 * const sink = memorySink(); // or a folder
 * await writeAdapter(news, "mlx", sink);
 * const { dialect, adapter } = await readAdapter(memoryFolder(sink.files));
 * assert.equal(dialect, "mlx");
 * assert.equal(adapter.modules.size, news.modules.size);
 * ```
 */
export async function readAdapter(source: Folder | Source, options: ReadDialectOptions = {}): Promise<ReadAdapter> {
  checkOptionTypes("read an adapter", options, OPTION_TYPES);
  const recognised = await recognise(source, options);
  return { dialect: recognised.dialect, adapter: await read(recognised, options) };
}

async function read({ dialect, source }: Recognised, options: ReadDialectOptions): Promise<Adapter> {
  switch (dialect) {
    case "peft":
      return await loadAdapter(source, options);
    case "kohya":
      return await readKohya(source, options);
    case "diffusers":
      return await readDiffusers(source, options);
    case "gguf":
      return await readGgufAdapter(source, options);
    case "mlx":
      return await readMlx(source, options);
    case "loralib":
      return await readLoralib(source, options);
  }
}

/**
 * Writes an adapter in a dialect: the bits of its factors, and its scales, wherever the dialect can say them. Where it
 * cannot, they are folded into B, and the file carries what {@linkcode readAdapter} needs to give every bit and scale again.
 *
 * ```text
 * peft       everything
 * kohya      linear layers, convolutions; DoRA with a norm for every output
 * diffusers  linear layers, convolutions; DoRA, biases of B
 * gguf       linear layers, the embedding; aLoRA
 * mlx        linear layers, embeddings, fused experts; DoRA of linear layers
 * loralib    linear layers, MergedLinear, embeddings, Conv2d, and Conv1d and Conv3d with a kernel of length 1
 * ```
 *
 * @param adapter The adapter.
 * @param dialect The dialect.
 * @param sink Where the files go.
 * @param options What the dialect needs beside the adapter.
 * @returns What was changed, and what a reader should know.
 * @throws {MismatchError} If the dialect cannot hold the adapter, or a fact about the base is missing.
 *
 * @example
 * ```ts
 * import { loadAdapter, memorySink } from "@lowrank/lora";
 * import { writeAdapter } from "@lowrank/lora/adapters";
 * import { folder } from "@lowrank/lora/fs";
 * import assert from "node:assert/strict";
 *
 * const adapter = await loadAdapter(folder("examples/models/tiny/news"));
 * const sink = memorySink(); // or a folder
 * await writeAdapter(adapter, "kohya", sink, { file: "news.safetensors" });
 * assert.deepEqual([...sink.files.keys()], ["news.safetensors"]);
 * ```
 */
export async function writeAdapter(
  adapter: Adapter,
  dialect: Dialect,
  sink: Sink,
  options: WriteDialectOptions = {},
): Promise<readonly ReportLine[]> {
  checkOptionTypes("write an adapter", options, OPTION_TYPES);
  checkWritable("write an adapter", sink);
  switch (dialect) {
    case "peft":
      await saveAdapter(adapter, sink, options);
      return [];
    case "kohya":
      return await writeKohya(adapter, sink, options);
    case "diffusers":
      return await writeDiffusers(adapter, sink, options);
    case "gguf":
      return await writeGgufAdapter(adapter, sink, options);
    case "mlx":
      return await writeMlx(adapter, sink, options);
    case "loralib":
      return await writeLoralib(adapter, sink, options);
    default:
      throw new MismatchError(`Cannot write an adapter as ${quote(String(dialect))}: expected ${DIALECTS.join(", ")}`, {
        field: "dialect",
        found: dialect,
        expected: DIALECTS,
      });
  }
}
