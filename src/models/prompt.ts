/**
 * Prompts: what a caller writes as token ids, and what a text after them is made with.
 *
 * @module
 */

import type { Tokenizer } from "../text/mod.ts";
import type { KvCacheOptions } from "./kv_cache.ts";
import type { Sampler } from "./sampler.ts";

/** A prompt that a text can be generated after. */
export interface Prompt {
  /** Its ids. */
  readonly ids: readonly number[];
  /** Most new tokens after it. */
  readonly maxNewTokens: number;
  /** Chooses them; all prompts of a batch have the same options. */
  readonly sampler: Sampler;
  /** Turns new ids into pieces of text; null where the model has no tokenizer. */
  readonly stream: { push(id: number): string; end(): string } | null;
  /** Size of its cache. */
  readonly cache: KvCacheOptions;
}

/** Ids of a prompt: text, tokenized with special tokens recognised, or in the chat template; or ids as they are. */
export function encodePrompt(
  prompt: string | readonly number[],
  tokenizer: Tokenizer | null,
  chat: boolean,
): readonly number[] {
  if (typeof prompt !== "string" && !Array.isArray(prompt)) {
    throw new TypeError(`Cannot generate from ${typeof prompt}: the prompt is text or an array of token ids`);
  }
  if (typeof prompt !== "string") {
    if (prompt.some((id) => typeof id === "string")) {
      throw new TypeError("Cannot generate from several texts: expected one, or generateBatch()");
    }
    if (chat) throw new TypeError("Cannot generate a chat answer from token ids: chat needs the prompt as text");
    return [...prompt];
  }
  if (!tokenizer) {
    throw new TypeError("Cannot generate from text: this model has no tokenizer, pass token ids");
  }
  if (chat) return tokenizer.chat([{ role: "user", content: prompt }]);
  const { addsBos, bosId } = tokenizer;
  const ids = tokenizer.encode(prompt);
  // A text that begins with it already gets no second one, and an empty one stays empty.
  return addsBos && bosId !== null && ids.length > 0 && ids[0] !== bosId ? [bosId, ...ids] : ids;
}
