/**
 * What a vocabulary without tokenizer.json means, by the class of its tokenizer: the parts that tokenizer.json would have.
 *
 * @module
 */

import type { JsonValue } from "../formats/json.ts";
import type { Fields } from "./fields.ts";
import { GGUF_WORDS } from "./gguf_words.ts";

/** One way to make a tokenizer of a vocabulary. */
export interface VocabularyKind {
  /** The vocabulary, and the merges if it has any. */
  readonly files: readonly string[];
  /** Special tokens where no file names others. */
  readonly specials: Readonly<Record<string, string>>;
  /** Makes all of tokenizer.json but `added_tokens`. */
  readonly parts: (parts: VocabularyParts) => Record<string, JsonValue>;
}

/** What a {@linkcode VocabularyKind} makes its parts of. */
export interface VocabularyParts {
  /** Ids by token. */
  readonly vocab: JsonValue;
  /** Pairs of pieces, each with a space between. */
  readonly merges: JsonValue;
  /** tokenizer_config.json; null where there is none. */
  readonly config: Fields | null;
  /** The special tokens by name. */
  readonly specials: ReadonlyMap<string, string>;
  /** The id of a special token. */
  readonly idOf: (token: string | undefined) => number;
}

const BPE_FILES = ["vocab.json", "merges.txt"];
const END = "<|endoftext|>";
/** The kinds by name. */
export const KINDS: Readonly<Record<string, VocabularyKind>> = {
  bert: {
    files: ["vocab.txt"],
    specials: {
      unk_token: "[UNK]",
      sep_token: "[SEP]",
      pad_token: "[PAD]",
      cls_token: "[CLS]",
      mask_token: "[MASK]",
    },
    parts: bertParts,
  },
  gpt2: { files: BPE_FILES, specials: { bos_token: END, eos_token: END, unk_token: END }, parts: gpt2Parts },
  roberta: {
    files: BPE_FILES,
    specials: {
      bos_token: "<s>",
      eos_token: "</s>",
      unk_token: "<unk>",
      sep_token: "</s>",
      pad_token: "<pad>",
      cls_token: "<s>",
      mask_token: "<mask>",
    },
    parts: (parts) => ({ ...gpt2Parts(parts), post_processor: between("RobertaProcessing", parts) }),
  },
  qwen2: { files: BPE_FILES, specials: { eos_token: END, unk_token: END, pad_token: END }, parts: qwen2Parts },
};
/** Names of kinds by `tokenizer_class` and by `model_type`. */
export const NAMES: ReadonlyMap<string, string> = new Map([
  ...["BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer", "bert", "distilbert", "electra"].map(named("bert")),
  ...["GPT2Tokenizer", "gpt2", "gpt_neo"].map(named("gpt2")),
  ...["RobertaTokenizer", "roberta"].map(named("roberta")),
  ...["Qwen2Tokenizer", "qwen2", "qwen3"].map(named("qwen2")),
]);

function named(kind: string): (name: string) => readonly [string, string] {
  return (name) => [name, kind];
}

function bertParts(parts: VocabularyParts): Record<string, JsonValue> {
  const { vocab, config, specials } = parts;
  return {
    model: object({ type: "WordPiece", vocab, unk_token: specials.get("unk_token")! }),
    normalizer: object({
      type: "BertNormalizer",
      lowercase: config?.flag("do_lower_case", true) ?? true,
      strip_accents: config?.get("strip_accents") ?? null,
      handle_chinese_chars: config?.flag("tokenize_chinese_chars", true) ?? true,
    }),
    pre_tokenizer: object({ type: "BertPreTokenizer" }),
    decoder: object({ type: "WordPiece" }),
    post_processor: between("BertProcessing", parts),
  };
}

/** [CLS] before a text and [SEP] after it. */
function between(type: string, { specials, idOf }: VocabularyParts): JsonValue {
  const pair = (name: string): JsonValue => [specials.get(name)!, idOf(specials.get(name))];
  return object({ type, cls: pair("cls_token"), sep: pair("sep_token") });
}

function gpt2Parts(parts: VocabularyParts): Record<string, JsonValue> {
  const { vocab, merges, config, specials, idOf } = parts;
  const around = ["bos_token", "eos_token"].map((name) => {
    return config?.flag(`add_${name}`, false) ? specials.get(name) : undefined;
  });
  const item = (token: string | undefined) =>
    token === undefined ? [] : [object({ SpecialToken: object({ id: token }) })];
  const known = around.flatMap((token) =>
    token === undefined ? [] : [[token, object({ ids: [idOf(token)] })] as const]
  );
  const text = object({ Sequence: object({ id: "A" }) });
  return {
    model: object({ type: "BPE", vocab, merges }),
    pre_tokenizer: object({ type: "ByteLevel", add_prefix_space: isSpaced(parts) }),
    decoder: object({ type: "ByteLevel" }),
    post_processor: object({
      type: "TemplateProcessing",
      single: [...item(around[0]), text, ...item(around[1])],
      special_tokens: new Map(known),
    }),
  };
}

function qwen2Parts(parts: VocabularyParts): Record<string, JsonValue> {
  const bytes = { type: "ByteLevel", add_prefix_space: isSpaced(parts), use_regex: false };
  const { words: [Regex = ""] } = GGUF_WORDS.get("qwen2")!;
  const split = object({ type: "Split", pattern: object({ Regex }), behavior: "Isolated" });
  return {
    ...gpt2Parts(parts),
    normalizer: object({ type: "NFC" }),
    pre_tokenizer: object({
      type: "Sequence",
      pretokenizers: [split, object(bytes)],
    }),
  };
}

/** Whether a text begins as after a space. */
function isSpaced({ config }: VocabularyParts): boolean {
  return config?.get("add_prefix_space") === true;
}

function object(fields: Readonly<Record<string, JsonValue>>): JsonValue {
  return new Map(Object.entries(fields));
}
