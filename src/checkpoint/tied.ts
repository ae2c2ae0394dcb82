/**
 * Input embedding and output head that are one table (`tie_word_embeddings`).
 *
 * @module
 */

import type { BaseConfig } from "./base_config.ts";
import type { BaseTensors } from "./naming.ts";

/** The table of a tied base, and the name that its head has. */
export interface TiedTable {
  /** Name of the table. */
  readonly table: string;
  /** Name of the head's weight if it had one of its own; null if the base's names do not tell. */
  readonly head: string | null;
}

const TABLE = /(?:^|\.)(?:embed_tokens|wte|word_embeddings|embed_in|tok_embeddings)\.weight$/;
/** The table inside the model that the head lies beside. */
const BESIDE_HEAD =
  /^(.*\.)?(?:model|transformer|gpt_neox)\.(?:language_model\.)?(?:embed_tokens|wte|word_embeddings|(embed_in))\.weight$/;
const HEAD = /(?:^|\.)(?:lm_head|embed_out)\.weight$/;
const HAS_HEAD = /LMHead|ForCausalLM|ForConditionalGeneration|ForMaskedLM|ForPreTraining/;

/**
 * Finds the table of a base whose embedding and head are one.
 *
 * @param tensors The base.
 * @param config What its `config.json` says; without a tie flag, a language model without a head is tied.
 * @returns The table; null if nothing is tied, or the model has no head.
 */
export function findTied(tensors: BaseTensors, config: BaseConfig): TiedTable | null {
  const isLanguageModel = config.architectures.some((name) => HAS_HEAD.test(name));
  if (config.architectures.length > 0 && !isLanguageModel) return null;
  const hasHead = [...tensors.keys()].some((name) => HEAD.test(name));
  if (!(config.tied ?? (isLanguageModel && !hasHead))) return null;
  const tables = [...tensors].filter(([name, { shape }]) => {
    return TABLE.test(name) && shape.length === 2 && (config.vocabSize === null || shape[0] === config.vocabSize);
  });
  const [first] = tables;
  if (tables.length !== 1 || !first) return null;
  const match = BESIDE_HEAD.exec(first[0]);
  return { table: first[0], head: match && `${match[1] ?? ""}${match[2] ? "embed_out" : "lm_head"}.weight` };
}
