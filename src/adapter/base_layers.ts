/**
 * The layers of a base by the headers of its files.
 *
 * @module
 */

import { FormatError } from "../errors.ts";
import { checkReadable } from "../formats/check_place.ts";
import { openCheckpoint } from "../formats/checkpoint.ts";
import type { StoredTensor } from "../formats/dtype.ts";
import { readGguf } from "../formats/gguf.ts";
import type { JsonValue } from "../formats/json.ts";
import { readJson } from "../formats/json_file.ts";
import { quote } from "../formats/quote.ts";
import { readSafetensorsHeader, readTensor } from "../formats/safetensors.ts";
import { type Folder, readExactly, type ReadOptions, type Source } from "../formats/source.ts";
import type { BaseModule } from "./create_options.ts";
import { lastName } from "./paths.ts";
import { GGUF_ARCHITECTURES, modulePath } from "./dialects/gguf_names.ts";

/** What a base tells of itself. */
export interface BaseLayers {
  /** Its layers. */
  readonly modules: readonly BaseModule[];
  /** Whether it stores weights (in, out). */
  readonly fanInFanOut: boolean;
  /** The weight of a layer as stored; absent where the files have other rows than the layer (GGUF). */
  readonly weightOf?: (module: string) => Promise<StoredTensor>;
}

interface Entry {
  readonly name: string;
  readonly dtype: string;
  readonly shape: readonly number[];
}

const MAX_CONFIG = 2 ** 20;
const GGUF_MAGIC = "GGUF";
const FLOATS = /^(?:F32|F16|BF16|F64|F8_E4M3|F8_E5M2)$/;
const EMBEDDINGS = /^(?:wte|wpe|shared|embed_(?:tokens|in|positions)|relative_attention_bias|(?:\w+_)?embeddings?)$/;
/** Model types whose checkpoints may leave out what the paths of their modules begin with. */
const BARE_TYPES: readonly (string | undefined)[] = ["gpt2", "bloom"];
const BARE_PREFIX = "transformer.";

/**
 * Lists the layers of a base that an adapter can have factors for, with their sizes: what `createAdapter()` chooses its
 * targets from. Only headers are read.
 *
 * A header has no kinds: a matrix is an embedding if its name says so, else a linear layer, stored (in, out) where only
 * so its bias fits; a weight of three dimensions and more is a convolution of one group. A head that shares the
 * embedding's weight is not listed, nor is the router of fused experts, which PEFT does not adapt either.
 *
 * @param base A Hugging Face folder, one safetensors file, a GGUF file, or a folder that holds one.
 * @param options A signal.
 * @returns The layers in the order of the files, with the paths that PEFT knows them by.
 * @throws {FormatError} If a file is malformed, or a GGUF file of an architecture whose names are not known.
 * @throws {MismatchError} If a folder holds no checkpoint.
 *
 * @example
 * ```ts
 * import { listLayers } from "@lowrank/lora/adapters";
 * import { folder } from "@lowrank/lora/fs";
 * import assert from "node:assert/strict";
 *
 * const layers = await listLayers(folder("examples/models/tiny/base"));
 * const { kind, inFeatures } = layers.find(({ name }) => name === "model.layers.0.mlp.up_proj")!;
 * assert.deepEqual([kind, inFeatures], ["linear", 160]);
 * ```
 */
export async function listLayers(base: Folder | Source, options: ReadOptions = {}): Promise<readonly BaseModule[]> {
  return (await readBase(base, options)).modules;
}

/**
 * Reads the headers of a base: {@linkcode listLayers}, and what else its files tell.
 *
 * @param base The base.
 * @param options A signal.
 * @returns What the files tell.
 */
export async function readBase(base: Folder | Source, options: ReadOptions = {}): Promise<BaseLayers> {
  checkReadable("list the layers of a base", base, 'file("….gguf"), or urlFolder(url)');
  if (!("open" in base)) {
    return await isGguf(base, options) ? await ggufLayers(base, options) : fileLayers(base, options);
  }
  const gguf = await ggufIn(base, options);
  if (gguf) return await ggufLayers(gguf, options);
  const { tensors, read } = await openCheckpoint(base, options);
  const prefix = await missingPrefix(base, tensors, options);
  return { ...headerLayers(tensors.values(), prefix), weightOf: (module) => read(tensorName(module, prefix)) };
}

async function fileLayers(source: Source, options: ReadOptions): Promise<BaseLayers> {
  const { tensors } = await readSafetensorsHeader(source, options);
  const weightOf = (module: string) => readTensor(source, tensors.get(tensorName(module, ""))!);
  return { ...headerLayers(tensors.values(), ""), weightOf };
}

function tensorName(module: string, prefix: string): string {
  return `${module.startsWith(prefix) ? module.slice(prefix.length) : module}.weight`;
}

async function isGguf(source: Source, options: ReadOptions): Promise<boolean> {
  if (await source.size(options) < GGUF_MAGIC.length) return false;
  return new TextDecoder().decode(await readExactly(source, 0, GGUF_MAGIC.length, options)) === GGUF_MAGIC;
}

/** The only GGUF file of a folder that is no Hugging Face folder. */
async function ggufIn(folder: Folder, options: ReadOptions): Promise<Source | null> {
  const files = await folder.list?.(options) ?? [];
  const [only, ...others] = files.filter((file) => file.endsWith(".gguf"));
  if (only === undefined || others.length > 0 || files.some((file) => /\.safetensors/.test(file))) return null;
  return folder.open(only);
}

async function ggufLayers(source: Source, options: ReadOptions): Promise<BaseLayers> {
  const { metadata, tensors } = await readGguf(source, options);
  const architecture = String(metadata.get("general.architecture"));
  if (!GGUF_ARCHITECTURES.includes(architecture)) {
    const expected = GGUF_ARCHITECTURES.join(", ");
    const message = `Cannot list the layers of ${quote(source.name)} of architecture ${quote(architecture)}`;
    const details = { file: source.name, field: "general.architecture", found: architecture };
    throw new FormatError(`${message}: expected ${expected}`, { ...details, expected: GGUF_ARCHITECTURES });
  }
  const entries = [...tensors.values()].flatMap(({ name, shape }) => {
    const path = modulePath(name, architecture);
    return path === undefined ? [] : [{ name: `${path}.weight`, dtype: "F32", shape }];
  });
  return headerLayers(entries, "");
}

/** What the paths of the modules begin with and the names of the tensors do not. */
async function missingPrefix(
  folder: Folder,
  tensors: { keys(): Iterable<string> },
  options: ReadOptions,
): Promise<string> {
  if (!await folder.has("config.json", options)) return "";
  const config = await readJson(folder.open("config.json"), { ...options, maxBytes: MAX_CONFIG, keepNumberText: true });
  const field = (name: string): JsonValue | undefined => config instanceof Map ? config.get(name) : undefined;
  const [architecture] = [field("architectures")].flat();
  const isWhole = typeof architecture !== "string" || !architecture.endsWith("Model") || /LMHead/.test(architecture);
  const has = [...tensors.keys()].some((name) => name.startsWith(BARE_PREFIX));
  return BARE_TYPES.includes(field("model_type") as string) && isWhole && !has ? BARE_PREFIX : "";
}

function headerLayers(entries: Iterable<Entry>, prefix: string): BaseLayers {
  const byName = new Map(Array.from(entries, (entry) => [entry.name, entry]));
  const modules: BaseModule[] = [];
  let fanInFanOut = false;
  for (const { name, dtype, shape } of byName.values()) {
    const path = /^(.+)\.weight$/.exec(name)?.[1];
    // Integers are packed by some quantiser: their shapes are not the layer's.
    if (!FLOATS.test(dtype) || shape.some((length) => length < 1)) continue;
    if (path === undefined) modules.push(...expertLayers(name, byName));
    else if (shape.length > 2 && shape.length < 6) modules.push(convLayer(path, shape));
    else if (shape.length === 2 && !isRouter(path, byName)) {
      const [rows, columns] = shape as readonly [number, number];
      const isTransposed = rows !== columns && byName.get(`${path}.bias`)?.shape[0] === columns;
      fanInFanOut ||= isTransposed;
      modules.push(
        matrixLayer(path === "lm_head" ? path : prefix + path, isTransposed ? [columns, rows] : [rows, columns]),
      );
    }
  }
  return { modules, fanInFanOut };
}

function matrixLayer(name: string, [rows, columns]: readonly [number, number]): BaseModule {
  const isTable = EMBEDDINGS.test(lastName(name));
  if (isTable) return { name, kind: "embedding", inFeatures: rows, outFeatures: columns };
  return { name, kind: "linear", inFeatures: columns, outFeatures: rows };
}

function convLayer(name: string, [outFeatures = 1, inFeatures = 1, ...kernel]: readonly number[]): BaseModule {
  return { name, kind: "conv", inFeatures, outFeatures, kernel };
}

/** Fused experts (E, out, in), as the other parameter of their module confirms: (E, 2 n, m) for (E, m, n). */
function expertLayers(name: string, entries: ReadonlyMap<string, Entry>): BaseModule[] {
  const [, owner, parameter] = /^(.+)\.(gate_up_proj|down_proj)$/.exec(name) ?? [];
  const [wide, narrow] = ["gate_up_proj", "down_proj"].map((one) => entries.get(`${owner}.${one}`)?.shape ?? []);
  if (parameter === undefined || wide?.length !== 3 || narrow?.length !== 3) return [];
  if (wide[1] !== 2 * narrow[2]! || wide[2] !== narrow[1] || wide[0] !== narrow[0]) return [];
  const [experts, outFeatures, inFeatures] = entries.get(name)!.shape as readonly [number, number, number];
  return [{ name, kind: "experts", parameter, experts, inFeatures, outFeatures }];
}

function isRouter(path: string, entries: ReadonlyMap<string, Entry>): boolean {
  return path.endsWith(".gate") && entries.has(`${path.slice(0, -".gate".length)}.experts.down_proj`);
}
