import { FormatError } from "../../errors.ts";
import { checkReadable } from "../../formats/check_place.ts";
import { openCheckpoint } from "../../formats/checkpoint.ts";
import type { JsonValue } from "../../formats/json.ts";
import { readJson } from "../../formats/json_file.ts";
import { readSafetensorsHeader, type TensorInfo } from "../../formats/safetensors.ts";
import type { Folder, ReadOptions, Source } from "../../formats/source.ts";
import { ggufArchitecture } from "./gguf_names.ts";
import type { BaseFacts } from "./options.ts";

const MAX_CONFIG = 2 ** 20;

/**
 * Reads what converters may need of a base model: its layers and their kernels by the headers of its checkpoint, and architecture,
 * heads and tie by its `config.json`, where it has one. No weights are read.
 *
 * @param base A folder with `model.safetensors` or its shards, or one safetensors file, which tells the layers alone; of a
 * GGUF file the folder that `ggufFolder()` makes.
 * @param options A signal.
 * @returns The facts.
 * @throws {FormatError} If a file is malformed.
 * @throws {MismatchError} If the folder holds no checkpoint.
 */
export async function readBaseFacts(base: Folder | Source, options: ReadOptions = {}): Promise<BaseFacts> {
  checkReadable("read what a base model tells", base, 'file("….safetensors")');
  if (!("open" in base)) return layerFacts((await readSafetensorsHeader(base, options)).tensors);
  const { tensors } = await openCheckpoint(base, options);
  const config = await base.has("config.json", options)
    ? await readJson(base.open("config.json"), { ...options, maxBytes: MAX_CONFIG, keepNumberText: true })
    : new Map<string, JsonValue>();
  const fields = config instanceof Map ? config : new Map<string, JsonValue>();
  const type = fields.get("model_type");
  const architecture = typeof type === "string" ? ggufArchitecture(type) : undefined;
  const heads = count(fields, "num_attention_heads");
  const kvHeads = count(fields, "num_key_value_heads");
  return {
    ...layerFacts(tensors),
    tied: fields.get("tie_word_embeddings") === true || !tensors.has("lm_head.weight"),
    ...(typeof type === "string" && { modelType: type }),
    ...(architecture !== undefined && { architecture }),
    ...(heads !== undefined && { heads }),
    ...(kvHeads !== undefined && { kvHeads }),
  };
}

function layerFacts(tensors: ReadonlyMap<string, TensorInfo>): Required<Pick<BaseFacts, "modules" | "kernels">> {
  const modules: string[] = [];
  const kernels = new Map<string, readonly number[]>();
  for (const { name, shape } of tensors.values()) {
    const path = /^(.+)\.weight$/.exec(name)?.[1];
    if (path === undefined || shape.length < 2) continue;
    modules.push(path);
    if (shape.length > 2) kernels.set(path, shape.slice(2));
  }
  // A tied head has no weight of its own.
  if (!modules.includes("lm_head")) modules.push("lm_head");
  return { modules, kernels: Object.fromEntries(kernels) };
}

function count(fields: ReadonlyMap<string, JsonValue>, field: string): number | undefined {
  const value = fields.get(field) ?? undefined;
  if (value === undefined || (typeof value === "number" && Number.isSafeInteger(value) && value >= 1)) return value;
  const message = `Cannot read "config.json" with "${field}" of type ${typeof value}: expected a whole number from 1`;
  throw new FormatError(message, { file: "config.json", field, found: value });
}
