/**
 * Reads a PEFT folder: `adapter_config.json` and `adapter_model.safetensors`.
 *
 * @module
 */

import { FormatError, LimitError, MismatchError } from "../errors.ts";
import { checkOptionTypes } from "../formats/check_options.ts";
import { checkReadable } from "../formats/check_place.ts";
import type { StoredTensor } from "../formats/dtype.ts";
import { readText } from "../formats/json_file.ts";
import { memoryFolder, memorySource } from "../formats/memory.ts";
import { quote } from "../formats/quote.ts";
import { readSafetensorsHeader, type TensorInfo } from "../formats/safetensors.ts";
import { encodeSafetensors } from "../formats/safetensors_writer.ts";
import { type Folder, readExactly, type ReadOptions, type Source } from "../formats/source.ts";
import { urlFolder } from "../formats/url.ts";
import { Adapter, type AdapterParts, type LoraModule, type TokenRows } from "./adapter.ts";
import { finiteTensor, type NamedTensor, readTokenRows } from "./full_tensors.ts";
import { identify } from "./identity.ts";
import { type AdapterLimits, completeLimits } from "./limits.ts";
import { reportAdapter } from "./load_report.ts";
import { CONFIG_FILE, type LoraConfig, parseLoraConfig } from "./lora_config.ts";
import { moduleReader } from "./lora_module.ts";
import type { ModuleFactors } from "./module_shapes.ts";
import { placeModules } from "./module_places.ts";
import { spreadFactors, toPlainFactors } from "./stored_forms.ts";
import { groupTensors, type TensorGroups } from "./tensor_groups.ts";
import type { ModulePart } from "./tensor_key.ts";

/** File name of the tensors in a PEFT folder. */
export const WEIGHTS_FILE = "adapter_model.safetensors";
const PICKLE_FILE = "adapter_model.bin";
/** What tells a model's folder from an adapter's. */
const MODEL_FILE = "config.json";

/** Where an adapter is: a folder, its URL, or its files by name. */
export type AdapterSource = Folder | URL | ReadonlyMap<string, Uint8Array>;

/** Options of {@linkcode loadAdapter}. */
export interface LoadAdapterOptions extends ReadOptions {
  /** Caps; what is absent has its default. */
  readonly limits?: AdapterLimits;
  /** Reads `adapter_model.bin` where there are no safetensors: as data, without running what it may hold. */
  readonly allowPickle?: boolean;
  /**
   * Whether the base that the adapter will be used with is the one that its initialisation left (PiSSA, OLoRA, CorDA,
   * LoRA-GA, LoftQ, KaSA), not the published one: nothing of it is computed again then. False if absent.
   */
  readonly residualBase?: boolean;
  /**
   * The adapter as it was before training, which PEFT calls `path_initial_model_for_weight_conversion`: what loads is
   * plain LoRA over the published base, whatever the initialisation was. Not needed for an adapter saved with it.
   */
  readonly initial?: AdapterSource | Adapter;
}

/**
 * Loads a PEFT adapter and checks it against itself: config, names, shapes, ranks, values.
 *
 * The keys of the file say what is adapted. Whatever changes the mathematics is honoured or refused by name; what a
 * caller may want to know and is no error is in the adapter's `report`.
 *
 * @param source A folder, a URL, or files held in memory.
 * @param options Caps and a signal.
 * @returns The adapter, in memory.
 * @throws {FormatError} If a file is malformed, or holds what this version does not compute.
 * @throws {MismatchError} If a file or a factor is missing, shapes disagree, or a rank differs from the config's.
 * @throws {LimitError} If a file, a rank or the number of modules passes its cap.
 * @throws {NumericError} If a factor or a scale is not finite.
 *
 * @example
 * ```ts
 * import { loadAdapter } from "@lowrank/lora";
 * import { folder } from "@lowrank/lora/fs";
 * import assert from "node:assert/strict";
 *
 * const adapter = await loadAdapter(folder("examples/models/tiny/tweets"));
 * const { rank, alpha, scaling } = adapter.modules.get("model.layers.0.self_attn.q_proj")!;
 * assert.deepEqual([rank, alpha, scaling], [4, 8, 4]); // rsLoRA: 8 / sqrt(4)
 * ```
 */
export async function loadAdapter(source: AdapterSource, options: LoadAdapterOptions = {}): Promise<Adapter> {
  checkOptionTypes("load an adapter", options, { limits: "object", allowPickle: "boolean", residualBase: "boolean" });
  if (options.residualBase && options.initial) {
    throw new TypeError("Cannot load an adapter with residualBase and initial: expected one of them");
  }
  return await subtractInitial(await readAdapterFolder(source, options), options);
}

/**
 * Takes from an adapter what it was before training, if that is given.
 *
 * @param adapter The adapter.
 * @param options The initial adapter, and how it is read.
 * @returns Plain LoRA; the adapter itself without an initial one.
 * @throws {MismatchError} If the initial adapter has other modules, ranks or scales.
 */
export async function subtractInitial(adapter: Adapter, options: LoadAdapterOptions): Promise<Adapter> {
  const { initial, ...rest } = options;
  if (!initial) return adapter;
  const { toPlainLora } = await import("./to_plain.ts");
  return await toPlainLora(adapter, {
    initial: initial instanceof Adapter ? initial : await readAdapterFolder(initial, rest),
  });
}

async function readAdapterFolder(source: AdapterSource, options: LoadAdapterOptions): Promise<Adapter> {
  const limits = completeLimits(options.limits);
  options.signal?.throwIfAborted();
  const folder = asFolder(source);
  const configFile = await openFile(folder, CONFIG_FILE, options);
  const text = await readText(configFile, { ...options, maxBytes: limits.configBytes });
  const config = parseLoraConfig(text, { file: configFile.name, limits });
  const weightFile = await openWeights(folder, options);
  const stored = await readCapped(weightFile, limits.fileBytes, options);
  const bytes = isPickle(weightFile) ? await fromPickle(weightFile.name, stored, { ...options, limits }) : stored;
  const header = await readSafetensorsHeader(memorySource(weightFile.name, bytes), {
    ...(limits.headerBytes !== undefined && { maxHeaderBytes: limits.headerBytes }),
  });
  const file: WeightFile = { name: weightFile.name, bytes, config, limits };
  const groups = groupTensors(header.tensors, { name: file.name, config, maxModules: limits.modules });
  const read = readParts(groups, file);
  const { sha256, id } = await identify(stored, config);
  return assembleLoaded(read, { name: folder.name, config, sha256, id, bytes: stored.length }, options);
}

interface WeightFile {
  readonly name: string;
  readonly bytes: Uint8Array;
  readonly config: LoraConfig;
  readonly limits: ReturnType<typeof completeLimits>;
}

function asFolder(source: AdapterSource): Folder {
  if (source instanceof URL) return urlFolder(source);
  if (source instanceof Map) return memoryFolder(source);
  checkReadable("load an adapter", source, "a URL object or a map of files");
  return source as Folder;
}

async function openFile(folder: Folder, file: string, options: ReadOptions): Promise<Source> {
  if (await folder.has(file, options)) return folder.open(file);
  if (file === CONFIG_FILE && await folder.has(MODEL_FILE, options)) {
    const message = `Cannot load an adapter from ${quote(folder.name)}, which holds a model`;
    const details = { code: "missing-file", file, missing: [file], unexpected: [MODEL_FILE] };
    throw new MismatchError(`${message}: expected a folder with ${quote(file)}`, details);
  }
  const expected = `a file ${quote(file)}; readAdapter() and "lora convert" read adapters of other tools`;
  throw new MismatchError(`Cannot load an adapter from ${quote(folder.name)}: expected ${expected}`, {
    code: "missing-file",
    file,
    missing: [file],
  });
}

/** Pickles can run code where others read them, so they are never a silent fallback. */
async function openWeights(folder: Folder, options: LoadAdapterOptions): Promise<Source> {
  if (await folder.has(WEIGHTS_FILE, options) || !(await folder.has(PICKLE_FILE, options))) {
    return await openFile(folder, WEIGHTS_FILE, options);
  }
  if (options.allowPickle) return folder.open(PICKLE_FILE);
  throw new FormatError(
    `Cannot load ${quote(PICKLE_FILE)} from ${
      quote(folder.name)
    }: a pickle can run code when others read it; expected ` +
      `${
        quote(WEIGHTS_FILE)
      }, which "lora convert FOLDER --to peft --out OUT" makes of it, or the option allowPickle; ` +
      "both read it as data",
    { code: "pickle", file: PICKLE_FILE, expected: WEIGHTS_FILE },
  );
}

function isPickle(source: Source): boolean {
  return source.name.endsWith(PICKLE_FILE);
}

async function fromPickle(
  name: string,
  bytes: Uint8Array,
  options: ReadOptions & { readonly limits: WeightFile["limits"] },
): Promise<Uint8Array> {
  const { readTorch } = await import("../formats/torch.ts");
  const tensors = await readTorch(memorySource(name, bytes), options);
  // Many tensors may be views of one storage, which would all be written out.
  const total = [...tensors.values()].reduce((sum, tensor) => sum + tensor.bytes.length, 0);
  checkSize(name, total, options.limits.fileBytes);
  return encodeSafetensors(tensors);
}

function checkSize(file: string, size: number, limit: number): void {
  if (size <= limit) return;
  const message = `Cannot load ${quote(file)} of ${size} bytes: expected at most ${limit}`;
  throw new LimitError(message, { file, field: "size", limit, value: size });
}

async function readCapped(source: Source, limit: number, options: ReadOptions): Promise<Uint8Array> {
  const size = await source.size(options);
  checkSize(source.name, size, limit);
  return await readExactly(source, 0, size, options);
}

function named(bytes: Uint8Array, { name, dtype, shape, offset, length }: TensorInfo): NamedTensor {
  return { name, dtype, shape, bytes: bytes.subarray(offset, offset + length) };
}

type LoadedParts = Pick<AdapterParts, "modules" | "trainingState"> & {
  readonly replacements: ReadonlyMap<string, StoredTensor>;
  readonly tokenRows: ReadonlyMap<string, TokenRows>;
};

/** Checks the tensors of the file, group by group. */
function readParts(groups: TensorGroups, { name: file, bytes, config, limits }: WeightFile): LoadedParts {
  if (groups.modules.size === 0) {
    const message = `Cannot load ${quote(file)} without adapted modules: expected lora_A and lora_B tensors`;
    throw new FormatError(message, { file });
  }
  const read = moduleReader(config, { file, maxRank: limits.rank });
  const modules = new Map<string, LoraModule>();
  for (const [path, place] of placeModules(groups.modules.keys(), config)) {
    const tensors = groups.modules.get(path)!;
    const tensor = (part: ModulePart) => tensors.has(part) ? named(bytes, tensors.get(part)!) : undefined;
    const isEmbedding = tensors.has("embeddingA");
    const factors: ModuleFactors = {
      name: place.name,
      place,
      isEmbedding,
      a: tensor(isEmbedding ? "embeddingA" : "loraA")!,
      b: tensor(isEmbedding ? "embeddingB" : "loraB")!,
      loraBias: tensor("loraBias"),
      magnitude: tensor("magnitude"),
      diagonal: tensor("diagonal"),
    };
    const module = read(spreadFactors(factors, config));
    modules.set(module.name, module);
  }
  const all = (found: ReadonlyMap<string, TensorInfo>) =>
    [...found].map(([key, info]) => [key, named(bytes, info)] as const);
  return {
    modules,
    trainingState: new Map(groups.trainingState.map((info) => [info.name, withoutName(named(bytes, info))])),
    replacements: new Map(all(groups.full).map(([key, tensor]) => [key, finiteTensor(tensor, file)])),
    tokenRows: readTokenRows(new Map(all(groups.tokenRows)), config, file),
  };
}

function withoutName({ dtype, shape, bytes }: NamedTensor): StoredTensor {
  return { dtype, shape, bytes };
}

/** Makes the adapter: plain factors of what is stored in another form, and the report. */
function assembleLoaded(
  parts: LoadedParts,
  head: Pick<AdapterParts, "name" | "config" | "sha256" | "id" | "bytes">,
  { residualBase = false }: LoadAdapterOptions,
): Adapter {
  const { config, modules, report } = toPlainFactors(head.config, parts.modules);
  const whole = { ...parts, config, modules, baseChange: residualBase ? null : config.baseChange };
  return new Adapter({ ...head, ...whole, report: [...report, ...reportAdapter(config, whole)] });
}
