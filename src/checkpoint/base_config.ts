import { type JsonValue, parseJson } from "../formats/json.ts";
import { readText } from "../formats/json_file.ts";
import type { Folder, ReadOptions } from "../formats/source.ts";
import type { ConfigEdits } from "./merge_plan.ts";

/** What merging needs to know from the base model's `config.json`. */
export interface BaseConfig {
  /** Whether input embedding and output head are one table; null if the config does not say. */
  readonly tied: boolean | null;
  /** Rows of that table; null if the config does not say. */
  readonly vocabSize: number | null;
  /** Names of the model's class; none if the config does not say. */
  readonly architectures: readonly string[];
}

/** File name of a model's config. */
export const MODEL_CONFIG = "config.json";
const MAX_BYTES = 16_000_000;

/**
 * Reads the base model's `config.json`.
 *
 * @param folder The checkpoint's folder.
 * @param options A signal.
 * @returns What merging needs; nothing if there is no such file.
 * @throws {FormatError} If the file is not strict JSON.
 */
export async function readBaseConfig(folder: Folder, options: ReadOptions): Promise<BaseConfig> {
  if (!await folder.has(MODEL_CONFIG, options)) return { tied: null, vocabSize: null, architectures: [] };
  const text = await readText(folder.open(MODEL_CONFIG), { ...options, maxBytes: MAX_BYTES });
  const root = parseJson(text, { file: MODEL_CONFIG, keepNumberText: true });
  const vocabSize = field(root, "vocab_size");
  const tied = field(root, "tie_word_embeddings");
  const architectures = root instanceof Map ? root.get("architectures") : undefined;
  return {
    tied: typeof tied === "boolean" ? tied : null,
    vocabSize: typeof vocabSize === "number" ? vocabSize : null,
    architectures: Array.isArray(architectures) ? architectures.filter((name) => typeof name === "string") : [],
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

/** The fields of a model's config that say how many layers it has. */
const LAYER_FIELDS: readonly string[] = ["num_hidden_layers", "n_layer", "num_layers"];
/** The field with the kind of attention of each layer. */
const LAYER_TYPES = /("layer_types"\s*:\s*)\[([^\]]*)\]/g;

/**
 * Changes fields of a `config.json`; every other byte stays.
 *
 * @param text The config, a JSON object.
 * @param edits The changes.
 * @returns The config with the new values wherever it has these fields, and a tie flag in any case.
 */
export function editConfig(text: string, { tied, vocabSize, layers }: ConfigEdits): string {
  let edited = text;
  const set = (field: string, value: number | boolean): boolean => {
    const pattern = new RegExp(`("${field}"\\s*:\\s*)(?:true|false|[0-9]+)`, "g");
    const before = edited;
    edited = edited.replace(pattern, `$1${value}`);
    return edited !== before || pattern.test(before);
  };
  if (tied === false && !set("tie_word_embeddings", false)) {
    edited = edited.replace("{", '{\n  "tie_word_embeddings": false,');
  }
  if (vocabSize !== undefined) set("vocab_size", vocabSize);
  if (layers === undefined) return edited;
  for (const field of LAYER_FIELDS) set(field, layers.length);
  return edited.replace(LAYER_TYPES, (whole, begin: string, list: string) => {
    const types = list.match(/"[^"]*"/g) ?? [];
    // PEFT's model goes on reading the base's list by the number of the layer, as far as it reaches.
    const own = layers.map((from, to) => types[layers.length > types.length ? from : to]);
    return own.includes(undefined) ? whole : `${begin}[${own.join(", ")}]`;
  });
}
