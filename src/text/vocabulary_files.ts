/**
 * Tokenizers of folders without tokenizer.json: vocab.txt, or vocab.json and merges.txt, read as transformers 5 reads
 * them. What they mean besides, the class of the tokenizer tells; they become what tokenizer.json would be.
 *
 * @module
 */

import { LimitError, MismatchError } from "../errors.ts";
import type { JsonValue } from "../formats/json.ts";
import { readJson, readText } from "../formats/json_file.ts";
import { quote } from "../formats/quote.ts";
import type { Folder, ReadOptions } from "../formats/source.ts";
import { Fields } from "./fields.ts";
import { MAX_VOCAB } from "./tokenizer_json.ts";
import { KINDS, NAMES, type VocabularyKind } from "./vocabulary_kinds.ts";

/** Names of special tokens in the files of transformers, in the order in which it gives them ids. */
const SPECIAL_NAMES: readonly string[] = [
  "bos_token",
  "eos_token",
  "unk_token",
  "sep_token",
  "pad_token",
  "cls_token",
  "mask_token",
];

/** What lies beside a vocabulary; null where there is no such file. */
export interface TokenizerConfigs {
  /** tokenizer_config.json */
  readonly config: Fields | null;
  /** special_tokens_map.json */
  readonly map: Fields | null;
  /** config.json */
  readonly model: Fields | null;
}

/** A vocabulary as a tokenizer.json. */
export interface VocabularyJson {
  /** The file's object. */
  readonly json: JsonValue;
  /** Name of the vocabulary's file, for errors. */
  readonly file: string;
  /** The special tokens by name. */
  readonly specials: ReadonlyMap<string, string>;
}

interface Added {
  readonly content: string;
  readonly id: number | undefined;
  readonly fields: JsonValue;
}

const MAX_BYTES = 64 << 20;

/**
 * Finds how a folder's vocabulary is read.
 *
 * @param folder The folder.
 * @param configs What lies beside.
 * @param options A signal.
 * @returns The kind; null if there is no vocabulary, or one of a tokenizer that is not known.
 */
export async function vocabularyKind(
  folder: Folder,
  { config, model }: Pick<TokenizerConfigs, "config" | "model">,
  options: ReadOptions,
): Promise<string | null> {
  const name = config?.text("tokenizer_class")?.replace(/Fast$/, "") ?? model?.text("model_type") ?? "";
  const kind = NAMES.get(name);
  if (kind === undefined) return null;
  for (const file of KINDS[kind]!.files) if (!await folder.has(file, options)) return null;
  return kind;
}

/**
 * Reads a vocabulary and what belongs to it.
 *
 * @param folder The folder.
 * @param configs What lies beside.
 * @param options A signal.
 * @returns What tokenizer.json would be.
 * @throws {MismatchError} If there is neither tokenizer.json nor a vocabulary of a tokenizer that is known.
 */
export async function readVocabulary(
  folder: Folder,
  configs: TokenizerConfigs,
  options: ReadOptions,
): Promise<VocabularyJson> {
  const kind = KINDS[await vocabularyKind(folder, configs, options) ?? ""];
  if (!kind) throw refuseFolder(folder.name, configs);
  const limits = { ...options, maxBytes: MAX_BYTES };
  const [file = "", mergesFile] = kind.files;
  const source = folder.open(file);
  const vocab = file === "vocab.txt"
    ? linesOf(await readText(source, limits), source.name)
    : await readJson(source, limits);
  const merges = mergesFile === undefined ? [] : mergesOf(await readText(folder.open(mergesFile), limits));
  const added = await readAdded(folder, configs, kind, options);
  const specials = new Map([...Object.entries(kind.specials), ...specialsOf(configs)]);
  const tokens = placeTokens(added, new Fields(new Map([["vocab", vocab]]), source.name).object("vocab")!);
  const idOf = (token: string | undefined) => tokens.find((one) => one.get("content") === token)!.get("id") as number;
  const parts = kind.parts({ vocab, merges, config: configs.config, specials, idOf });
  return { json: new Map(Object.entries({ ...parts, added_tokens: tokens })), file: source.name, specials };
}

function refuseFolder(file: string, { config, model }: TokenizerConfigs): MismatchError {
  const found = config?.text("tokenizer_class") ?? model?.text("model_type") ?? null;
  const what = found === null ? "without tokenizer.json" : `of ${quote(found)} without tokenizer.json`;
  const message = `Cannot load a tokenizer ${what} from ${quote(file)}: expected that file, vocab.txt of BERT, or ` +
    "vocab.json and merges.txt of GPT-2, RoBERTa or Qwen2";
  return new MismatchError(message, { code: "missing-file", file, found, missing: ["tokenizer.json"] });
}

/** A token a line; of one that comes twice the last place counts. */
function linesOf(text: string, file: string): JsonValue {
  const lines = text.split("\n");
  if (lines.at(-1) === "") lines.pop();
  if (lines.length > MAX_VOCAB) {
    const message = `Cannot read ${quote(file)} of ${lines.length} tokens: expected at most ${MAX_VOCAB}`;
    throw new LimitError(message, { file, limit: MAX_VOCAB, value: lines.length });
  }
  return new Map(lines.map((line, id) => [trimEnd(line), id]));
}

/** Not by a pattern, which takes the square of the white space inside a line. */
function trimEnd(line: string): string {
  let end = line.length;
  while (end > 0 && /\p{White_Space}/u.test(line.charAt(end - 1))) end--;
  return line.slice(0, end);
}

function mergesOf(text: string): JsonValue {
  const lines = text.split("\n").map((line) => line.replace(/\r$/, ""));
  return lines.filter((line) => line !== "" && !line.startsWith("#version"));
}

/** The special tokens that files name. */
export function specialsOf({ config, map }: TokenizerConfigs): ReadonlyMap<string, string> {
  const found = SPECIAL_NAMES.flatMap((name) => {
    const token = specialToken(config, name) ?? specialToken(map, name);
    return token === null ? [] : [[name, token] as const];
  });
  return new Map(found);
}

/** A token that a file names: as text, or as an object with its content. */
function specialToken(config: Fields | null, name: string): string | null {
  const value: JsonValue = config?.get(name) ?? null;
  return value instanceof Map ? config!.object(name)!.text("content") : config?.text(name) ?? null;
}

/** Tokens that stand outside the vocabulary or are found before it is asked, in the order of their ids. */
async function readAdded(
  folder: Folder,
  { config, map }: TokenizerConfigs,
  { specials }: VocabularyKind,
  options: ReadOptions,
): Promise<readonly Added[]> {
  const added: Added[] = [];
  const decoder = config?.object("added_tokens_decoder") ?? null;
  for (const id of decoder?.keys() ?? []) {
    const fields = decoder!.object(id)!;
    added.push({ content: fields.text("content") ?? "", id: Number(id), fields: decoder!.get(id) });
  }
  if (await folder.has("added_tokens.json", options)) {
    const source = folder.open("added_tokens.json");
    const value = await readJson(source, { ...options, maxBytes: MAX_BYTES });
    const ids = new Fields(value, source.name);
    for (const content of ids.keys()) added.push({ content, id: ids.get(content) as number, fields: null });
  }
  const others = config?.get("additional_special_tokens") ?? map?.get("additional_special_tokens") ?? null;
  const values = SPECIAL_NAMES.map((name) => config?.get(name) ?? map?.get(name) ?? specials[name] ?? null);
  for (const value of [...values, ...Array.isArray(others) ? others : []]) {
    const content = value instanceof Map ? value.get("content") : value;
    if (typeof content !== "string") continue;
    added.push({ content, id: undefined, fields: new Map([...value instanceof Map ? value : [], ["special", true]]) });
  }
  return added;
}

/** Gives every token its place: one that is named, that of the vocabulary, or one after all others. */
function placeTokens(added: readonly Added[], vocab: Fields): Map<string, JsonValue>[] {
  const tokens = new Map<string, Map<string, JsonValue>>();
  const known = vocab.keys().map((token) => Number(vocab.get(token)));
  let next = known.reduce((most, id) => Math.max(most, id + 1), 0);
  for (const { id } of added) next = Math.max(next, (id ?? -1) + 1);
  for (const { content, id, fields } of added) {
    const earlier = tokens.get(content);
    const isSpecial = fields instanceof Map && fields.get("special") === true;
    if (earlier) {
      if (isSpecial && earlier.get("special") !== true) tokens.set(content, new Map([...earlier, ["special", true]]));
      continue;
    }
    const place = id ?? vocab.get(content) ?? next++;
    const own = fields instanceof Map ? fields : [];
    tokens.set(content, new Map<string, JsonValue>([...own, ["content", content], ["id", place]]));
  }
  return [...tokens.values()];
}
