import { readJson, readText } from "../formats/json_file.ts";
import type { JsonValue } from "../formats/json.ts";
import type { Folder, ReadOptions } from "../formats/source.ts";
import { WordTokenizer } from "./word_tokenizer.ts";
import { Fields } from "./fields.ts";
import type { Tokenizer } from "./tokenizer.ts";
import { type JsonParts, MAX_VOCAB, tokenizerParts } from "./tokenizer_json.ts";

/** Largest tokenizer.json, in bytes; 262,144 tokens take 35 MB. */
const MAX_TOKENIZER = 64 << 20;
/** Largest other file. */
const MAX_CONFIG = 8 << 20;

const TEMPLATE_TOKENS = ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"];

/**
 * Loads the tokenizer of a model folder.
 *
 * Reads tokenizer.json, and what there is of tokenizer_config.json, special_tokens_map.json, chat_template.jinja,
 * generation_config.json and config.json. Byte-pair encodings are supported, byte-level and SentencePiece-like, and BERT's pieces of words.
 *
 * @param folder The model folder.
 * @param options A signal.
 * @returns The tokenizer.
 * @throws {FormatError} If a file is malformed or asks for what is not supported; the error names the construct.
 * @throws {LimitError} If a file or the vocabulary is too large.
 * @throws {MismatchError} If there is no tokenizer.json.
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
  const optional = async (file: string): Promise<Fields | null> => {
    if (!(await folder.has(file, options))) return null;
    // Real files hold numbers beyond 2^53 ("model_max_length"), which are of no interest here.
    const limits = { ...options, maxBytes: MAX_CONFIG, keepNumberText: true };
    return new Fields(await readJson(folder.open(file), limits), file);
  };
  const source = folder.open("tokenizer.json");
  const parts = tokenizerParts(await readJson(source, { ...options, maxBytes: MAX_TOKENIZER }), source.name);
  const config = await optional("tokenizer_config.json");
  const map = await optional("special_tokens_map.json");
  const generation = await optional("generation_config.json");
  const model = await optional("config.json");
  const templateTokens: Record<string, string> = {};
  for (const name of TEMPLATE_TOKENS) {
    const token = namedToken(config, name) ?? namedToken(map, name);
    if (token !== null) templateTokens[name] = token;
  }
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

async function templateText(folder: Folder, config: Fields | null, options: ReadOptions): Promise<string | null> {
  if (await folder.has("chat_template.jinja", options)) {
    return await readText(folder.open("chat_template.jinja"), { ...options, maxBytes: MAX_CONFIG });
  }
  if (!Array.isArray(config?.get("chat_template"))) return config?.text("chat_template") ?? null;
  const named = config!.objects("chat_template");
  return named.find((template) => template.get("name") === "default")?.text("template") ?? null;
}

/** A token that a config names: as text, or as an object with its content. */
function namedToken(config: Fields | null, name: string): string | null {
  const value: JsonValue = config?.get(name) ?? null;
  return value instanceof Map ? config!.object(name)!.text("content") : config?.text(name) ?? null;
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
