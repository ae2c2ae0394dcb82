import type { ReportLine } from "../adapter/adapter.ts";
import type { GgufValue } from "../formats/gguf.ts";
import { memorySource } from "../formats/memory.ts";
import type { Folder } from "../formats/source.ts";
import { GGUF_WORDS, type WordRules } from "../text/gguf_words.ts";

type Metadata = ReadonlyMap<string, GgufValue>;

/** The tokenizer of a GGUF file as the files of a Hugging Face folder. */
export interface TokenizerFiles {
  /** Bytes by file name; none if the metadata cannot be expressed. */
  readonly files: ReadonlyMap<string, Uint8Array>;
  /** What is missing, and why. */
  readonly report: readonly ReportLine[];
}

/** llama.cpp's token types that a text can name; the others are pieces of words. */
const SPECIAL_TYPES: ReadonlySet<GgufValue | undefined> = new Set([2, 3]);
const USER_TYPE = 4;

const BYTES = { type: "ByteLevel", add_prefix_space: false, trim_offsets: true } as const;
/** Words of patterns, then bytes written as characters. */
function preTokenizer(patterns: readonly string[]): unknown {
  const splits = patterns.map((Regex) => {
    return { type: "Split", pattern: { Regex }, behavior: "Isolated", invert: false };
  });
  return { type: "Sequence", pretokenizers: [...splits, { ...BYTES, use_regex: false }] };
}

/** How the file's words are made; undefined where it names a way that is not known. */
function rulesOf(metadata: Metadata): WordRules | undefined {
  return GGUF_WORDS.get(String(metadata.get("tokenizer.ggml.pre") ?? "default"));
}

function texts(metadata: Metadata, key: string): string[] {
  const value = metadata.get(`tokenizer.ggml.${key}`);
  return Array.isArray(value) ? value.map(String) : [];
}

/** Writes ids before and after a text, as `add_special_tokens` asks for. */
function postProcessor(bos: string | undefined, bosId: number): unknown {
  if (bos === undefined) return { ...BYTES, use_regex: true };
  const special = { SpecialToken: { id: bos, type_id: 0 } };
  const [A, B] = ["A", "B"].map((id) => ({ Sequence: { id, type_id: 0 } }));
  return {
    type: "TemplateProcessing",
    single: [special, A],
    pair: [special, A, special, B],
    special_tokens: { [bos]: { id: bos, ids: [bosId], tokens: [bos] } },
  };
}

function tokenizerJson(metadata: Metadata, tokens: readonly string[], rules: WordRules): unknown {
  const { words, nfc = false, ignoreMerges = false, addBos = false } = rules;
  const types = metadata.get("tokenizer.ggml.token_type");
  const bosId = Number(metadata.get("tokenizer.ggml.bos_token_id"));
  const addsBos = metadata.get("tokenizer.ggml.add_bos_token") ?? addBos;
  const added = tokens.flatMap((content, id) => {
    const type = Array.isArray(types) ? types[id] : undefined;
    const special = SPECIAL_TYPES.has(type);
    if (content === "" || (!special && type !== USER_TYPE)) return [];
    return [{ id, content, single_word: false, lstrip: false, rstrip: false, normalized: false, special }];
  });
  return {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: added,
    normalizer: nfc ? { type: "NFC" } : null,
    pre_tokenizer: preTokenizer(words),
    post_processor: postProcessor(addsBos ? tokens[bosId] : undefined, bosId),
    decoder: { ...BYTES, use_regex: true },
    model: {
      type: "BPE",
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: ignoreMerges,
      vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
      merges: texts(metadata, "merges").map((merge) => {
        const space = merge.indexOf(" ", 1);
        return [merge.slice(0, space), merge.slice(space + 1)];
      }),
    },
  };
}

function tokenizerConfig(metadata: Metadata, tokens: readonly string[]): unknown {
  const names = [["bos", "bos"], ["eos", "eos"], ["unknown", "unk"], ["padding", "pad"]] as const;
  const named = names.map(([key, name]) => {
    return [`${name}_token`, tokens[Number(metadata.get(`tokenizer.ggml.${key}_token_id`))]];
  });
  return {
    tokenizer_class: "PreTrainedTokenizerFast",
    clean_up_tokenization_spaces: false,
    ...Object.fromEntries(named),
    chat_template: metadata.get("tokenizer.chat_template"),
  };
}

/** Writes the tokenizer of a GGUF file's metadata, where it is byte-level and its words are of a known kind. */
export function ggufTokenizerFiles(metadata: Metadata, file: string): TokenizerFiles {
  const [model, pre] = [metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")];
  const rules = rulesOf(metadata);
  if (model !== "gpt2" || !rules) {
    const what = `no tokenizer is written for model "${model ?? "nothing"}" with words of "${pre ?? "nothing"}"`;
    return { files: new Map(), report: [{ module: file, what, why: "copy the files of the model it was made from" }] };
  }
  const tokens = texts(metadata, "tokens");
  const encode = (value: unknown) => new TextEncoder().encode(JSON.stringify(value, null, 2) + "\n");
  return {
    files: new Map([
      ["tokenizer.json", encode(tokenizerJson(metadata, tokens, rules))],
      ["tokenizer_config.json", encode(tokenizerConfig(metadata, tokens))],
    ]),
    report: [],
  };
}

/** A folder with further files. */
export function withFiles(folder: Folder, files: ReadonlyMap<string, Uint8Array>): Folder {
  return {
    name: folder.name,
    has: async (file, options) => files.has(file) || await folder.has(file, options),
    open(file) {
      const bytes = files.get(file);
      return bytes ? memorySource(file, bytes) : folder.open(file);
    },
  };
}
