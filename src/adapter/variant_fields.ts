/**
 * The fields of a config that make an adapter more than factors of linear layers.
 *
 * @module
 */

import { FormatError, MismatchError } from "../errors.ts";
import type { JsonValue } from "../formats/json.ts";
import { quote } from "../formats/quote.ts";
import { ConfigFields } from "./config_fields.ts";

/**
 * How training changed the base before it began: W became W − s B₀ A₀ with the first factors (`pissa`, `olora`, `corda`,
 * `lora_ga`), or lost its r smallest singular values (`kasa`), or was quantised (`loftq`).
 */
export type BaseChange = "pissa" | "pissa_niter" | "olora" | "corda" | "lora_ga" | "loftq" | "kasa";

/** Changes that the weights of the base decide alone. */
export type RepeatableChange = "pissa" | "olora" | "kasa";

/** Tells whether a change can be computed again from the base. */
export function isRepeatable(change: BaseChange | null): change is RepeatableChange {
  return change === "pissa" || change === "olora" || change === "kasa";
}

/** The field of the config that tells of a change. */
export function baseFieldOf(change: BaseChange): "kasa_config" | "init_lora_weights" {
  return change === "kasa" ? "kasa_config" : "init_lora_weights";
}

const BASE_REMEDY = "expected it with the adapter as it was before training, by the option initial or " +
  '--initial INITIAL, by which "lora convert ADAPTER --to peft --out OUT --initial INITIAL" makes plain LoRA of it; or ' +
  "the changed base, told by the option residualBase or --residual-base";

/**
 * Refuses an adapter that is not over the base as it was published.
 *
 * @param adapter The adapter.
 * @param action What is to be done with it, for the message: `"merge"`.
 * @throws {MismatchError} If its training changed the base.
 */
export function requirePublishedBase(
  { name, baseChange }: { readonly name: string; readonly baseChange: BaseChange | null },
  action: string,
): void {
  if (baseChange === null) return;
  const field = baseFieldOf(baseChange);
  const message = `Cannot ${action} ${quote(name)} with ${field} ${quote(baseChange)}, whose training changed the base`;
  throw new MismatchError(`${message} first: ${BASE_REMEDY}`, {
    code: "unsupported",
    file: name,
    field,
    found: baseChange,
  });
}

/** Which factors are block-diagonal and stored as their blocks. */
export interface BlockDiagonal {
  /** Number of blocks. */
  readonly blocks: number;
  /** A is, where the last name of the path contains one of these. */
  readonly a: readonly string[];
  /** B is, where the last name of the path contains one of these. */
  readonly b: readonly string[];
}

/** What a config asks for beside factors of linear layers. */
export interface LoraVariants {
  /** Whether every module has a magnitude (DoRA). */
  readonly useDora: boolean;
  /** Whether B has a bias. */
  readonly loraBias: boolean;
  /** Which biases of the base were trained: none, all, or those of the adapted modules. */
  readonly bias: "none" | "all" | "lora_only";
  /** Ends of the names of modules that were trained in full. */
  readonly modulesToSave: readonly string[] | null;
  /** Trained rows of the input embedding, or of embeddings by tail of their path. */
  readonly trainableTokens: ReadonlyMap<string | null, readonly number[]> | null;
  /** Whether one ΔW serves the tied input embedding and output head. */
  readonly ensureWeightTying: boolean;
  /** Names or tails of names of adapted parameters: fused experts. */
  readonly targetParameters: readonly string[] | null;
  /** Tokens that switch the adapter on (aLoRA). */
  readonly invocationTokens: readonly number[] | null;
  /** Ranges [start, end) of the base's layers, which one after the other are the layers of the adapted model. */
  readonly layerReplication: readonly (readonly [number, number])[] | null;
  /** How the factors began: a name in lower case, true for PEFT's default, false for random ones. */
  readonly init: string | boolean;
  /** How training changed the base before it began. */
  readonly baseChange: BaseChange | null;
  /** Factors that are stored as blocks. */
  readonly blockDiagonal: BlockDiagonal | null;
  /** Over how many neighbouring inputs A's input is pooled (QALoRA). */
  readonly poolSize: number | null;
}

const BIASES: readonly LoraVariants["bias"][] = ["none", "all", "lora_only"];
const INITS = /^(?:gaussian|eva|orthogonal|mica|pissa|pissa_niter_[0-9]{1,3}|olora|corda|lora_ga|loftq)$/;
const BASE_CHANGE = /^(?:pissa_niter|pissa|olora|corda|lora_ga|loftq)/;
/** Fields of which PEFT allows one, beside two that act in training only. */
const EXCLUSIVE: readonly string[] = [
  "use_dora",
  "arrow_config",
  "use_bdlora",
  "alora_invocation_tokens",
  "kasa_config",
];

/**
 * Reads these fields.
 *
 * @param raw The keys of the config.
 * @param fields Typed access to them.
 * @returns Their values.
 * @throws {FormatError} If one has the wrong type, or two exclude each other.
 */
export function readVariants(raw: ReadonlyMap<string, JsonValue>, fields: ConfigFields): LoraVariants {
  const bias = fields.string("bias") ?? "none";
  if (!BIASES.some((known) => known === bias)) throw fields.refuse("bias", '"none", "all" or "lora_only"');
  checkExclusive(raw, fields);
  const init = readInit(raw, fields);
  const kasa = isSet(raw.get("kasa_config"));
  return {
    useDora: fields.boolean("use_dora"),
    loraBias: fields.boolean("lora_bias"),
    bias: bias as LoraVariants["bias"],
    modulesToSave: fields.list("modules_to_save"),
    trainableTokens: readTokens(raw, fields),
    ensureWeightTying: fields.boolean("ensure_weight_tying"),
    targetParameters: fields.list("target_parameters"),
    invocationTokens: isSet(raw.get("alora_invocation_tokens")) ? fields.indices("alora_invocation_tokens") : null,
    layerReplication: readRanges(raw, fields),
    init,
    baseChange: kasa ? "kasa" : (BASE_CHANGE.exec(String(init))?.[0] ?? null) as BaseChange | null,
    blockDiagonal: readBlocks(raw, fields),
    poolSize: fields.boolean("use_qalora")
      ? positive(fields, "qalora_group_size", raw.get("qalora_group_size") ?? 16)
      : null,
  };
}

/**
 * Refuses Arrow, which routes every token over several adapters.
 *
 * @param raw The keys of the config.
 * @param file Name of the file.
 * @throws {FormatError} If the config asks for it.
 */
export function refuseArrow(raw: ReadonlyMap<string, JsonValue>, file: string): void {
  const field = "arrow_config";
  const found = raw.get(field) ?? null;
  // Python takes every value but these for true, so a value of the wrong type is refused too.
  if (found === null || found === false) return;
  const what = "Arrow, which routes every token over several adapters";
  const message = `Cannot load an adapter with ${quote(field)} set in ${quote(file)} (${what})`;
  throw new FormatError(`${message}: not supported yet, serve it with PEFT: it cannot be merged`, {
    code: "unsupported",
    file,
    field,
    found,
  });
}

/** Whether Python takes a value for true. */
function isSet(value: JsonValue | undefined): boolean {
  return (value ?? false) !== false && !(Array.isArray(value) && value.length === 0);
}

function checkExclusive(raw: ReadonlyMap<string, JsonValue>, fields: ConfigFields): void {
  const set = EXCLUSIVE.filter((field) => isSet(raw.get(field)));
  const first = set[0];
  if (set.length > 1) throw fields.refuse(set[1]!, `null or false, where "${first}" is set`);
  if (first === "use_dora" && isSet(raw.get("lora_bias"))) {
    throw fields.refuse("lora_bias", 'false, where "use_dora" is set');
  }
}

function readInit(raw: ReadonlyMap<string, JsonValue>, fields: ConfigFields): string | boolean {
  const value = raw.get("init_lora_weights") ?? true;
  if (typeof value === "boolean") return value;
  const name = typeof value === "string" ? value.toLowerCase() : "";
  if (INITS.test(name)) return name;
  throw fields.refuse(
    "init_lora_weights",
    'true, false, "gaussian", "eva", "orthogonal", "mica", "pissa", "pissa_niter_N", "olora", "corda", "lora_ga" or "loftq"',
  );
}

function readTokens(raw: ReadonlyMap<string, JsonValue>, fields: ConfigFields): LoraVariants["trainableTokens"] {
  const field = "trainable_token_indices";
  const value = raw.get(field) ?? null;
  if (!isSet(value)) return null;
  // No cap on entries: a caller's cap on the file bounds them, and thousands of new tokens are common.
  if (!(value instanceof Map)) return new Map([[null, fields.readIndices(field, value)]]);
  fields.checkEntries(field, value.size);
  return new Map([...value].map(([name, list]) => [name, fields.readIndices(field, list)]));
}

function readRanges(raw: ReadonlyMap<string, JsonValue>, fields: ConfigFields): LoraVariants["layerReplication"] {
  const field = "layer_replication";
  const value = raw.get(field) ?? null;
  if (!isSet(value)) return null;
  const refuse = (): FormatError => fields.refuse(field, "a list of pairs [start, end] with start < end");
  if (!Array.isArray(value)) throw refuse();
  fields.checkEntries(field, value.length);
  return value.map((item) => {
    const [start, end, more] = fields.readIndices(field, item);
    if (start === undefined || end === undefined || more !== undefined || start >= end) throw refuse();
    return [start, end];
  });
}

function readBlocks(raw: ReadonlyMap<string, JsonValue>, fields: ConfigFields): BlockDiagonal | null {
  const field = "use_bdlora";
  const value = raw.get(field) ?? null;
  if (!isSet(value)) return null;
  if (!(value instanceof Map)) throw fields.refuse(field, "an object with nblocks and the lists of modules");
  const inner = new ConfigFields(value, fields.file, fields.maxEntries);
  return {
    blocks: positive(inner, "nblocks", value.get("nblocks") ?? 1),
    a: inner.list("target_modules_bd_a") ?? [],
    b: inner.list("target_modules_bd_b") ?? [],
  };
}

function positive(fields: ConfigFields, field: string, value: JsonValue): number {
  if (typeof value === "number" && Number.isSafeInteger(value) && value >= 1) return value;
  throw fields.refuse(field, "a whole number from 1", value);
}
