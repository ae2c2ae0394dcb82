/**
 * Opening a language model from files.
 *
 * @module
 */

import type { Backend, WeightDtype } from "../backend.ts";
import { MismatchError } from "../errors.ts";
import { openCheckpoint } from "../formats/checkpoint.ts";
import { readJson } from "../formats/json_file.ts";
import { quote } from "../formats/quote.ts";
import type { Folder, ReadOptions, Source } from "../formats/source.ts";
import { openBackend } from "../open.ts";
import { sizeOf } from "../shape.ts";
import type { Tokenizer } from "../text/mod.ts";
import { ConfigFields } from "./config_fields.ts";
import { type GgufFolder, ggufFolder } from "./gguf_folder.ts";
import { LanguageModel } from "./language_model.ts";
import { readLlamaConfig } from "./llama_config.ts";
import { isSpareTensor, llamaParameters } from "./llama_parameters.ts";
import { Placement, type ReloadOptions } from "./placement.ts";
import { checkParameters, loadParameters, type LoadProgress } from "./weights.ts";

/** Options of {@linkcode loadModel}. */
export interface LoadModelOptions extends ReadOptions {
  /** Where to compute; it stays the caller's. Absent, the model opens the best for its size and disposes it in the end. */
  readonly backend?: Backend;
  /** Threads of the backend that the model opens, as for `openBackend()`; the default is 1. */
  readonly threads?: number | "auto";
  /** Storage of the matrices; the default is `"bf16"`. */
  readonly dtype?: WeightDtype;
  /** Called after each tensor. */
  readonly onProgress?: (progress: LoadProgress) => void;
}

const MAX_CONFIG_BYTES = 1_000_000;

/**
 * Loads a language model of the Llama architecture: Llama, SmolLM2, Mistral, Qwen2, Qwen3.
 *
 * @param source A Hugging Face folder, a GGUF file, or a folder that holds one.
 * @param options Backend, dtype, progress and abort.
 * @throws {FormatError} If a file is malformed, or asks for what is not supported; the field is named.
 * @throws {MismatchError} If the tensors are not those of the config.
 *
 * @example
 * ```ts
 * import { folder } from "@lowrank/lora/fs";
 * import { loadModel } from "@lowrank/lora/models";
 * import assert from "node:assert/strict";
 *
 * const model = await loadModel(folder("examples/models/tiny/base"));
 * await model.loadAdapter("news", folder("examples/models/tiny/news"));
 * let text = "";
 * for await (const piece of model.generate("<|end|>The", { adapter: "news", maxNewTokens: 5 })) text += piece;
 * assert(text.length > 0);
 * model.dispose();
 * ```
 */
export async function loadModel(source: Folder | Source, options: LoadModelOptions = {}): Promise<LanguageModel> {
  const { dtype = "bf16", threads = 1 } = options;
  if (dtype !== "f32" && dtype !== "bf16") {
    throw new TypeError(`Cannot load a model as "${dtype}": expected "f32" or "bf16"`);
  }
  const folder = await openFolder(source, options);
  const file = folder.open("config.json");
  const config = readLlamaConfig(await readJson(file, { ...options, maxBytes: MAX_CONFIG_BYTES }), file.name);
  const checkpoint = await openCheckpoint(folder, options);
  const shapes = llamaParameters(config);
  checkParameters(checkpoint, { shapes, isSpare: (name) => isSpareTensor(name, config) });
  const ownEosIds = await readEosIds(folder, config.eosIds, options);
  const place = async (options: ReloadOptions): Promise<Placement> => {
    const backend = options.backend ?? await openBackend({ weightBytes: bytesOf(shapes, dtype), threads });
    const ownsBackend = options.backend === undefined;
    try {
      const parameters = await loadParameters(backend, checkpoint, shapes.keys(), { ...options, dtype });
      return new Placement({ backend, ownsBackend, config, parameters });
    } catch (error) {
      if (ownsBackend) backend.dispose();
      throw error;
    }
  };
  const placement = await place(options);
  try {
    // Last: with its 100,000 objects in the heap, Node's garbage collections would double the time of the load.
    const tokenizer = await openTokenizer(folder, options);
    const eosIds = [...new Set([...ownEosIds, ...tokenizer?.eosIds ?? []])];
    return new LanguageModel({ placement, place, config, tokenizer, eosIds });
  } catch (error) {
    placement.dispose();
    throw error;
  }
}

/** What a pass over all parameters reads. */
function bytesOf(shapes: ReadonlyMap<string, readonly number[]>, dtype: WeightDtype): number {
  const elements = [...shapes.values()].reduce((sum, shape) => sum + sizeOf(shape), 0);
  return elements * (dtype === "f32" ? 4 : 2);
}

async function openFolder(source: Folder | Source, options: ReadOptions): Promise<Folder | GgufFolder> {
  const given = source as Partial<Folder & Source> | null;
  if (typeof given?.open !== "function" && typeof given?.read !== "function") {
    const found = typeof source === "string" ? `the path ${quote(source)}` : `a ${typeof source}`;
    throw new TypeError(
      `Cannot load a model from ${found}: expected folder("…") or file("….gguf") of "@lowrank/lora/fs", or urlFolder(url)`,
    );
  }
  if (!("open" in source)) return await ggufFolder(source, options);
  if (await source.has("config.json", options)) return source;
  const files = await source.list?.(options) ?? [];
  const ggufs = files.filter((file) => file.endsWith(".gguf"));
  if (ggufs.length === 1) return await ggufFolder(source.open(ggufs[0]!), options);
  const message =
    `Cannot load a model from ${quote(source.name)} with ${ggufs.length} GGUF files and no "config.json": ` +
    "expected a Hugging Face folder or one GGUF file";
  throw new MismatchError(message, { code: "missing-file", file: source.name, missing: ["config.json"] });
}

async function openTokenizer(folder: Folder | GgufFolder, options: ReadOptions): Promise<Tokenizer | null> {
  if ("gguf" in folder) {
    if (!folder.gguf.metadata.has("tokenizer.ggml.model")) return null;
    return (await import("../text/mod.ts")).ggufTokenizer(folder.gguf.metadata);
  }
  if (!await folder.has("tokenizer.json", options)) return null;
  return await (await import("../text/mod.ts")).loadTokenizer(folder, options);
}

/** `generation_config.json` overrules what the config says. */
async function readEosIds(folder: Folder, absent: readonly number[], options: ReadOptions): Promise<readonly number[]> {
  if (!await folder.has("generation_config.json", options)) return absent;
  const file = folder.open("generation_config.json");
  const json = await readJson(file, { ...options, maxBytes: MAX_CONFIG_BYTES });
  const ids = json instanceof Map ? new ConfigFields(json, file.name).tokenIds("eos_token_id") : [];
  return ids.length > 0 ? ids : absent;
}
