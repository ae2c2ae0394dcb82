/**
 * Checks the normaliser and the pre-tokeniser of a tokenizer.json and builds them from `@huggingface/tokenizers`.
 * What that package does otherwise than the Rust tokenizers is rewritten to what it does alike, or refused by name.
 *
 * @module
 */

import { type PreTokenizer, SequenceNormalizer, SequencePreTokenizer } from "@huggingface/tokenizers";
import { LimitError } from "../errors.ts";
import { bertNormalizer } from "./bert_normalizer.ts";
import { boundedPattern } from "./bounded_pattern.ts";
import { type Fields, plainJson } from "./fields.ts";
import { GPT2_WORDS } from "./gguf_words.ts";
import { normalForm } from "./normal_form.ts";

/** A step of the package's, or one that is rewritten here. */
type NormalizerStep = NormalizerConfig | TextNormalizer;
type NormalizerConfig = ConstructorParameters<typeof SequenceNormalizer>[0]["normalizers"][number];
type PreTokenizerConfig = ConstructorParameters<typeof SequencePreTokenizer>[0]["pretokenizers"][number];

/** A sign that BERT takes for a word: punctuation, and all of ASCII that is no letter, digit or space. */
const BERT_SIGN = "[\\p{P}\\u0021-\\u002F\\u003A-\\u0040\\u005B-\\u0060\\u007B-\\u007E]";

/** A pre-tokeniser that makes each match of a pattern a piece of its own, or leaves it out. */
export function splitAt(pattern: string, behavior: "Isolated" | "Removed" = "Isolated"): PreTokenizerConfig {
  return { type: "Split", pattern: { Regex: pattern }, behavior, invert: false };
}

/** GPT-2's bytes written as characters, without a split of its own. */
export function bytesStep(): PreTokenizerConfig {
  return { type: "ByteLevel", add_prefix_space: false, use_regex: false };
}

/** Changes a text before it is split. */
export interface TextNormalizer {
  /**
   * The changed text.
   *
   * @throws {LimitError} If it grows too long, or a letter has too many marks.
   */
  normalize(text: string): string;
}

/** Most steps of a normaliser or of a pre-tokeniser, and most characters that one of them writes in place of another or before all. */
const MAX_STEPS = 32;
const MAX_WRITTEN = 16;
/** Longest text between two steps, in UTF-16 units. */
const MAX_NORMALIZED = 1 << 23;

/** Builds a normaliser; null where there is nothing to do. */
export function buildNormalizer(config: Fields | null): TextNormalizer | null {
  const steps = normalizerSteps(config);
  if (steps.length > MAX_STEPS) {
    throw config!.refusal("normalizers", `${steps.length} steps`, `at most ${MAX_STEPS}`);
  }
  return guarded(config, () => normalizerOf(steps));
}

/** Builds a pre-tokeniser; null where there is nothing to do. */
export function buildPreTokenizer(config: Fields | null): PreTokenizer | null {
  const pretokenizers = preTokenizerSteps(config);
  if (pretokenizers.length === 0) return null;
  if (pretokenizers.length > MAX_STEPS) {
    throw config!.refusal("pretokenizers", `${pretokenizers.length} steps`, `at most ${MAX_STEPS}`);
  }
  return guarded(config, () => preTokenizerOf(pretokenizers));
}

/** Makes a pre-tokeniser of checked steps. */
export function preTokenizerOf(pretokenizers: PreTokenizerConfig[]): PreTokenizer {
  const sequence = new SequencePreTokenizer({ type: "Sequence", pretokenizers });
  sequence.tokenizers.forEach(boundStep);
  return sequence;
}

/** The package's steps have their pattern as a member. */
function boundStep(step: object | null): void {
  if (step && "pattern" in step && step.pattern instanceof RegExp) step.pattern = boundedPattern(step.pattern);
}

/** Makes a normaliser of checked steps. */
export function normalizerOf(steps: NormalizerStep[]): TextNormalizer | null {
  if (steps.length === 0) return null;
  const normalizers = steps.map(normalizerStep);
  return {
    normalize: (text) => normalizers.reduce<string>((changed, one) => checkGrowth(one.normalize(changed)), text),
  };
}

function normalizerStep(step: NormalizerStep): TextNormalizer {
  if ("normalize" in step) return step;
  switch (step.type) {
    case "NFC":
    case "NFD":
    case "NFKC":
    case "NFKD": {
      const { type } = step;
      return { normalize: (text) => normalForm(text, type) };
    }
    default: {
      const sequence = new SequenceNormalizer({ type: "Sequence", normalizers: [step] });
      sequence.normalizers.forEach(boundStep);
      return sequence;
    }
  }
}

/** A few steps that each replace a letter by several make any text as long as memory. */
function checkGrowth(text: string): string {
  if (text.length <= MAX_NORMALIZED) return text;
  throw new LimitError(
    `Cannot normalize a text to ${text.length} characters: expected at most ${MAX_NORMALIZED}`,
    { field: "normalizer", limit: MAX_NORMALIZED, value: text.length },
  );
}

function normalizerSteps(config: Fields | null): NormalizerStep[] {
  if (config === null) return [];
  const type = config.text("type") ?? "";
  switch (type) {
    case "Sequence":
      return config.objects("normalizers").flatMap(normalizerSteps);
    case "BertNormalizer":
      return [bertNormalizer(config)];
    case "NFC":
    case "NFD":
    case "NFKC":
    case "NFKD":
      return [{ type }];
    case "Prepend":
      return [{ type, prepend: written(config, "prepend") }];
    case "Replace":
      checkPattern(config);
      // The package takes the replacement for a JavaScript pattern, in which "$" means more than itself.
      return [{ type, pattern: pattern(config), content: written(config, "content").replaceAll("$", "$$$$") }];
    default:
      throw config.refusal("type", type, "BertNormalizer, NFC, NFD, NFKC, NFKD, Prepend, Replace or Sequence");
  }
}

function written(config: Fields, key: string): string {
  const text = config.text(key) ?? "";
  if (text.length > MAX_WRITTEN) throw config.refusal(key, text, `at most ${MAX_WRITTEN} characters`);
  return text;
}

function preTokenizerSteps(config: Fields | null): PreTokenizerConfig[] {
  if (config === null) return [];
  const type = config.text("type") ?? "";
  switch (type) {
    case "Sequence":
      return sequenceSteps(config);
    case "BertPreTokenizer":
      return [splitAt("\\p{White_Space}+", "Removed"), splitAt(BERT_SIGN)];
    case "ByteLevel":
      return byteLevelSteps(config);
    case "Digits":
      // The package's own knows ASCII digits only.
      return [splitAt(config.flag("individual_digits", false) ? "\\p{N}" : "\\p{N}+")];
    case "Split":
      return [splitStep(config)];
    case "Metaspace":
      return metaspaceSteps(config);
    default:
      throw config.refusal("type", type, "BertPreTokenizer, ByteLevel, Digits, Metaspace, Sequence or Split");
  }
}

function sequenceSteps(config: Fields): PreTokenizerConfig[] {
  const parts = config.objects("pretokenizers");
  const metaspace = parts.findIndex((part) => part.get("type") === "Metaspace");
  if (metaspace > 0) {
    // Its prefix would go by the piece, not by the text.
    throw config.refusal(`pretokenizers[${metaspace}].type`, "Metaspace", "it to stand first");
  }
  return parts.flatMap(preTokenizerSteps);
}

function byteLevelSteps(config: Fields): PreTokenizerConfig[] {
  const steps: PreTokenizerConfig[] = [];
  // A metaspace that is a space: puts one before a text that has none, which must come before the split.
  if (config.flag("add_prefix_space", true)) {
    steps.push({ type: "Metaspace", replacement: " ", prepend_scheme: "always" });
  }
  // The package's own splits by JavaScript's white space, which has U+FEFF and lacks U+0085.
  if (config.flag("use_regex", true)) steps.push(splitAt(GPT2_WORDS));
  return [...steps, bytesStep()];
}

function splitStep(config: Fields): PreTokenizerConfig {
  checkPattern(config);
  const behavior = config.text("behavior") ?? "";
  const invert = config.flag("invert", false);
  if (invert && behavior === "Removed") return { type: "Split", pattern: pattern(config), behavior, invert };
  if (invert || (behavior !== "Isolated" && behavior !== "Removed")) {
    throw config.refusal(
      "behavior",
      invert ? `${behavior} inverted` : behavior,
      "Isolated, Removed or Removed inverted",
    );
  }
  return { type: "Split", pattern: pattern(config), behavior, invert };
}

function metaspaceSteps(config: Fields): PreTokenizerConfig[] {
  const replacement = config.text("replacement") ?? "▁";
  const scheme = config.text("prepend_scheme") ?? (config.flag("add_prefix_space", true) ? "always" : "never");
  if (scheme !== "always" && scheme !== "first" && scheme !== "never") {
    throw config.refusal("prepend_scheme", scheme, "always, first or never");
  }
  if (Array.from(replacement).length !== 1 || /[\\\]^-]/.test(replacement)) {
    throw config.refusal("replacement", replacement, "one character");
  }
  const steps: PreTokenizerConfig[] = [{ type: "Metaspace", replacement, prepend_scheme: scheme }];
  if (config.flag("split", true)) steps.push(splitAt(`${replacement}[^${replacement}]*|[^${replacement}]+`));
  return steps;
}

function pattern(config: Fields): { String: string } | { Regex: string } {
  return plainJson(config.get("pattern")) as { String: string } | { Regex: string };
}

function checkPattern(config: Fields): void {
  const pattern = config.object("pattern");
  const regex = pattern?.text("Regex") ?? null;
  if (pattern === null || (regex === null && pattern.text("String") === null)) {
    throw config.refusal("pattern", null, '"String" or "Regex"');
  }
  if (regex === null) return;
  const bare = regex.replace(/\\[^G]/gs, "\\").replace(/\[[^\]]*\]/g, "[]");
  const unsupported = /\\G|\(\?>|[*+?]\+/.exec(bare);
  if (unsupported) {
    throw pattern.refusal("Regex", unsupported[0], "no \\G, atomic group or possessive quantifier");
  }
}

function guarded<T>(config: Fields | null, build: () => T): T {
  try {
    return build();
  } catch (cause) {
    const refusal = config!.refusal("", (cause as Error).message, "patterns that JavaScript can express");
    throw Object.assign(refusal, { cause });
  }
}
