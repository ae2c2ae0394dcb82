/**
 * What an adapter may ask for that this version does not compute. Every row is refused by name, as a config field and
 * as a tensor in the file: a skipped row would be a wrong number that looks right. A row goes when its kind is built.
 *
 * @module
 */

import { FormatError } from "../errors.ts";
import type { JsonValue } from "../formats/json.ts";
import { quote } from "../formats/quote.ts";

/** Kinds of tensors that {@linkcode parseTensorKey} and the shapes tell apart, besides the factors of linear layers. */
export type UnsupportedTensor =
  | "base bias"
  | "base weight"
  | "bias of B"
  | "convolution"
  | "embedding"
  | "expert"
  | "full tensor"
  | "KaSA"
  | "magnitude"
  | "multi-head attention"
  | "token rows";

interface Unsupported {
  /** Field of the config. */
  readonly field: string;
  /** Whether this value of the field asks for it; absent where only the tensors can tell. */
  readonly asks?: (value: JsonValue) => boolean;
  /** Tensors that belong to it. */
  readonly tensors?: readonly UnsupportedTensor[];
  /** What it is. */
  readonly what: string;
  /** What a caller can do. */
  readonly remedy: string;
}

const MERGE_IN_PEFT = "merge the adapter with PEFT's merge_and_unload() and use the merged model";
const CONVERT_IN_PEFT =
  "convert it to plain LoRA with PEFT's save_pretrained(path_initial_model_for_weight_conversion=...)";

// Python takes every value but these for true, so a value of the wrong type is refused too.
const isSet = (value: JsonValue): boolean => value !== null && value !== false;
const isFilled = (value: JsonValue): boolean => isSet(value) && !(Array.isArray(value) && value.length === 0);
const isInit = (pattern: RegExp) => (value: JsonValue): boolean => typeof value === "string" && pattern.test(value);

const UNSUPPORTED: readonly Unsupported[] = [
  {
    field: "use_dora",
    asks: isSet,
    tensors: ["magnitude"],
    what: "DoRA, which rescales every output feature by a trained magnitude",
    remedy: MERGE_IN_PEFT,
  },
  { field: "lora_bias", asks: isSet, tensors: ["bias of B"], what: "a trained bias on B", remedy: MERGE_IN_PEFT },
  {
    field: "bias",
    asks: (value) => value !== null && value !== "none",
    tensors: ["base bias"],
    what: "trained biases of the base",
    remedy: MERGE_IN_PEFT,
  },
  {
    field: "modules_to_save",
    asks: isFilled,
    tensors: ["full tensor"],
    what: "modules trained and stored in full",
    remedy: MERGE_IN_PEFT,
  },
  {
    field: "trainable_token_indices",
    asks: isFilled,
    tensors: ["token rows"],
    what: "trained rows of the embedding",
    remedy: MERGE_IN_PEFT,
  },
  {
    field: "target_parameters",
    asks: isFilled,
    tensors: ["expert"],
    what: "factors of fused expert weights",
    remedy: MERGE_IN_PEFT,
  },
  {
    field: "target_modules",
    tensors: ["embedding", "base weight"],
    what: "an adapted or resized embedding",
    remedy: MERGE_IN_PEFT,
  },
  { field: "target_modules", tensors: ["convolution"], what: "an adapted convolution", remedy: MERGE_IN_PEFT },
  {
    field: "target_modules",
    tensors: ["multi-head attention"],
    what: "an adapted nn.MultiheadAttention",
    remedy: MERGE_IN_PEFT,
  },
  {
    field: "ensure_weight_tying",
    asks: isSet,
    what: "one adapter for the tied embedding and head",
    remedy: "set it to false if the adapter targets neither of them",
  },
  {
    field: "alora_invocation_tokens",
    asks: isFilled,
    what: "aLoRA, which acts only after its invocation tokens",
    remedy: "serve it with PEFT: it cannot be merged",
  },
  {
    field: "layer_replication",
    asks: isFilled,
    what: "a base whose layers are repeated before adapting",
    remedy: "write the repeated base as a checkpoint of its own and retrain on it",
  },
  {
    field: "use_qalora",
    asks: isSet,
    what: "QALoRA, which pools the input of A by groups",
    remedy: "serve it with PEFT over its GPTQ base",
  },
  {
    field: "use_bdlora",
    asks: isSet,
    what: "block-diagonal factors, stored compact",
    remedy: MERGE_IN_PEFT,
  },
  {
    field: "kasa_config",
    asks: isSet,
    tensors: ["KaSA"],
    what: "KaSA, which truncates the base weight and scales the rank dimensions",
    remedy: MERGE_IN_PEFT,
  },
  {
    field: "arrow_config",
    asks: isSet,
    what: "Arrow, which routes every token over several adapters",
    remedy: "serve it with PEFT: it cannot be merged",
  },
  {
    field: "init_lora_weights",
    asks: isInit(/^(?:pissa|olora|corda|lora_ga)/i),
    what: "an initialisation that changed the base weights, so the adapter fits only that changed base",
    remedy: CONVERT_IN_PEFT,
  },
  {
    field: "init_lora_weights",
    asks: isInit(/^loftq$/i),
    what: "LoftQ, whose adapter fits only the quantised base it was made with",
    remedy: MERGE_IN_PEFT,
  },
];

/**
 * Refuses a config that asks for what this version does not compute.
 *
 * @param raw The keys of the config.
 * @param file Name of the file.
 * @throws {FormatError} If it does; the message names the field and the remedy.
 */
export function refuseUnsupportedFields(raw: ReadonlyMap<string, JsonValue>, file: string): void {
  for (const { field, asks, what, remedy } of UNSUPPORTED) {
    const found = raw.get(field);
    if (found === undefined || !asks?.(found)) continue;
    throw new FormatError(
      `Cannot load an adapter with ${quote(field)} set in ${quote(file)} (${what}): not supported yet, ${remedy}`,
      { code: "unsupported", file, field, found },
    );
  }
}

/**
 * Makes the error for a tensor that this version does not compute with.
 *
 * @param kind What the tensor is.
 * @param tensor Its name in the file.
 * @param file Name of the file.
 * @returns The error; it names the tensor, the config field it belongs to, and the remedy.
 */
export function unsupportedTensor(kind: UnsupportedTensor, tensor: string, file: string): FormatError {
  const { field, what, remedy } = UNSUPPORTED.find(({ tensors }) => tensors?.includes(kind))!;
  return new FormatError(
    `Cannot load tensor ${quote(tensor)} of ${quote(file)} (${quote(field)}, ${what}): not supported yet, ${remedy}`,
    { code: "unsupported", file, tensor, field, found: kind },
  );
}
