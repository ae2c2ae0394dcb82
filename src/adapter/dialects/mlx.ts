/**
 * mlx-lm: `adapters.safetensors` with `<path>.lora_a` (in, r) and `.lora_b` (r, out), DoRA's `.m` (out), and
 * `adapter_config.json` with one scale, ΔW = s (a b)ᵀ; experts as switch_experts.ts says.
 *
 * @module
 */

import { FormatError, MismatchError, NumericError } from "../../errors.ts";
import type { StoredTensor } from "../../formats/dtype.ts";
import { JsonNumber, type JsonValue } from "../../formats/json.ts";
import { readJson } from "../../formats/json_file.ts";
import { stringifyJson } from "../../formats/json_writer.ts";
import { quote } from "../../formats/quote.ts";
import { encodeSafetensors } from "../../formats/safetensors_writer.ts";
import type { Folder, Sink } from "../../formats/source.ts";
import { writeFiles } from "../../formats/write_files.ts";
import type { Adapter, LoraModule, ReportLine } from "../adapter.ts";
import { DEFAULT_LIMITS } from "../limits.ts";
import { CONFIG_FILE, type LoraConfig } from "../lora_config.ts";
import { assembleAdapter, reportTrainingState } from "./assemble.ts";
import { carryConfig, carryRoundings, CONFIG_KEY, readCarried } from "./carried.ts";
import { type FactorPair, FactorPairs, rankOf } from "./factor_pairs.ts";
import { type FoldedModules, foldScales } from "./fold.ts";
import { type Holds, requireHeld } from "./losses.ts";
import { transposeStored } from "./matrix_bytes.ts";
import { mlxPath, transformersPath } from "./mlx_names.ts";
import { cutRanks, evenRanks } from "./mlx_ranks.ts";
import type { BaseFacts, ReadDialectOptions, WriteDialectOptions } from "./options.ts";
import { isEmbedding, isTokenTable, refuseForeign, refuseKind } from "./refusals.ts";
import { alphaOf, sharedNumber } from "./scale_config.ts";
import { refuseTwin, SwitchExperts, type SwitchFactors, toSwitchExperts } from "./switch_experts.ts";
import { readTensorFile, type TensorFile } from "./tensor_file.ts";

/** Name of the tensor file. */
export const MLX_FILE = "adapters.safetensors";
const DEFAULT_SCALE = 20;
const HEAD = "lm_head";
const HOLDS: Holds = {
  dialect: "mlx",
  kinds: ["linear", "embedding", "experts"],
  parts: ["magnitude"],
  tiedTable: "both",
};
/** Types of models whose gate is the first half of gate_up_proj. */
const GATE_FIRST = /^(?:mixtral|qwen[23]\w*)$/;
const EXPECTED = '"<path>.lora_a", "<path>.lora_b" or "<path>.m"';

/**
 * Reads a folder of mlx-lm. The factors are transposed; the scale of the config is that of every module.
 *
 * @param folder The folder with `adapter_config.json` and `adapters.safetensors`.
 * @param options `tied`, by which factors of the embedding are the head's too; `modelType`, `modules`, caps and a signal.
 * @returns The adapter.
 * @throws {FormatError} If a tensor is no factor of a linear layer, or the config is of another kind of training.
 * @throws {MismatchError} If a file or a factor is missing.
 * @throws {LimitError} If a cap is passed.
 * @throws {NumericError} If a factor or the scale is not finite.
 */
export async function readMlx(folder: Folder, options: ReadDialectOptions = {}): Promise<Adapter> {
  for (const file of [CONFIG_FILE, MLX_FILE]) {
    if (await folder.has(file, options)) continue;
    const message = `Cannot read an adapter of mlx-lm from ${quote(folder.name)}: expected a file ${quote(file)}`;
    throw new MismatchError(message, { code: "missing-file", file, missing: [file] });
  }
  const { limits } = options;
  const config = await readConfig(folder, options);
  const file = await readTensorFile(folder.open(MLX_FILE), options);
  const own = readPairs(file, options);
  const table = config.peft === undefined ? readTable(own, options) : { fields: [], pairs: [], report: [] };
  const pairs = [...own, ...table.pairs];
  return await assembleAdapter({
    name: folder.name,
    file: file.name,
    pairs: pairs.map((pair) => ({ ...pair, alpha: alphaOf(config.scale, rankOf(pair)) })),
    carried: readCarried(config.peft, { file: CONFIG_FILE, metadata: file.metadata, limits }),
    fields: new Map([...config.fields, ...table.fields]),
    report: [...config.report, ...table.report],
    limits,
  });
}

function readPairs(file: TensorFile, { limits, modules, modelType }: ReadDialectOptions): readonly FactorPair[] {
  const pairs = new FactorPairs(file.name, { modules, limits, kinds: { embedding: true } });
  const experts = new SwitchExperts(file.name, limits);
  for (const [tensor, stored] of cutRanks(file)) {
    const [, own, part, magnitude] = /^(.+)\.(?:lora_([ab])|(m))$/.exec(tensor) ?? [];
    if (own === undefined) throw refuseForeign(tensor, file.name, EXPECTED);
    const path = transformersPath(own, modelType);
    if (magnitude !== undefined) {
      pairs.add(path, "magnitude", tensor, requireRows(path, { tensor, stored, file: file.name }));
      continue;
    }
    const [which, factor] = [part as "a" | "b", requireBytes(stored, tensor, file.name)];
    if (experts.add(path, which, { ...factor, name: tensor })) continue;
    pairs.add(path, which, tensor, factor.shape.length === 2 ? transposeStored(factor) : factor);
  }
  const fused = experts.complete();
  const plain = fused.length > 0 && pairs.isEmpty ? [] : pairs.complete();
  for (const { name, a } of plain) {
    const twin = fused.find((pair) => pair.name === name);
    if (twin) throw refuseTwin(a.name, twin.a.name, file.name);
  }
  return [...plain, ...fused];
}

interface Table {
  readonly fields: Iterable<readonly [string, JsonValue]>;
  /** The head's factors. */
  readonly pairs: readonly FactorPair[];
  readonly report: readonly ReportLine[];
}

/** mlx-lm applies the factors of an embedding to the head too, where it is the same table. */
function readTable(pairs: readonly FactorPair[], { tied }: BaseFacts): Table {
  const table = pairs.find(({ name }) => isTokenTable(name));
  if (table === undefined || tied === false) return { fields: [], pairs: [], report: [] };
  const head = pairs.some(({ name }) => name === HEAD) ? [] : [headOf(table)];
  if (tied) return { fields: [["ensure_weight_tying", true]], pairs: head, report: [] };
  const what = "it acts in the embedding alone";
  const why = "mlx-lm lets it act in a tied head too, and --base (readBaseFacts()), which would tell, is not given";
  return { fields: [], pairs: [], report: [{ module: table.name, what, why }] };
}

/** PEFT saves the factors of a tied head too, which are those of the table, transposed. */
function headOf({ a, b }: FactorPair): FactorPair {
  const [first, second] = [transposeStored(b), transposeStored(a)];
  return { name: HEAD, a: { ...first, name: b.name }, b: { ...second, name: a.name }, isEmbedding: false };
}

/** m of an embedding is a norm for every token, which PEFT does not have. */
function requireRows(
  path: string,
  { tensor, stored, file }: { readonly tensor: string; readonly stored: StoredTensor; readonly file: string },
): StoredTensor {
  if (isEmbedding(path)) throw refuseKind(tensor, file, "a norm for every token of an embedding");
  return stored;
}

function requireBytes(stored: StoredTensor, tensor: string, file: string): StoredTensor {
  if (["F32", "F16", "BF16"].includes(stored.dtype)) return stored;
  const message = `Cannot read tensor ${quote(tensor)} of ${quote(file)} and dtype ${stored.dtype}`;
  const details = { file, tensor, field: "dtype", found: stored.dtype, expected: ["F32", "F16", "BF16"] };
  throw new FormatError(`${message}: expected F32, F16 or BF16`, details);
}

interface MlxConfig {
  readonly scale: number;
  /** PEFT's config, which mlx-lm does not know. */
  readonly peft: JsonValue | undefined;
  readonly fields: ReadonlyMap<string, JsonValue>;
  readonly report: readonly ReportLine[];
}

async function readConfig(folder: Folder, options: ReadDialectOptions): Promise<MlxConfig> {
  const { limits } = options;
  const maxBytes = limits?.configBytes ?? DEFAULT_LIMITS.configBytes;
  const json = await readJson(folder.open(CONFIG_FILE), { ...options, maxBytes, maxDepth: 16, keepNumberText: true });
  const config = json instanceof Map ? json : new Map<string, JsonValue>();
  const kind = config.get("fine_tune_type") ?? "lora";
  if (kind !== "lora" && kind !== "dora") {
    throw refuseConfig("fine_tune_type", kind, '"lora" or "dora"; merge it with mlx_lm.fuse');
  }
  const parameters = config.get("lora_parameters");
  if (!(parameters instanceof Map)) throw refuseConfig("lora_parameters", parameters ?? null, "an object");
  const dropout = parameters.get("dropout");
  return {
    ...readScale(parameters),
    peft: config.get(CONFIG_KEY),
    fields: new Map<string, JsonValue>([["use_dora", kind === "dora"], ["lora_dropout", dropout ?? 0]]),
  };
}

function readScale(parameters: ReadonlyMap<string, JsonValue>): Pick<MlxConfig, "scale" | "report"> {
  const value = parameters.get("scale");
  if (value === undefined) {
    const what = `lora_parameters has no scale: ${DEFAULT_SCALE} is taken`;
    return { scale: DEFAULT_SCALE, report: [{ module: CONFIG_FILE, what, why: "it is the default of mlx-lm" }] };
  }
  const scale = value instanceof JsonNumber ? value.value : value;
  if (typeof scale !== "number") throw refuseConfig("scale", value, "a number");
  if (Number.isFinite(Math.fround(scale))) return { scale, report: [] };
  const message = `Cannot read "scale" of ${quote(CONFIG_FILE)} with value ${scale}: expected a finite 32-bit float`;
  throw new NumericError(message, { file: CONFIG_FILE, field: "scale", found: scale });
}

function refuseConfig(field: string, found: JsonValue, expected: string): FormatError {
  const shown = typeof found === "string" ? quote(found) : found === null ? "absent" : typeof found;
  const message = `Cannot read ${quote(CONFIG_FILE)} of mlx-lm with ${quote(field)} ${shown}: expected ${expected}`;
  return new FormatError(message, { file: CONFIG_FILE, field, found, expected });
}

/**
 * Writes a folder that mlx-lm loads. The factors are transposed and of one rank; the scale is the one that suits most modules, and what it
 * leaves of the others' goes into b: exact for powers of two, else rounded once to F32 and reported. What the rounding
 * took is in the header of the tensors, so that {@linkcode readMlx} gives every bit again.
 *
 * @param adapter LoRA of linear layers, embeddings and fused experts, or DoRA of linear layers.
 * @param sink Where the files go.
 * @param options `tied`; `modelType`, which tells GPT-2's paths, and like `modules` Mixtral's; `allowLoss` and a signal.
 * @returns What was changed.
 * @throws {MismatchError} If the adapter is more than that, and the loss is not allowed.
 */
export async function writeMlx(
  adapter: Adapter,
  sink: Sink,
  options: WriteDialectOptions = {},
): Promise<readonly ReportLine[]> {
  const held = requireHeld(adapter, HOLDS, options);
  const { modules } = held;
  refuseTokenNorms(modules);
  refuseAlternating(modules, adapter.config);
  const scale = sharedNumber(modules.map(({ scaling }) => scaling));
  const why = "the config of mlx-lm has one scale";
  const folded = foldScales(modules, ({ rank }) => alphaOf(scale, rank) / rank, { file: MLX_FILE, why });
  const even = evenRanks(new Map(folded.modules.flatMap((module) => [...layersOf(module, options)])), MLX_FILE);
  const tensors = new Map<string, StoredTensor>();
  for (const [path, { a, b }] of even.layers) tensors.set(`${path}.lora_a`, a).set(`${path}.lora_b`, b);
  for (const { name, magnitude } of folded.modules) {
    if (magnitude) tensors.set(`${mlxPath(name, options.modelType)}.m`, magnitude);
  }
  const keys = [...even.layers.keys()];
  const config = await mlxConfig(folded, { scale, keys, rank: even.rank }, held.config);
  const metadata = new Map([["format", "mlx"], ...even.metadata, ...carryRoundings(folded)]);
  const files = new Map([
    [MLX_FILE, encodeSafetensors(tensors, metadata)],
    [CONFIG_FILE, new TextEncoder().encode(stringifyJson(config, { indent: 4, sortKeys: true }))],
  ]);
  await writeFiles(sink, files, options);
  const report = [...even.report, ...reportTable(modules, options), ...reportExperts(keys, options)];
  return [...reportTrainingState(adapter), ...held.report, ...folded.report, ...report];
}

/** A module's factors by path. */
function layersOf(module: LoraModule, options: WriteDialectOptions): ReadonlyMap<string, SwitchFactors> {
  if (module.kind === "experts") return toSwitchExperts(module, options);
  const path = mlxPath(module.name, options.modelType);
  return new Map([[path, { a: transposeStored(module.loraA), b: transposeStored(module.loraB) }]]);
}

function reportTable(modules: readonly LoraModule[], { tied }: BaseFacts): readonly ReportLine[] {
  const table = modules.find(({ name }) => isTokenTable(name));
  if (!table || tied !== undefined) return [];
  const what = "in mlx-lm it acts in a tied head too";
  return [{ module: table.name, what, why: "--base (readBaseFacts()), which would tell whether it is, is not given" }];
}

function reportExperts(keys: readonly string[], { modelType = "" }: WriteDialectOptions): readonly ReportLine[] {
  const path = keys.find((key) => key.includes(".switch_mlp."));
  if (path === undefined || GATE_FIRST.test(modelType)) return [];
  const what = "fused experts are written as those of Mixtral and Qwen, the gate in the first half of gate_up_proj";
  return [{ module: path, what, why: "the adapter does not say whose they are; Mixtral's path is told by the base" }];
}

/** A DoRA embedding has one norm per feature in PEFT, and one per token in mlx-lm. */
function refuseTokenNorms(modules: readonly LoraModule[]): void {
  const module = modules.find(({ kind, magnitude }) => kind === "embedding" && magnitude);
  if (!module) return;
  const message = `Cannot write module ${quote(module.name)}, an embedding with DoRA, for mlx-lm`;
  throw new MismatchError(`${message}: expected a linear layer, its norms are per token there`, {
    code: "unsupported",
    tensor: module.name,
  });
}

/** In gpt-oss the rows of gate and up alternate, and its experts are `experts` in mlx-lm too. */
function refuseAlternating(modules: readonly LoraModule[], { baseModel }: LoraConfig): void {
  const module = modules.find(({ kind }) => kind === "experts");
  if (!module || !/gpt[-_]?oss/i.test(baseModel ?? "")) return;
  const message = `Cannot write module ${quote(module.name)}, experts of ${quote(baseModel!)}, for mlx-lm`;
  const expected = "experts whose gate is the first half of gate_up_proj; merge it, and convert the merged model";
  throw new MismatchError(`${message}: expected ${expected}`, { code: "experts", tensor: module.name, expected });
}

async function mlxConfig(
  folded: FoldedModules,
  { scale, keys, rank }: { readonly scale: number; readonly keys: readonly string[]; readonly rank: number },
  config: LoraConfig,
): Promise<Map<string, JsonValue>> {
  const layers = keys.map((name) => Number(/\.(\d+)\./.exec(name)?.[1] ?? -1) + 1);
  const parameters = new Map<string, JsonValue>([
    ["rank", rank],
    ["scale", scale],
    ["dropout", config.loraDropout],
    // Whole paths, so that exactly these layers are adapted, whatever num_layers counts from the end.
    ["keys", [...keys]],
  ]);
  return new Map<string, JsonValue>([
    ["fine_tune_type", config.useDora ? "dora" : "lora"],
    ["num_layers", Math.max(1, ...layers)],
    ["lora_parameters", parameters],
    [CONFIG_KEY, await carryConfig(config, folded)],
  ]);
}
