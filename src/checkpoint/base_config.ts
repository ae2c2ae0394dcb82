import { type JsonValue, parseJson } from "../formats/json.ts";
import { readText } from "../formats/json_file.ts";
import type { Folder, ReadOptions } from "../formats/source.ts";

/** What merging needs to know from the base model's `config.json`. */
export interface BaseConfig {
  /** Whether input embedding and output head are one table. */
  readonly tied: boolean;
  /** Rows of that table; null if the config does not say. */
  readonly vocabSize: number | null;
}

/** File name of a model's config. */
export const MODEL_CONFIG = "config.json";
const MAX_BYTES = 16_000_000;

/**
 * Reads the base model's `config.json`.
 *
 * @param folder The checkpoint's folder.
 * @param options A signal.
 * @returns What merging needs; nothing tied if there is no such file.
 * @throws {FormatError} If the file is not strict JSON.
 */
export async function readBaseConfig(folder: Folder, options: ReadOptions): Promise<BaseConfig> {
  if (!await folder.has(MODEL_CONFIG, options)) return { tied: false, vocabSize: null };
  const text = await readText(folder.open(MODEL_CONFIG), { ...options, maxBytes: MAX_BYTES });
  const root = parseJson(text, { file: MODEL_CONFIG, keepNumberText: true });
  const vocabSize = field(root, "vocab_size");
  return {
    tied: field(root, "tie_word_embeddings") === true,
    vocabSize: typeof vocabSize === "number" ? vocabSize : null,
  };
}

/** A field of the config, or of its part for text, where a model of several media keeps it. */
function field(root: JsonValue, key: string): JsonValue | undefined {
  if (!(root instanceof Map)) return undefined;
  const text = root.get("text_config");
  return root.get(key) ?? (text instanceof Map ? text.get(key) : undefined);
}

/**
 * Puts another dtype into a `config.json`; every other byte stays.
 *
 * @param text The config.
 * @param dtype The dtype as PyTorch calls it.
 * @returns The config with that dtype wherever it names one.
 */
export function replaceDtype(text: string, dtype: string): string {
  return text.replace(/("(?:torch_)?dtype"\s*:\s*)"(?:torch\.)?(?:float32|float16|bfloat16|float64)"/g, `$1"${dtype}"`);
}
