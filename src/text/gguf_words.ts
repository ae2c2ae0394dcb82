/**
 * How texts are split into words where a GGUF file only names the way, in `tokenizer.ggml.pre`. The names are
 * llama.cpp's; the patterns and the rest are those of the models' own files.
 *
 * @module
 */

/** GPT-2's words, numbers, signs and spaces. */
export const GPT2_WORDS = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

const CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
const SIGNS_AND_SPACES = " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

/** What is done before and besides the merges of byte-level pieces. */
export interface WordRules {
  /** Patterns; each splits what the one before left. */
  readonly words: readonly string[];
  /** The text is brought into Unicode's composed form first. */
  readonly nfc?: boolean;
  /** A word of the vocabulary is taken whole. */
  readonly ignoreMerges?: boolean;
  /** Whether the beginning-of-text token is added where the file does not say. */
  readonly addBos?: boolean;
}

const GPT2: WordRules = { words: [GPT2_WORDS] };
const DIGITS: WordRules = { words: ["\\p{N}", GPT2_WORDS] };
const LLAMA3: WordRules = { words: [wordsWith("\\p{N}{1,3}")], ignoreMerges: true, addBos: true };
const QWEN2: WordRules = { words: [wordsWith("\\p{N}")], nfc: true };

/** The rules by `tokenizer.ggml.pre`; `"default"` is what llama.cpp does for files that do not say. */
export const GGUF_WORDS: ReadonlyMap<string, WordRules> = new Map([
  ["default", { words: ["[\\p{P}\\$\\+<=>\\^~\\|]+", GPT2_WORDS, "\\p{N}+", "[0-9][0-9][0-9]"] }],
  ["gpt-2", GPT2],
  ["phi-2", GPT2],
  ["smollm", DIGITS],
  ["starcoder", DIGITS],
  ["refact", DIGITS],
  ["llama-bpe", LLAMA3],
  ["llama3", LLAMA3],
  ["llama-v3", LLAMA3],
  ["qwen2", QWEN2],
  ["deepseek-r1-qwen", { ...QWEN2, nfc: false, addBos: true }],
]);

function wordsWith(numbers: string): string {
  return `${CONTRACTIONS}|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|${numbers}|${SIGNS_AND_SPACES}`;
}
