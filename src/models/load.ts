/**
 * Opening a model from files.
 *
 * @module
 */

import { CONFIG_FILE } from "../adapter/lora_config.ts";
import type { Backend, CacheDtype } from "../backend.ts";
import { checkCacheDtype } from "../check_cache.ts";
import { MismatchError } from "../errors.ts";
import { checkReadable } from "../formats/check_place.ts";
import { openCheckpoint } from "../formats/checkpoint.ts";
import type { JsonValue } from "../formats/json.ts";
import { readJson } from "../formats/json_file.ts";
import { quote } from "../formats/quote.ts";
import type { Folder, ReadOptions, Source } from "../formats/source.ts";
import { openBackend } from "../open.ts";
import { sizeOf } from "../shape.ts";
import type { Tokenizer } from "../text/mod.ts";
import type { AdaptedModelParts } from "./adapted_model.ts";
import { matchNames, type ModelTensors, planCausal, planEncoder } from "./architectures.ts";
import { ConfigFields } from "./config_fields.ts";
import { Encoder } from "./encoder.ts";
import { type GgufFolder, ggufFolder } from "./gguf_folder.ts";
import { LanguageModel } from "./language_model.ts";
import { ModelLayers } from "./model_layers.ts";
import { type PlacedNetwork, Placement, type ReloadOptions } from "./placement.ts";
import { fuseSingleExperts } from "./single_experts.ts";
import { checkParameters, loadParameters, type LoadProgress, MODEL_DTYPES, type ModelDtype } from "./weights.ts";

/** Options of {@linkcode loadModel}. */
export interface LoadModelOptions extends ReadOptions {
  /** Where to compute; it stays the caller's. Absent, the model opens the best for its size and disposes it in the end. */
  readonly backend?: Backend;
  /** Threads of the backend that the model opens, as for `openBackend()`; the default is 1. */
  readonly threads?: number | "auto";
  /** Storage of the matrices; the default is `"auto"`: quantized GGUF files stay as they are, all else is bf16. */
  readonly dtype?: ModelDtype;
  /** Activations stay f32 against matrices of integers: slower, and what their dequantized values would give. */
  readonly exact?: boolean;
  /**
   * How `generate` stores the keys and values of each position: `"f32"`, or half as much in `"f16"`, or a quarter in
   * `"int8"`, whose rounding can change a token. The default is `"f32"`.
   */
  readonly cache?: CacheDtype;
  /** Called after each tensor. */
  readonly onProgress?: (progress: LoadProgress) => void;
}

const MAX_CONFIG_BYTES = 1_000_000;

/**
 * Loads a causal language model: Llama, SmolLM2, Mistral, Mixtral, Qwen2, Qwen3, GPT-2.
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
  checkDtype(options);
  const { cache = "f32" } = options;
  checkCacheDtype("load a model with a cache of", cache);
  const folder = await openFolder(source, options);
  const { json, file } = await readConfig(folder, options);
  const plan = planCausal(json, file);
  const { config } = plan;
  const ownEosIds = await readEosIds(folder, config.eosIds, options);
  const parts = await loadParts(folder, plan, options);
  const eosIds = [...new Set([...ownEosIds, ...parts.tokenizer?.eosIds ?? []])];
  return new LanguageModel({ ...parts, config, eosIds, cache });
}

/**
 * Loads a BERT encoder, or a BERT that classifies sequences.
 *
 * @param source A Hugging Face folder.
 * @param options Backend, dtype, progress and abort.
 * @throws {FormatError} If a file is malformed, or asks for what is not supported; the field is named.
 * @throws {MismatchError} If the tensors are not those of the config.
 *
 * @example
 * ```ts
 * import { folder } from "@lowrank/lora/fs";
 * import { loadEncoder } from "@lowrank/lora/models";
 * import assert from "node:assert/strict";
 *
 * const encoder = await loadEncoder(folder("tests/fixtures/base/bert"));
 * const rows = [[2, 9, 4, 3], [2, 7, 3]]; // of each text encoder.tokenizer?.encode(text, { addSpecial: true })
 * const { shape } = await encoder.embed(rows, { normalize: true });
 * assert.deepEqual(shape, [2, encoder.config.hiddenSize]);
 * encoder.dispose();
 * ```
 */
export async function loadEncoder(source: Folder, options: LoadModelOptions = {}): Promise<Encoder> {
  checkDtype(options);
  const folder = await openFolder(source, options);
  const { json, file } = await readConfig(folder, options);
  const plan = planEncoder(json, file);
  return new Encoder({ ...await loadParts(folder, plan, options), config: plan.config });
}

function checkDtype({ dtype = "auto" }: LoadModelOptions): void {
  if (MODEL_DTYPES.includes(dtype)) return;
  throw new TypeError(`Cannot load a model as "${dtype}": expected ${MODEL_DTYPES.join(", ")}`);
}

async function readConfig(folder: Folder, options: ReadOptions): Promise<{ json: JsonValue; file: string }> {
  const file = folder.open("config.json");
  return { json: await readJson(file, { ...options, maxBytes: MAX_CONFIG_BYTES }), file: file.name };
}

/** Puts the network on a backend, and opens the tokenizer. */
async function loadParts<Network extends PlacedNetwork>(
  folder: Folder | GgufFolder,
  { tensors, build }: { readonly tensors: ModelTensors; readonly build: (layers: ModelLayers) => Network },
  loading: LoadModelOptions,
): Promise<AdaptedModelParts<Network>> {
  const { dtype = "auto", threads = 1 } = loading;
  const blocks = "blocks" in folder ? { blocks: folder.blocks } : {};
  const checkpoint = fuseSingleExperts(await openCheckpoint(folder, loading));
  const { tensorOf, nameOf } = matchNames(tensors, checkpoint.tensors);
  const shapes = new Map([...tensors.shapes].map(([name, shape]) => [tensorOf(name), shape]));
  checkParameters(checkpoint, { shapes, isSpare: (name) => tensors.isSpare(nameOf(name)) });
  const { isTransposed = () => false } = tensors;
  const place = async (options: ReloadOptions): Promise<Placement<Network>> => {
    const backend = options.backend ?? await openBackend({ weightBytes: bytesOf(shapes, dtype), threads });
    const ownsBackend = options.backend === undefined;
    try {
      const reading = { ...options, ...blocks, dtype, exact: loading.exact ?? false, nameOf, isTransposed };
      const parameters = await loadParameters(backend, checkpoint, shapes.keys(), reading);
      const network = build(new ModelLayers(backend, parameters, tensors));
      return new Placement({ backend, ownsBackend, network, parameters });
    } catch (error) {
      if (ownsBackend) backend.dispose();
      throw error;
    }
  };
  const readWeight = (module: string, options: ReadOptions) => checkpoint.read(tensorOf(`${module}.weight`), options);
  const placement = await place(loading);
  try {
    // Last: with its 100,000 objects in the heap, Node's garbage collections would double the time of the load.
    return { placement, place, readWeight, isTransposed, tokenizer: await openTokenizer(folder, loading) };
  } catch (error) {
    placement.dispose();
    throw error;
  }
}

/** What a pass over all parameters reads. */
function bytesOf(shapes: ReadonlyMap<string, readonly number[]>, dtype: ModelDtype): number {
  const elements = [...shapes.values()].reduce((sum, shape) => sum + sizeOf(shape), 0);
  return elements * ({ f32: 4, f8: 1, int8: 1, int4: 0.6, nf4: 0.6 }[dtype as string] ?? 2);
}

async function openFolder(source: Folder | Source, options: ReadOptions): Promise<Folder | GgufFolder> {
  checkReadable("load a model", source, 'file("….gguf"), or urlFolder(url)');
  if (!("open" in source)) {
    if (!/\.(?:safetensors|json)$/.test(source.name)) return await ggufFolder(source, options);
    const message = `Cannot load a model from the file ${
      quote(source.name)
    } alone: expected its folder, or a .gguf file`;
    throw new MismatchError(message, { file: source.name });
  }
  if (await source.has("config.json", options)) return source;
  const files = await source.list?.(options) ?? [];
  const ggufs = files.filter((file) => file.endsWith(".gguf"));
  if (ggufs.length === 1) return await ggufFolder(source.open(ggufs[0]!), options);
  if (await source.has(CONFIG_FILE, options)) {
    const message = `Cannot load a model from ${quote(source.name)}, which holds an adapter: expected its base model`;
    const details = { code: "missing-file", file: source.name, missing: ["config.json"], unexpected: [CONFIG_FILE] };
    throw new MismatchError(message, details);
  }
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
  const { hasTokenizer, loadTokenizer } = await import("../text/load.ts");
  return await hasTokenizer(folder, options) ? await loadTokenizer(folder, options) : null;
}

/** `generation_config.json` overrules what the config says. */
async function readEosIds(folder: Folder, absent: readonly number[], options: ReadOptions): Promise<readonly number[]> {
  if (!await folder.has("generation_config.json", options)) return absent;
  const file = folder.open("generation_config.json");
  const json = await readJson(file, { ...options, maxBytes: MAX_CONFIG_BYTES });
  const ids = json instanceof Map ? new ConfigFields(json, file.name).tokenIds("eos_token_id") : [];
  return ids.length > 0 ? ids : absent;
}
