import { FormatError, LimitError } from "../errors.ts";
import type { GgufValue } from "../formats/gguf.ts";
import { quote } from "../formats/quote.ts";
import type { AddedToken } from "./added_tokens.ts";
import { type TokenizerParts, WordTokenizer } from "./word_tokenizer.ts";
import type { DecoderPlan } from "./decoder.ts";
import { GGUF_WORDS } from "./gguf_words.ts";
import { bytesStep, normalizerOf, preTokenizerOf, splitAt } from "./pre_tokenizer.ts";
import { scoredMerges } from "./scored_merges.ts";
import type { Tokenizer } from "./tokenizer.ts";
import { isMerge, MAX_VOCAB } from "./tokenizer_json.ts";

type Metadata = ReadonlyMap<string, GgufValue>;

/** llama.cpp's token types. */
const TYPE = { unknown: 2, control: 3, userDefined: 4 } as const;

/**
 * Builds the tokenizer that a GGUF file holds in its metadata: `tokenizer.ggml.model` "gpt2" (byte-level, with the
 * words of `tokenizer.ggml.pre`) or "llama" (SentencePiece with scores). Its ids are those of the model's own
 * tokenizer.json.
 *
 * @param metadata The metadata of the file: `ggufFolder(file).gguf.metadata` of `./models`.
 * @returns The tokenizer.
 * @throws {FormatError} If the metadata has no tokenizer, one of another kind, or one that contradicts itself.
 * @throws {LimitError} If the vocabulary is too large.
 *
 * @example
 * ```ts
 * import { type GgufValue, ggufTokenizer } from "@lowrank/lora/text";
 * import assert from "node:assert/strict";
 *
 * const metadata = new Map<string, GgufValue>([
 *   ["tokenizer.ggml.model", "gpt2"],
 *   ["tokenizer.ggml.pre", "gpt-2"],
 *   ["tokenizer.ggml.tokens", ["a", "b", "ab"]],
 *   ["tokenizer.ggml.merges", ["a b"]],
 * ]);
 * assert.deepEqual(ggufTokenizer(metadata).encode("aba"), [2, 0]);
 * ```
 */
export function ggufTokenizer(metadata: ReadonlyMap<string, GgufValue>): Tokenizer {
  const model = metadata.get("tokenizer.ggml.model");
  if (model !== "gpt2" && model !== "llama") throw refusal("tokenizer.ggml.model", model, '"gpt2" or "llama"');
  const tokens = strings(metadata, "tokenizer.ggml.tokens");
  if (tokens.length === 0 || tokens.length > MAX_VOCAB) {
    throw new LimitError(`Cannot read a vocabulary of ${tokens.length} tokens: expected 1 to ${MAX_VOCAB}`, {
      field: "tokenizer.ggml.tokens",
      limit: MAX_VOCAB,
      value: tokens.length,
    });
  }
  const vocab = new Map(tokens.map((token, id) => [token, id]));
  if (vocab.size < tokens.length) {
    const twice = tokens.find((token, id) => vocab.get(token) !== id);
    throw refusal("tokenizer.ggml.tokens", twice, "every token once");
  }
  const added = addedTokens(metadata, tokens);
  const parts = model === "gpt2" ? byteLevel(metadata, vocab) : sentencePiece(metadata, vocab, added);
  return new WordTokenizer({
    ...parts,
    ...specials(metadata, tokens, parts.addBos),
    vocab,
    added,
    file: "GGUF metadata",
  });
}

type Encoding =
  & Omit<TokenizerParts, "vocab" | "added" | "file" | keyof ReturnType<typeof specials>>
  & { readonly addBos: boolean };

function byteLevel(metadata: Metadata, vocab: ReadonlyMap<string, number>): Encoding {
  const pre = metadata.get("tokenizer.ggml.pre") ?? "default";
  const found = GGUF_WORDS.get(String(pre));
  if (found === undefined) throw refusal("tokenizer.ggml.pre", pre, [...GGUF_WORDS.keys()].join(", "));
  const merges = strings(metadata, "tokenizer.ggml.merges").map((merge, index): [string, string] => {
    const at = merge.indexOf(" ", 1);
    const [left, right] = [merge.slice(0, at), merge.slice(at + 1)];
    if (at > 0 && isMerge(vocab, left, right)) return [left, right];
    throw refusal(`tokenizer.ggml.merges[${index}]`, merge, "two tokens of the vocabulary that make a third");
  });
  return {
    merges,
    unkToken: null,
    fuseUnk: false,
    byteFallback: false,
    ignoreMerges: found.ignoreMerges ?? false,
    wordPiece: null,
    normalizer: normalizerOf(found.nfc ? [{ type: "NFC" }] : []),
    preTokenizer: preTokenizerOf([...found.words.map((words) => splitAt(words)), bytesStep()]),
    decoder: { kind: "bytes" },
    addBos: found.addBos ?? false,
  };
}

function sentencePiece(
  metadata: Metadata,
  vocab: ReadonlyMap<string, number>,
  added: readonly AddedToken[],
): Encoding {
  const tokens = [...vocab.keys()];
  if (metadata.get("tokenizer.ggml.remove_extra_whitespaces") === true) {
    throw refusal("tokenizer.ggml.remove_extra_whitespaces", true, "false");
  }
  const scores = metadata.get("tokenizer.ggml.scores");
  if (!Array.isArray(scores) || scores.length !== tokens.length || !scores.every(Number.isFinite)) {
    throw refusal("tokenizer.ggml.scores", scores, `${tokens.length} numbers`);
  }
  const prefix = metadata.get("tokenizer.ggml.add_space_prefix") !== false;
  const unknown = id(metadata, "unknown", tokens) ?? 0;
  const special = new Set(added.filter((token) => token.special).map((token) => token.content));
  const replace = { type: "Replace", pattern: { String: " " }, content: "▁" } as const;
  const decoder: DecoderPlan = {
    kind: "pieces",
    replace: [["▁", " "]],
    byteFallback: true,
    strip: prefix ? { char: " ", count: 1 } : null,
    dropInFirst: null,
  };
  return {
    merges: scoredMerges(vocab, scores as number[], special),
    unkToken: tokens[unknown]!,
    fuseUnk: true,
    byteFallback: true,
    ignoreMerges: false,
    wordPiece: null,
    normalizer: normalizerOf(prefix ? [{ type: "Prepend", prepend: "▁" }, replace] : [replace]),
    preTokenizer: null,
    decoder,
    addBos: true,
  };
}

function addedTokens(metadata: Metadata, tokens: readonly string[]): AddedToken[] {
  const types = tokenTypes(metadata, tokens);
  const added: AddedToken[] = [];
  tokens.forEach((content, id) => {
    const special = types[id] === TYPE.control || types[id] === TYPE.unknown;
    if (content === "" || (!special && types[id] !== TYPE.userDefined)) return;
    added.push({ id, content, special, singleWord: false, lstrip: false, rstrip: false, normalized: false });
  });
  return added;
}

function tokenTypes(metadata: Metadata, tokens: readonly string[]): readonly GgufValue[] {
  const types = metadata.get("tokenizer.ggml.token_type") ?? [];
  if (Array.isArray(types) && (types.length === 0 || types.length === tokens.length)) return types;
  throw refusal("tokenizer.ggml.token_type", types, `${tokens.length} numbers`);
}

function specials(metadata: Metadata, tokens: readonly string[], addBosDefault: boolean) {
  const flag = (name: string, absent: boolean) => metadata.get(`tokenizer.ggml.${name}`) ?? absent;
  const [bosId, eosId] = [id(metadata, "bos", tokens), id(metadata, "eos", tokens)];
  const eosIds = [eosId, id(metadata, "eot", tokens), id(metadata, "eom", tokens)].filter((id) => id !== null);
  const template = metadata.get("tokenizer.chat_template") ?? null;
  if (template !== null && typeof template !== "string") throw refusal("tokenizer.chat_template", template, "text");
  const templateTokens: Record<string, string> = {};
  for (const [name, key] of [["bos", "bos"], ["eos", "eos"], ["unknown", "unk"], ["padding", "pad"]] as const) {
    const token = id(metadata, name, tokens);
    if (token !== null) templateTokens[`${key}_token`] = tokens[token]!;
  }
  return {
    bosId,
    eosIds,
    prefix: bosId !== null && flag("add_bos_token", addBosDefault) === true ? [bosId] : [],
    suffix: eosId !== null && flag("add_eos_token", false) === true ? [eosId] : [],
    chatTemplate: template,
    templateTokens,
  };
}

function id(metadata: Metadata, name: string, tokens: readonly string[]): number | null {
  const field = `tokenizer.ggml.${name}_token_id`;
  const value = metadata.get(field);
  if (value === undefined) return null;
  if (typeof value === "number" && Number.isInteger(value) && value >= 0 && value < tokens.length) return value;
  throw refusal(field, value, `an id below ${tokens.length}`);
}

function strings(metadata: Metadata, key: string): readonly string[] {
  const value = metadata.get(key);
  if (Array.isArray(value) && value.every((item) => typeof item === "string")) return value;
  throw refusal(key, value, "a list of strings");
}

function refusal(field: string, found: GgufValue | undefined, expected: string): FormatError {
  const shown = found === undefined ? "nothing" : Array.isArray(found) ? "a list" : quote(String(found));
  return new FormatError(`Cannot read the GGUF tokenizer with ${shown} in field "${field}": expected ${expected}`, {
    field,
    found,
    expected,
  });
}
