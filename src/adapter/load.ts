/**
 * Reads a PEFT folder: `adapter_config.json` and `adapter_model.safetensors`.
 *
 * @module
 */

import { FormatError, LimitError, MismatchError } from "../errors.ts";
import { readText } from "../formats/json_file.ts";
import { memoryFolder, memorySource } from "../formats/memory.ts";
import { quote } from "../formats/quote.ts";
import { readSafetensorsHeader, type TensorInfo } from "../formats/safetensors.ts";
import { encodeSafetensors } from "../formats/safetensors_writer.ts";
import { type Folder, readExactly, type ReadOptions, type Source } from "../formats/source.ts";
import { readTorch } from "../formats/torch.ts";
import { urlFolder } from "../formats/url.ts";
import { Adapter, type LoraModule } from "./adapter.ts";
import { identify } from "./identity.ts";
import { type AdapterLimits, completeLimits } from "./limits.ts";
import { reportAdapter } from "./load_report.ts";
import { CONFIG_FILE, type LoraConfig, parseLoraConfig } from "./lora_config.ts";
import { moduleReader } from "./lora_module.ts";
import { parseTensorKey, type TensorPart } from "./tensor_key.ts";
import { unsupportedTensor } from "./unsupported.ts";

/** File name of the tensors in a PEFT folder. */
export const WEIGHTS_FILE = "adapter_model.safetensors";
/** Longest name of a tensor: a path of 512 characters with all that tools put around it. */
const MAX_TENSOR_NAME = 1024;
const PICKLE_FILE = "adapter_model.bin";

/** Where an adapter is: a folder, its URL, or its files by name. */
export type AdapterSource = Folder | URL | ReadonlyMap<string, Uint8Array>;

/** Options of {@linkcode loadAdapter}. */
export interface LoadAdapterOptions extends ReadOptions {
  /** Caps; what is absent has its default. */
  readonly limits?: AdapterLimits;
  /** Reads `adapter_model.bin` where there are no safetensors: as data, without running what it may hold. */
  readonly allowPickle?: boolean;
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
  const groups = groupTensors(header.tensors, file);
  const modules = readModules(groups.factors, file);
  const { sha256, id } = await identify(stored, config);
  return new Adapter({
    name: folder.name,
    config,
    modules,
    trainingState: new Map(groups.trainingState.map((info) => [info.name, view(bytes, info)])),
    sha256,
    id,
    bytes: stored.length,
    report: reportAdapter(config, modules),
  });
}

interface WeightFile {
  readonly name: string;
  readonly bytes: Uint8Array;
  readonly config: LoraConfig;
  readonly limits: ReturnType<typeof completeLimits>;
}

type Factors = { readonly [part in "loraA" | "loraB"]?: TensorInfo };

function asFolder(source: AdapterSource): Folder {
  if (source instanceof URL) return urlFolder(source);
  if (source instanceof Map) return memoryFolder(source);
  if (typeof (source as Folder | null)?.open === "function") return source as Folder;
  throw new TypeError("Cannot load an adapter: source must be a folder, a URL object or a map of files");
}

async function openFile(folder: Folder, file: string, options: ReadOptions): Promise<Source> {
  if (await folder.has(file, options)) return folder.open(file);
  throw new MismatchError(`Cannot load an adapter from ${quote(folder.name)}: expected a file ${quote(file)}`, {
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

function view(bytes: Uint8Array, { dtype, shape, offset, length }: TensorInfo): LoraModule["loraA"] {
  return { dtype, shape, bytes: bytes.subarray(offset, offset + length) };
}

/** Sorts all tensors of the file by what they are; one that has no place is refused. */
function groupTensors(
  tensors: ReadonlyMap<string, TensorInfo>,
  file: WeightFile,
): { factors: ReadonlyMap<string, Factors>; trainingState: readonly TensorInfo[] } {
  const factors = new Map<string, Factors>();
  const trainingState: TensorInfo[] = [];
  for (const info of tensors.values()) {
    checkName(info.name, file.name);
    const { module, part } = parseTensorKey(info.name);
    if (part === "training state") {
      trainingState.push(info);
      continue;
    }
    const kind = part === "loraA" && info.shape.length > 2 ? "convolution" : part;
    if (kind !== "loraA" && kind !== "loraB") throw refuseTensor(kind, info.name, file);
    const other = factors.get(module)?.[kind];
    if (other) throw refuseTwins(other, info, file);
    factors.set(module, { ...factors.get(module), [kind]: info });
  }
  const limit = file.limits.modules;
  if (factors.size > limit) {
    const message = `Cannot load ${quote(file.name)} with ${factors.size} modules: expected at most ${limit}`;
    throw new LimitError(message, { file: file.name, limit, value: factors.size });
  }
  return { factors, trainingState };
}

/** Matching a name takes time that grows with the square of its length. */
function checkName(tensor: string, file: string): void {
  if (tensor.length <= MAX_TENSOR_NAME) return;
  const message = `Cannot load tensor ${quote(tensor)} with a name of ${tensor.length} characters`;
  throw new LimitError(`${message}: expected at most ${MAX_TENSOR_NAME}`, {
    file,
    tensor,
    field: "name",
    limit: MAX_TENSOR_NAME,
    value: tensor.length,
  });
}

function refuseTensor(
  part: Exclude<TensorPart, "loraA" | "loraB" | "training state">,
  tensor: string,
  file: WeightFile,
) {
  if (part !== "unknown") return unsupportedTensor(part, tensor, file.name);
  const expected = '"base_model.model.<path>.lora_A.weight" or "….lora_B.weight"';
  const message = `Cannot load tensor ${quote(tensor)} of ${quote(file.name)}: expected PEFT's names, ${expected}`;
  return new FormatError(message, { file: file.name, tensor, expected });
}

function refuseTwins(a: TensorInfo, b: TensorInfo, file: WeightFile): FormatError {
  const message = `Cannot load ${quote(file.name)} with both ${quote(a.name)} and ${quote(b.name)}`;
  return new FormatError(`${message}: they are one factor of one module`, { file: file.name, tensor: b.name });
}

function readModules(factors: ReadonlyMap<string, Factors>, file: WeightFile): ReadonlyMap<string, LoraModule> {
  if (factors.size === 0) {
    const message = `Cannot load ${quote(file.name)} without adapted modules: expected lora_A and lora_B tensors`;
    throw new FormatError(message, { file: file.name });
  }
  for (const [module, { loraA, loraB }] of factors) {
    if (loraA && loraB) continue;
    const [found, missing] = loraA ? [loraA.name, "lora_B.weight"] : [loraB!.name, "lora_A.weight"];
    throw new MismatchError(
      `Cannot load tensor ${quote(found)} of ${quote(file.name)} without its partner: expected a ${missing} for ${
        quote(module)
      }`,
      { file: file.name, tensor: found, missing: [`${module}.${missing}`] },
    );
  }
  const read = moduleReader(file.config, { file: file.name, maxRank: file.limits.rank });
  const modules = new Map<string, LoraModule>();
  for (const [name, { loraA, loraB }] of factors) {
    modules.set(
      name,
      read({ name, a: { ...loraA!, ...view(file.bytes, loraA!) }, b: { ...loraB!, ...view(file.bytes, loraB!) } }),
    );
  }
  return modules;
}
