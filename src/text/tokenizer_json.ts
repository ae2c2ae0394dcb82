import { LimitError } from "../errors.ts";
import type { JsonValue } from "../formats/json.ts";
import { quote } from "../formats/quote.ts";
import type { AddedToken } from "./added_tokens.ts";
import type { TokenizerParts } from "./word_tokenizer.ts";
import type { DecoderPlan } from "./decoder.ts";
import { Fields } from "./fields.ts";
import { buildNormalizer, buildPreTokenizer } from "./pre_tokenizer.ts";
import { wordPieceOptions } from "./word_piece.ts";

/** Most tokens, and the bound of ids. */
export const MAX_VOCAB: number = 1 << 20;

/** Most ids that are put before or after a text, and most letters that a decoder writes in place of others. */
const MAX_AROUND = 1024;
const MAX_WRITTEN = 16;

/** What a tokenizer.json tells; the other files tell the rest. */
export type JsonParts = Omit<TokenizerParts, "bosId" | "eosIds" | "chatTemplate" | "templateTokens">;

/**
 * Reads a tokenizer.json.
 *
 * @param value The parsed file.
 * @param file Its name, for errors.
 * @returns The checked parts.
 * @throws {FormatError} If something in it is not supported or contradicts itself; the error names it.
 */
export function tokenizerParts(value: JsonValue, file: string): JsonParts {
  const json = new Fields(value, file);
  const model = json.object("model");
  if (model === null) throw json.refusal("model", null, "an object");
  checkModel(model);
  const vocab = readVocab(model);
  const added = json.objects("added_tokens").map(addedToken);
  const unkToken = model.text("unk_token");
  if (unkToken !== null && !vocab.has(unkToken)) {
    throw model.refusal("unk_token", unkToken, "a token of the vocabulary");
  }
  return {
    vocab,
    merges: readMerges(model, vocab),
    wordPiece: model.get("type") === "WordPiece" ? wordPieceOptions(model) : null,
    unkToken,
    fuseUnk: model.flag("fuse_unk", false),
    byteFallback: model.flag("byte_fallback", false),
    ignoreMerges: model.flag("ignore_merges", false),
    normalizer: buildNormalizer(json.object("normalizer")),
    preTokenizer: buildPreTokenizer(json.object("pre_tokenizer")),
    decoder: decoderPlan(json),
    added,
    ...around(json.object("post_processor")),
    file,
  };
}

function checkModel(model: Fields): void {
  const type = model.text("type") ?? "BPE";
  if (type === "WordPiece") return;
  if (type !== "BPE") throw model.refusal("type", type, "BPE or WordPiece");
  for (const key of ["continuing_subword_prefix", "end_of_word_suffix"]) {
    const affix = model.text(key) ?? "";
    if (affix !== "") throw model.refusal(key, affix, "none");
  }
  const dropout = model.get("dropout");
  if (dropout !== null && dropout !== 0) throw model.refusal("dropout", dropout, "none");
}

function readVocab(model: Fields): Map<string, number> {
  const vocab = model.get("vocab");
  if (!(vocab instanceof Map)) throw model.refusal("vocab", vocab, "an object");
  if (vocab.size > MAX_VOCAB) {
    throw new LimitError(`Cannot read a vocabulary of ${vocab.size} tokens: expected at most ${MAX_VOCAB}`, {
      file: model.file,
      field: "model.vocab",
      limit: MAX_VOCAB,
      value: vocab.size,
    });
  }
  for (const [token, id] of vocab) {
    if (!isId(id)) throw model.refusal("vocab", id, `an id below ${MAX_VOCAB} for token ${quote(token)}`);
  }
  return vocab as Map<string, number>;
}

function readMerges(model: Fields, vocab: ReadonlyMap<string, number>): [string, string][] {
  return model.list("merges").map((merge, index) => {
    const pair = typeof merge === "string" ? merge.split(" ") : merge;
    if (Array.isArray(pair) && pair.length === 2) {
      const [left, right] = pair;
      if (typeof left === "string" && typeof right === "string" && isMerge(vocab, left, right)) return [left, right];
    }
    throw model.refusal(`merges[${index}]`, merge, "two tokens of the vocabulary that make a third");
  });
}

/** Whether a merge is one that the vocabulary allows. */
export function isMerge(vocab: ReadonlyMap<string, number>, left: string, right: string): boolean {
  return vocab.has(left) && vocab.has(right) && vocab.has(left + right);
}

function addedToken(token: Fields): AddedToken {
  const id = token.get("id");
  const content = token.text("content") ?? "";
  if (!isId(id)) throw token.refusal("id", id, `an id below ${MAX_VOCAB}`);
  if (content === "") throw token.refusal("content", content, "text");
  const special = token.flag("special", false);
  return {
    id,
    content,
    special,
    singleWord: token.flag("single_word", false),
    lstrip: token.flag("lstrip", false),
    rstrip: token.flag("rstrip", false),
    normalized: token.flag("normalized", !special),
  };
}

function isId(value: JsonValue): value is number {
  return Number.isInteger(value) && (value as number) >= 0 && (value as number) < MAX_VOCAB;
}

function around(post: Fields | null): { prefix: number[]; suffix: number[] } {
  if (post === null) return { prefix: [], suffix: [] };
  const type = post.text("type") ?? "";
  switch (type) {
    case "ByteLevel":
      return { prefix: [], suffix: [] };
    case "Sequence": {
      const parts = post.objects("processors").map(around);
      return {
        prefix: parts.flatMap((_, index) => parts.at(-1 - index)!.prefix),
        suffix: parts.flatMap((part) => part.suffix),
      };
    }
    case "BertProcessing":
    case "RobertaProcessing":
      return { prefix: [processorId(post, "cls")], suffix: [processorId(post, "sep")] };
    case "TemplateProcessing":
      return templateIds(post);
    default:
      throw post.refusal("type", type, "ByteLevel, BertProcessing, RobertaProcessing, Sequence or TemplateProcessing");
  }
}

function processorId(post: Fields, key: string): number {
  const id = post.list(key)[1] ?? null;
  if (!isId(id)) throw post.refusal(key, id, "a token and its id");
  return id;
}

function templateIds(post: Fields): { prefix: number[]; suffix: number[] } {
  const ids = { prefix: [] as number[], suffix: [] as number[] };
  let side: "prefix" | "suffix" = "prefix";
  for (const item of post.objects("single")) {
    const name = item.object("SpecialToken")?.text("id") ?? null;
    if (name === null) {
      side = "suffix";
      continue;
    }
    const list = post.object("special_tokens")?.object(name)?.list("ids") ?? [];
    if (list.length === 0 || !list.every(isId)) throw post.refusal("special_tokens", name, "its ids");
    const length = ids[side].length + list.length;
    if (length > MAX_AROUND) throw post.refusal("single", `${length} ids`, `at most ${MAX_AROUND}`);
    ids[side].push(...list as number[]);
  }
  return ids;
}

function decoderPlan(json: Fields): DecoderPlan {
  const decoder = json.object("decoder");
  if (decoder === null) throw json.refusal("decoder", null, "ByteLevel, Metaspace, WordPiece or a Sequence");
  const parts = decoder.get("type") === "Sequence" ? decoder.objects("decoders") : [decoder];
  if (parts.length === 1 && parts[0]!.get("type") === "ByteLevel") return { kind: "bytes" };
  if (parts.length === 1 && parts[0]!.get("type") === "WordPiece") {
    return { kind: "words", prefix: parts[0]!.text("prefix") ?? "##", cleanup: parts[0]!.flag("cleanup", true) };
  }
  const plan = {
    kind: "pieces" as const,
    replace: [] as [string, string][],
    byteFallback: false,
    strip: null as { char: string; count: number } | null,
    dropInFirst: null as string | null,
  };
  // Later steps see the joined text, which a stream never has: only this order is understood.
  const order = ["Metaspace", "Replace", "ByteFallback", "Fuse", "Strip"];
  let reached = 0;
  let fused = false;
  for (const part of parts) {
    const type = part.text("type") ?? "";
    const place = order.indexOf(type);
    if (place < reached || (type === "Strip" && !fused)) {
      throw part.refusal("type", type, `ByteLevel or WordPiece alone, or some of ${order.join(", ")} in this order`);
    }
    reached = place;
    fused ||= type === "Fuse";
    addDecoder(plan, part, type);
  }
  return plan;
}

function addDecoder(
  plan: {
    replace: [string, string][];
    byteFallback: boolean;
    strip: { char: string; count: number } | null;
    dropInFirst: string | null;
  },
  part: Fields,
  type: string,
): void {
  if (type === "Metaspace") {
    const replacement = part.text("replacement") ?? "▁";
    const never = part.get("prepend_scheme") === "never" || part.get("add_prefix_space") === false;
    plan.dropInFirst = never ? null : replacement;
    plan.replace.push([replacement, " "]);
  } else if (type === "Replace") {
    const from = part.object("pattern")?.text("String") ?? "";
    if (from === "") throw part.refusal("pattern", part.get("pattern"), 'a "String"');
    const to = part.text("content") ?? "";
    if (to.length > MAX_WRITTEN) throw part.refusal("content", to, `at most ${MAX_WRITTEN} characters`);
    plan.replace.push([from, to]);
  } else if (type === "ByteFallback") {
    plan.byteFallback = true;
  } else if (type === "Strip") {
    const [count, stop, char] = [part.get("start"), part.get("stop"), part.text("content") ?? ""];
    if (typeof count !== "number" || (stop ?? 0) !== 0 || char === "" || plan.strip) {
      throw part.refusal("stop", stop, "one Strip, at the start only");
    }
    plan.strip = { char, count };
  }
}
