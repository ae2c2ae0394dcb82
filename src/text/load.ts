import { checkReadable } from "../formats/check_place.ts";
import { readJson, readText } from "../formats/json_file.ts";
import type { Folder, ReadOptions } from "../formats/source.ts";
import { WordTokenizer } from "./word_tokenizer.ts";
import { Fields } from "./fields.ts";
import type { Tokenizer } from "./tokenizer.ts";
import { type JsonParts, MAX_VOCAB, tokenizerParts } from "./tokenizer_json.ts";
import { readVocabulary, specialsOf, type TokenizerConfigs, vocabularyKind } from "./vocabulary_files.ts";

const TOKENIZER_FILE = "tokenizer.json";
/** Largest tokenizer.json, in bytes; 262,144 tokens take 35 MB. */
const MAX_TOKENIZER = 64 << 20;
/** Largest other file. */
const MAX_CONFIG = 8 << 20;

/**
 * Loads the tokenizer of a model folder.
 *
 * Reads tokenizer.json, or vocab.txt of BERT, or vocab.json and merges.txt of GPT-2, RoBERTa or Qwen2, and what there is
 * of tokenizer_config.json, special_tokens_map.json, added_tokens.json, chat_template.jinja, generation_config.json and
 * config.json. Byte-pair encodings are supported, byte-level and SentencePiece-like, and BERT's pieces of words.
 *
 * @param folder The model folder.
 * @param options A signal.
 * @returns The tokenizer.
 * @throws {FormatError} If a file is malformed or asks for what is not supported; the error names the construct.
 * @throws {LimitError} If a file or the vocabulary is too large.
 * @throws {MismatchError} If there is no tokenizer.json, and no vocabulary of a tokenizer that is known without it.
 *
 * @example
 * ```ts
 * import { folder } from "@lowrank/lora/fs";
 * import { loadTokenizer } from "@lowrank/lora/text";
 * import assert from "node:assert/strict";
 *
 * const tokenizer = await loadTokenizer(folder("examples/models/tiny/base"));
 * assert.equal(tokenizer.decode(tokenizer.encode("The movie<|end|>")), "The movie<|end|>");
 * ```
 */
export async function loadTokenizer(folder: Folder, options: ReadOptions = {}): Promise<Tokenizer> {
  checkReadable("load a tokenizer", folder);
  const configs = await readConfigs(folder, options);
  const { parts, templateTokens } = await readParts(folder, configs, options);
  const { config, model } = configs;
  const generation = await optional(folder, "generation_config.json", options);
  const bos = tokenId(parts, templateTokens.bos_token);
  const eos = [...tokenId(parts, templateTokens.eos_token), ...idsOf(generation, "eos_token_id")];
  return new WordTokenizer({
    ...parts,
    templateTokens,
    bosId: [...bos, ...idsOf(generation, "bos_token_id"), ...idsOf(model, "bos_token_id")][0] ?? null,
    eosIds: eos.length > 0 ? eos : idsOf(model, "eos_token_id"),
    chatTemplate: await templateText(folder, config, options),
  });
}

/**
 * Tells whether a folder has a tokenizer that {@linkcode loadTokenizer} knows.
 *
 * @param folder The model folder.
 * @param options A signal.
 * @returns Whether it has.
 */
export async function hasTokenizer(folder: Folder, options: ReadOptions = {}): Promise<boolean> {
  if (await folder.has(TOKENIZER_FILE, options)) return true;
  return await vocabularyKind(folder, await readConfigs(folder, options), options) !== null;
}

async function readConfigs(folder: Folder, options: ReadOptions): Promise<TokenizerConfigs> {
  return {
    config: await optional(folder, "tokenizer_config.json", options),
    map: await optional(folder, "special_tokens_map.json", options),
    model: await optional(folder, "config.json", options),
  };
}

async function optional(folder: Folder, file: string, options: ReadOptions): Promise<Fields | null> {
  if (!(await folder.has(file, options))) return null;
  // Real files hold numbers beyond 2^53 ("model_max_length"), which are of no interest here.
  const limits = { ...options, maxBytes: MAX_CONFIG, keepNumberText: true };
  return new Fields(await readJson(folder.open(file), limits), file);
}

async function readParts(
  folder: Folder,
  configs: TokenizerConfigs,
  options: ReadOptions,
): Promise<{ readonly parts: JsonParts; readonly templateTokens: Readonly<Record<string, string>> }> {
  if (await folder.has(TOKENIZER_FILE, options)) {
    const source = folder.open(TOKENIZER_FILE);
    const parts = tokenizerParts(await readJson(source, { ...options, maxBytes: MAX_TOKENIZER }), source.name);
    return { parts, templateTokens: Object.fromEntries(specialsOf(configs)) };
  }
  const { json, file, specials } = await readVocabulary(folder, configs, options);
  return { parts: tokenizerParts(json, file), templateTokens: Object.fromEntries(specials) };
}

async function templateText(folder: Folder, config: Fields | null, options: ReadOptions): Promise<string | null> {
  if (await folder.has("chat_template.jinja", options)) {
    return await readText(folder.open("chat_template.jinja"), { ...options, maxBytes: MAX_CONFIG });
  }
  if (!Array.isArray(config?.get("chat_template"))) return config?.text("chat_template") ?? null;
  const named = config!.objects("chat_template");
  return named.find((template) => template.get("name") === "default")?.text("template") ?? null;
}

function tokenId(parts: JsonParts, token: string | undefined): number[] {
  if (token === undefined) return [];
  const id = parts.added.find((added) => added.content === token)?.id ?? parts.vocab.get(token);
  return id === undefined ? [] : [id];
}

/** One id, a list of ids, or none. */
function idsOf(config: Fields | null, key: string): number[] {
  const value = config?.get(key) ?? null;
  if (value === null) return [];
  return (Array.isArray(value) ? value : [value]).map((id) => {
    if (typeof id === "number" && Number.isInteger(id) && id >= 0 && id < MAX_VOCAB) return id;
    throw config!.refusal(key, id, "a token id or a list of them");
  });
}
