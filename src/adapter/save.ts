import type { StoredTensor } from "../formats/dtype.ts";
import { stringifyJson } from "../formats/json_writer.ts";
import { encodeSafetensors } from "../formats/safetensors_writer.ts";
import type { ReadOptions, Sink } from "../formats/source.ts";
import { writeFiles } from "../formats/write_files.ts";
import type { Adapter, LoraModule } from "./adapter.ts";
import { CONFIG_DEFAULTS } from "./config_defaults.ts";
import { WEIGHTS_FILE } from "./load.ts";
import { CONFIG_FILE, type LoraConfig } from "./lora_config.ts";
import { filePaths, IN_PROJECTION } from "./module_places.ts";
import { lastName, ownerPath } from "./paths.ts";

const PREFIX = "base_model.model.";

/**
 * Encodes the weight file of a PEFT folder: `base_model.model.<path>.lora_A.weight` and so on, bits as they are.
 *
 * @param modules The modules.
 * @param others What the adapter has beside them.
 * @returns `adapter_model.safetensors`.
 */
export function encodeWeights(
  modules: Iterable<LoraModule>,
  others: Partial<Pick<Adapter, "trainingState" | "replacements" | "tokenRows">> = {},
): Uint8Array {
  const all = [...modules];
  const paths = filePaths(all);
  const tensors = new Map(others.trainingState);
  for (const module of all) {
    for (const [key, tensor] of moduleTensors(module)) tensors.set(`${PREFIX}${paths.get(module.name)}.${key}`, tensor);
  }
  for (const [path, { rows }] of others.tokenRows ?? []) {
    tensors.set(`${PREFIX}${path}.token_adapter.trainable_tokens_delta`, rows);
  }
  for (const [name, tensor] of others.replacements ?? []) {
    tensors.set(PREFIX + fullTensorKey(name, paths, others.tokenRows ?? new Map()), tensor);
  }
  return encodeSafetensors(tensors, new Map([["format", "pt"]]));
}

/** The tensors of a module by the ends of their names. */
function moduleTensors(module: LoraModule): (readonly [string, StoredTensor])[] {
  const { kind, loraA, loraB, loraBias, magnitude, diagonal } = module;
  const [a, b] = kind === "embedding" ? ["lora_embedding_A", "lora_embedding_B"] : ["lora_A.weight", "lora_B.weight"];
  return [
    [a!, loraA],
    [b!, loraB],
    ...(loraBias ? [["lora_B.bias", loraBias] as const] : []),
    ...(magnitude ? [["lora_magnitude_vector", magnitude] as const] : []),
    ...(diagonal ? [["lora_diag", diagonal] as const] : []),
  ];
}

/** PEFT wraps what it adapts, so the base's own tensors of such a module are one level down. */
function fullTensorKey(
  name: string,
  paths: ReadonlyMap<string, string>,
  tokenRows: ReadonlyMap<string, unknown>,
): string {
  const [path, parameter] = [ownerPath(name), lastName(name)];
  if (tokenRows.has(path)) return `${path}.token_adapter.base_layer.${parameter}`;
  const attention = paths.get(`${path}.${IN_PROJECTION}`);
  const wrapped = paths.get(path) ?? attention;
  return wrapped === undefined ? name : `${wrapped}.base_layer.${parameter}`;
}

/**
 * Encodes `adapter_config.json`: the keys of the config verbatim, those of PEFT 0.21.2 that it lacks with their
 * defaults; sorted, indented by two.
 *
 * @param config The config.
 * @returns The file.
 */
function encodeConfig(config: LoraConfig): Uint8Array {
  const keys = new Map([...CONFIG_DEFAULTS, ...config.raw]);
  return new TextEncoder().encode(stringifyJson(keys, { indent: 2, sortKeys: true }));
}

/**
 * Saves an adapter as PEFT does: `adapter_model.safetensors` and `adapter_config.json`, which PEFT loads without a
 * warning. An adapter that PEFT saved gives the same bytes again.
 *
 * @param adapter The adapter.
 * @param sink Where the two files go; neither appears before both are written.
 * @param options A signal.
 *
 * @example
 * ```ts
 * import { loadAdapter, memorySink, saveAdapter } from "@lowrank/lora";
 * import { folder } from "@lowrank/lora/fs";
 * import assert from "node:assert/strict";
 *
 * const sink = memorySink();
 * await saveAdapter(await loadAdapter(folder("examples/models/tiny/tweets")), sink);
 * assert.deepEqual([...sink.files.keys()].sort(), ["adapter_config.json", "adapter_model.safetensors"]);
 * ```
 */
export async function saveAdapter(adapter: Adapter, sink: Sink, options: ReadOptions = {}): Promise<void> {
  options.signal?.throwIfAborted();
  const contents = new Map([
    [WEIGHTS_FILE, encodeWeights(adapter.modules.values(), adapter)],
    [CONFIG_FILE, encodeConfig(adapter.config)],
  ]);
  await writeFiles(sink, contents, options);
}
