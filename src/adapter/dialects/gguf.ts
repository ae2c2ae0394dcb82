/**
 * llama.cpp: one GGUF file with `<tensor>.lora_a` (r, in), `.lora_b` (out, r) and one alpha, s = alpha / r of each pair;
 * for aLoRA the tokens that switch it on.
 *
 * @module
 */

import { FormatError, MismatchError, NumericError } from "../../errors.ts";
import type { StoredTensor } from "../../formats/dtype.ts";
import { type Gguf, readGguf, readGgufTensor } from "../../formats/gguf.ts";
import { encodeGguf, type GgufField } from "../../formats/gguf_writer.ts";
import { quote } from "../../formats/quote.ts";
import type { Sink, Source } from "../../formats/source.ts";
import { writeFiles } from "../../formats/write_files.ts";
import type { Adapter, LoraModule, ReportLine } from "../adapter.ts";
import { assembleAdapter, reportTrainingState } from "./assemble.ts";
import { carryTexts, readCarried } from "./carried.ts";
import { FactorPairs } from "./factor_pairs.ts";
import { countExact, foldScales } from "./fold.ts";
import { GGUF_ARCHITECTURES, ggufTensorName, hasPairedRows, modulePath } from "./gguf_names.ts";
import { type Holds, requireHeld } from "./losses.ts";
import { reorderHeads, type RowOrder, transposeStored } from "./matrix_bytes.ts";
import type { BaseFacts, ReadDialectOptions, WriteDialectOptions } from "./options.ts";
import { isEmbedding, refuseForeign, refuseKind } from "./refusals.ts";
import { alphaOf, sharedNumber } from "./scale_config.ts";
import { cappedSize, checkName } from "./tensor_file.ts";
import { DTYPES_KEY, narrowReader, widenFactors } from "./wide_factors.ts";

/** Default name of the file. */
export const GGUF_FILE = "adapter.gguf";
/** As of safetensors: a model's vocabulary takes more, and is none of an adapter's. */
const MAX_HEADER = 25_000_000;
const ALPHA_KEY = "adapter.lora.alpha";
const ALORA_KEY = "adapter.alora.invocation_tokens";
/** Key of the metadata with the PEFT config, which llama.cpp does not know. */
const CONFIG_KEY = "adapter.lora.peft_config";
const HOLDS: Holds = {
  dialect: "gguf",
  kinds: ["linear", "embedding"],
  invocationTokens: true,
  // llama.cpp has no tensor for the factors of a tied head, and ends where those of its embedding reach the head.
  tiedTable: "nowhere",
};
const EXPECTED = '"<tensor of the base>.weight.lora_a" or "….lora_b"';

/**
 * Reads an adapter of llama.cpp. Names and rows become Hugging Face's; quantised factors become F32.
 *
 * @param source The file.
 * @param options `heads` and `kvHeads`, which Llama's family needs where q or k is adapted and the file does not tell;
 * `modules`, caps and a signal.
 * @returns The adapter.
 * @throws {FormatError} If it is no such file, or a tensor is no factor of a linear layer.
 * @throws {MismatchError} If a factor lacks its partner, or the heads are unknown or do not fit.
 * @throws {LimitError} If a cap is passed.
 * @throws {NumericError} If a factor or the alpha is not finite.
 */
export async function readGgufAdapter(source: Source, options: ReadDialectOptions = {}): Promise<Adapter> {
  await cappedSize(source, options);
  const { limits, modules } = options;
  const gguf = await readGguf(source, { ...options, maxHeaderBytes: limits?.headerBytes ?? MAX_HEADER });
  const architecture = requireAdapter(gguf, source.name);
  const heads = headCounts(gguf, architecture, options);
  const pairs = new FactorPairs(source.name, { modules, limits, kinds: { embedding: true } });
  const quantised = new Set<string>();
  const narrow = narrowReader(gguf.metadata.get(DTYPES_KEY), source.name);
  for (const info of gguf.tensors.values()) {
    checkName(info.name, source.name);
    const [, tensor, part] = /^(.+)\.lora_([ab])$/.exec(info.name) ?? [];
    if (tensor === undefined) throw refuseForeign(info.name, source.name, EXPECTED);
    const path = modulePath(tensor, architecture);
    if (path === undefined) throw refuseTensor(info.name, tensor, source.name, architecture);
    const stored = await readGgufTensor(source, info, options);
    if (stored.dtype !== info.type) quantised.add(info.type);
    const at = { path, heads, file: source.name, tensor: info.name };
    const own = narrow(info.name, stored);
    const factor = part === "b" ? orderRows(own, at, "halves") : isEmbedding(path) ? tableFactor(own) : own;
    pairs.add(path, part as "a" | "b", info.name, factor);
  }
  const alpha = readAlpha(gguf, source.name);
  const complete = pairs.complete();
  return await assembleAdapter({
    name: source.name,
    file: source.name,
    // llama.cpp takes an alpha that is absent or 0 for the rank.
    pairs: complete.map((pair) => ({ ...pair, alpha: alpha || pair.a.shape[0]! })),
    carried: readCarried(gguf.metadata.get(CONFIG_KEY), { file: source.name, metadata: gguf.metadata, limits }),
    invocationTokens: readInvocation(gguf, source.name),
    report: reportQuantised(quantised, source.name),
    limits,
  });
}

/** A of an embedding is (vocab, r) in GGUF. */
function tableFactor(stored: StoredTensor): StoredTensor {
  return stored.shape.length === 2 ? transposeStored(stored) : stored;
}

function requireAdapter({ metadata }: Gguf, file: string): string {
  for (const [field, expected] of [["general.type", "adapter"], ["adapter.type", "lora"]] as const) {
    if (metadata.get(field) !== expected) throw refuseField(field, metadata.get(field), file, quote(expected));
  }
  const architecture = metadata.get("general.architecture");
  if (typeof architecture === "string" && GGUF_ARCHITECTURES.includes(architecture)) return architecture;
  throw refuseField("general.architecture", architecture, file, `one of ${GGUF_ARCHITECTURES.join(", ")}`);
}

function refuseField(field: string, found: unknown, file: string, expected: string): FormatError {
  const shown = typeof found === "string" ? quote(found) : found === undefined ? "absent" : typeof found;
  const message = `Cannot read ${quote(file)} as an adapter with ${quote(field)} ${shown}: expected ${expected}`;
  return new FormatError(message, { file, field, found, expected });
}

function refuseTensor(tensor: string, base: string, file: string, architecture: string): FormatError {
  if (/_exps\.weight$/.test(base)) return refuseKind(tensor, file, "a factor of fused experts");
  return refuseForeign(tensor, file, `a linear layer of architecture ${quote(architecture)}`);
}

function readAlpha({ metadata }: Gguf, file: string): number {
  const alpha = metadata.get(ALPHA_KEY) ?? 0;
  if (typeof alpha !== "number") throw refuseField(ALPHA_KEY, alpha, file, "a 32-bit float");
  if (Number.isFinite(Math.fround(alpha))) return alpha;
  const message = `Cannot read ${quote(file)} with ${quote(ALPHA_KEY)} ${alpha}: expected a finite 32-bit float`;
  throw new NumericError(message, { file, field: ALPHA_KEY, found: alpha });
}

/** aLoRA: what llama.cpp looks for in a prompt, as PEFT does. */
function readInvocation({ metadata }: Gguf, file: string): readonly number[] | null {
  const tokens = metadata.get(ALORA_KEY);
  if (tokens === undefined) return null;
  const isToken = (token: unknown): token is number =>
    typeof token === "number" && Number.isInteger(token) && token >= 0;
  if (Array.isArray(tokens) && tokens.length > 0 && tokens.every(isToken)) return tokens;
  throw refuseField(ALORA_KEY, tokens, file, "a list of token ids");
}

function reportQuantised(types: ReadonlySet<string>, file: string): readonly ReportLine[] {
  if (types.size === 0) return [];
  const what = `factors of type ${[...types].join(", ")} became F32`;
  return [{ module: file, what, why: "PEFT has no quantised factors; the values are the same" }];
}

interface HeadCounts {
  readonly q: number | undefined;
  readonly k: number | undefined;
}

/** Null where the rows are in Hugging Face's order. */
function headCounts(gguf: Gguf | null, architecture: string, { heads, kvHeads }: BaseFacts): HeadCounts | null {
  if (!hasPairedRows(architecture)) return null;
  const stored = (key: string) => {
    const value = gguf?.metadata.get(`${architecture}.attention.${key}`);
    return typeof value === "number" ? value : undefined;
  };
  const q = heads ?? stored("head_count");
  return { q, k: kvHeads ?? (heads === undefined ? stored("head_count_kv") : undefined) ?? q };
}

/** Brings the rows of q and k into the order wanted; the others stay. */
function orderRows(
  stored: StoredTensor,
  at: { readonly path: string; readonly heads: HeadCounts | null; readonly file: string; readonly tensor: string },
  to: RowOrder,
): StoredTensor {
  const which = /\.self_attn\.([qk])_proj$/.exec(at.path)?.[1] as "q" | "k" | undefined;
  if (at.heads === null || which === undefined) return stored;
  const count = at.heads[which];
  const { tensor, file } = at;
  if (count === undefined) {
    const message = `Cannot order the rows of ${quote(tensor)} in ${quote(file)} without the number of heads`;
    const details = { code: "heads", file, tensor, field: "heads", expected: "the base's heads and kvHeads" };
    throw new MismatchError(`${message}: expected heads and kvHeads, or the base model, which tells them`, details);
  }
  const rows = stored.shape[0] ?? 0;
  if (Number.isSafeInteger(count) && count >= 1 && rows > 0 && rows % (2 * count) === 0) {
    return reorderHeads(stored, count, to);
  }
  const message = `Cannot order the ${rows} rows of ${quote(tensor)} in ${quote(file)} by ${count} heads`;
  const details = { code: "heads", file, tensor, found: rows, expected: count };
  throw new MismatchError(`${message}: expected an even number of rows for each`, details);
}

/**
 * Writes an adapter that llama.cpp loads, its factors in F32. One alpha serves all modules: the one that suits most, rounded to F32. What
 * it leaves of the others' scales goes into B: exact for powers of two, else rounded once to F32 and reported. What the
 * rounding took is in the metadata, so that {@linkcode readGgufAdapter} gives every bit again.
 *
 * @param adapter Plain LoRA of linear layers and of the embedding, or aLoRA.
 * @param sink Where the file goes.
 * @param options `architecture`, and for Llama's family `heads` and `kvHeads`: `readBaseFacts()` tells all. `tied`,
 * `file`, `allowLoss`.
 * @returns What was changed.
 * @throws {MismatchError} If the adapter is more than that and the loss is not allowed, or has a module that GGUF has no name for, or facts about
 * the base are missing.
 */
export async function writeGgufAdapter(
  adapter: Adapter,
  sink: Sink,
  options: WriteDialectOptions = {},
): Promise<readonly ReportLine[]> {
  const { file = GGUF_FILE } = options;
  const held = requireHeld(adapter, HOLDS, options);
  const architecture = requireArchitecture(options, file);
  const heads = headCounts(null, architecture, options);
  const alpha = sharedAlpha(held.modules);
  const why = "a GGUF adapter has one alpha, in 32 bits, and s = alpha / r";
  const folded = foldScales(held.modules, scaleOf(alpha), { file, why });
  const wide = widenFactors(ggufFactors(folded.modules, { architecture, heads, file }), file);
  const metadata = new Map<string, GgufField>([
    ["general.architecture", { type: "string", value: architecture }],
    ["general.type", { type: "string", value: "adapter" }],
    ["adapter.type", { type: "string", value: "lora" }],
    [ALPHA_KEY, { type: "f32", value: alpha }],
  ]);
  for (const [key, value] of await carryTexts(held.config, folded, CONFIG_KEY)) {
    metadata.set(key, { type: "string", value });
  }
  if (wide.dtypes !== null) metadata.set(DTYPES_KEY, { type: "string", value: wide.dtypes });
  for (const [key, value] of [["head_count", heads?.q], ["head_count_kv", heads?.k]] as const) {
    if (value !== undefined) metadata.set(`${architecture}.attention.${key}`, { type: "u32", value });
  }
  const { invocationTokens } = adapter;
  if (invocationTokens) metadata.set(ALORA_KEY, { type: "u32s", value: invocationTokens });
  await writeFiles(sink, new Map([[file, encodeGguf(metadata, wide.tensors)]]), options);
  return [...reportTrainingState(adapter), ...held.report, ...folded.report, ...wide.report];
}

function ggufFactors(
  modules: readonly LoraModule[],
  base: { readonly architecture: string; readonly heads: HeadCounts | null; readonly file: string },
): Map<string, StoredTensor> {
  const { architecture, heads, file } = base;
  const tensors = new Map<string, StoredTensor>();
  for (const { name, kind, loraA, loraB } of modules) {
    const tensor = ggufTensorName(name, architecture);
    if (tensor === undefined) throw refuseModule(name, architecture, file);
    tensors.set(`${tensor}.lora_a`, kind === "embedding" ? transposeStored(loraA) : loraA);
    tensors.set(`${tensor}.lora_b`, orderRows(loraB, { path: name, heads, file, tensor: name }, "pairs"));
  }
  return tensors;
}

function requireArchitecture({ architecture, modelType }: BaseFacts, file: string): string {
  if (architecture !== undefined && GGUF_ARCHITECTURES.includes(architecture)) return architecture;
  const name = architecture ?? modelType;
  const found = name === undefined ? "without an architecture" : `of architecture ${quote(name)}`;
  const teller = name === undefined ? ", as --base (readBaseFacts()) tells" : "";
  const expected = `one of ${GGUF_ARCHITECTURES.join(", ")}${teller}`;
  throw new MismatchError(`Cannot write ${quote(file)} ${found}: expected ${expected}`, {
    code: "architecture",
    file,
    field: "architecture",
    found: name,
    expected: GGUF_ARCHITECTURES,
  });
}

/** llama.cpp takes an alpha of 0 for the rank. */
function scaleOf(alpha: number): (module: LoraModule) => number {
  return ({ rank }) => alpha === 0 ? 1 : alpha / rank;
}

/** The alpha that suits most modules; 0 where more have a power of two as their scale. */
function sharedAlpha(modules: readonly LoraModule[]): number {
  const alpha = Math.fround(sharedNumber(modules.map(({ scaling, rank }) => alphaOf(scaling, rank))));
  return Number.isFinite(alpha) && countExact(modules, scaleOf(alpha)) >= countExact(modules, scaleOf(0)) ? alpha : 0;
}

function refuseModule(module: string, architecture: string, file: string): MismatchError {
  const message = `Cannot write module ${quote(module)} to ${quote(file)}`;
  return new MismatchError(`${message}: expected a linear layer of architecture ${quote(architecture)}`, {
    file,
    tensor: module,
    unexpected: [module],
  });
}
