import type { Fields } from "./fields.ts";
import { normalForm } from "./normal_form.ts";

/** The blocks of Chinese characters as the Rust tokenizers have them: Japanese and Korean letters are in none. */
const CHINESE =
  /[\u{3400}-\u{4dbf}\u{4e00}-\u{9fff}\u{f900}-\u{faff}\u{20000}-\u{2a6df}\u{2a700}-\u{2b81f}\u{2b920}-\u{2ceaf}\u{2f800}-\u{2fa1f}]/gu;
const CONTROL = /[\ufffd\p{Co}]|(?![\t\n\r])[\p{Cc}\p{Cf}]/gu;

/**
 * BERT's normaliser. The package's own takes a character above U+FFFF for two and lowers a last sigma by its place.
 *
 * Which characters are controls and accents the engine's Unicode tables tell; those of the Rust tokenizers are of 2015.
 *
 * @param config A `BertNormalizer` of a tokenizer.json.
 * @returns The normaliser.
 */
export function bertNormalizer(config: Fields): { normalize(text: string): string } {
  const lowercase = config.flag("lowercase", true);
  const steps: ((text: string) => string)[] = [];
  if (config.flag("clean_text", true)) {
    steps.push((text) => text.replace(CONTROL, "").replace(/\p{White_Space}/gu, " "));
  }
  if (config.flag("handle_chinese_chars", true)) steps.push((text) => text.replace(CHINESE, " $& "));
  if (config.flag("strip_accents", lowercase)) steps.push((text) => normalForm(text, "NFD").replace(/\p{Mn}/gu, ""));
  if (lowercase) steps.push((text) => Array.from(text, (character) => character.toLowerCase()).join(""));
  return { normalize: (text) => steps.reduce((changed, step) => step(changed), text) };
}
