/**
 * What the readers of dialects refuse, by tensor name: a tensor that is left out is a wrong number that looks right.
 *
 * @module
 */

import { FormatError } from "../../errors.ts";
import { lastName } from "../paths.ts";
import type { StoredTensor } from "../../formats/dtype.ts";
import { quote } from "../../formats/quote.ts";

/** Tensors by the ends of their names, in all dialects; the first row that matches tells. */
const KINDS: readonly (readonly [RegExp, string])[] = [
  [/(?:^|\.)hada_[wt][12](?:_[ab])?(?:\.weight)?$/, "a factor of LoHa (LyCORIS)"],
  [/(?:^|\.)lokr_(?:w[12](?:_[ab])?|t[12])(?:\.weight)?$/, "a factor of LoKr (LyCORIS)"],
  [/(?:^|\.)lora_mid(?:\.weight)?$/, "a Tucker core (LyCORIS)"],
  [/(?:^|\.)(?:oft_|boft_)\w+(?:\.weight)?$/, "a rotation of OFT"],
  [/(?:^|\.)diff(?:_b)?$/, "a full difference of a weight (LyCORIS)"],
  [/(?:^|\.)(?:dora_scale|lora_magnitude_vector(?:\.weight)?|m)$/, "a magnitude of DoRA"],
  [/(?:^|\.)lora_embedding_[AB]$/, "a factor of an embedding"],
  [/(?:^|\.)lora_(?:B|up)\.bias$/, "a trained bias on B"],
  [/(?:^|\.)lora_[ab]_(?:scales|biases)$/, "a scale of quantised factors"],
  [/(?:^|[._])norm\w*\.(?:weight|bias)$/, "a norm, stored in full"],
  [/\.bias$/, "a bias of the base, stored in full"],
  [/\.weight$/, "a weight of the base, stored in full"],
];

/** Last names of embeddings and convolutions, whose factors cannot be told from those of linear layers by their shapes. */
const EMBEDDING =
  /^(?:embed_tokens|embed_in|embeddings?|tok_embeddings|token_embd|(?:word|position|token_type)_embeddings|wte|wpe)$/;
const CONVOLUTION = /^conv(?:\d*d?|_(?:in|out|shortcut|\d+))$/;

/**
 * Makes the error for a tensor whose name is not a factor's.
 *
 * @param tensor Its name.
 * @param file Name of the file.
 * @param expected The names that the dialect has.
 * @returns The error, which says what the tensor is if that is known.
 */
export function refuseForeign(tensor: string, file: string, expected: string): FormatError {
  const what = KINDS.find(([pattern]) => !isFactorName(tensor) && pattern.test(tensor))?.[1];
  if (what !== undefined) return refuseKind(tensor, file, what);
  const message = `Cannot read tensor ${quote(tensor)} of ${quote(file)}: expected ${expected}`;
  return new FormatError(message, { code: "foreign-tensor", file, tensor, expected });
}

function isFactorName(tensor: string): boolean {
  return /\.lora_(?:A|B|a|b|down|up|linear_layer\.(?:down|up))(?:\.weight)?$/.test(tensor);
}

/**
 * Makes the error for a tensor of a known kind that is not built.
 *
 * @param tensor Its name.
 * @param file Name of the file.
 * @param what What it is: `"a magnitude of DoRA"`.
 * @returns The error.
 */
export function refuseKind(tensor: string, file: string, what: string): FormatError {
  const remedy = "expected factors of linear layers; merge the adapter where it was made, and use the merged model";
  return new FormatError(`Cannot read tensor ${quote(tensor)} of ${quote(file)}, ${what}: ${remedy}`, {
    code: "unsupported",
    file,
    tensor,
    found: what,
    expected: "factors of linear layers",
  });
}

/** Kinds of layers beside linear ones that a dialect's factors may belong to. */
export interface OtherKinds {
  /** Convolutions: factors of three to five dimensions; those of three by their names only, or by any. */
  readonly conv?: boolean | "any name";
  /** Embeddings, which have their names only to be told by. */
  readonly embedding?: boolean;
}

/**
 * Refuses a factor of a kind of layer that the dialect does not have, by its shape and the last name of its module.
 *
 * @param factor Path of the module, name of the tensor, the tensor, and the name of the file.
 * @param kinds What the dialect has beside linear layers.
 * @throws {FormatError} If it belongs to another.
 */
export function requireKind(
  { module, tensor, stored, file }: {
    readonly module: string;
    readonly tensor: string;
    readonly stored: StoredTensor;
    readonly file: string;
  },
  kinds: OtherKinds,
): void {
  const dimensions = stored.shape.length;
  const isConv = isConvolution(module);
  const isTold = dimensions === 4 || isConv || kinds.conv === "any name";
  if (dimensions > 2 && kinds.conv && isTold) return;
  if (dimensions > 3 || isConv) throw refuseKind(tensor, file, "a factor of a convolution");
  if (dimensions === 3) throw refuseKind(tensor, file, "a factor of fused experts or of a convolution");
  if (isEmbedding(module) && !kinds.embedding) throw refuseKind(tensor, file, "a factor of an embedding");
}

/**
 * Tells an embedding by its name.
 *
 * @param module Path of the module.
 * @returns True for the names that embeddings have.
 */
export function isEmbedding(module: string): boolean {
  return EMBEDDING.test(lastName(module));
}

/**
 * Tells the table of tokens, which may be the head too.
 *
 * @param module Path of the module.
 * @returns True for the names that it has.
 */
export function isTokenTable(module: string): boolean {
  return /^(?:embed_tokens|wte)$/.test(lastName(module));
}

/**
 * Tells a convolution by its name.
 *
 * @param module Path of the module.
 * @returns True for the names that convolutions have.
 */
export function isConvolution(module: string): boolean {
  return CONVOLUTION.test(lastName(module));
}
