import type { StoredTensor } from "../formats/dtype.ts";
import { stringifyJson } from "../formats/json_writer.ts";
import { encodeSafetensors } from "../formats/safetensors_writer.ts";
import type { ReadOptions, Sink } from "../formats/source.ts";
import { writeFiles } from "../formats/write_files.ts";
import type { Adapter, LoraModule } from "./adapter.ts";
import { CONFIG_DEFAULTS } from "./config_defaults.ts";
import { WEIGHTS_FILE } from "./load.ts";
import { CONFIG_FILE, type LoraConfig } from "./lora_config.ts";

/**
 * Encodes the weight file of a PEFT folder: `base_model.model.<path>.lora_A.weight` and so on, bits as they are.
 *
 * @param modules The modules.
 * @param trainingState Further tensors by their names in the file.
 * @returns `adapter_model.safetensors`.
 */
export function encodeWeights(
  modules: Iterable<LoraModule>,
  trainingState: ReadonlyMap<string, StoredTensor> = new Map(),
): Uint8Array {
  const tensors = new Map(trainingState);
  for (const { name, loraA, loraB } of modules) {
    tensors.set(`base_model.model.${name}.lora_A.weight`, loraA);
    tensors.set(`base_model.model.${name}.lora_B.weight`, loraB);
  }
  return encodeSafetensors(tensors, new Map([["format", "pt"]]));
}

/**
 * Encodes `adapter_config.json`: the keys of the config verbatim, those of PEFT 0.21.2 that it lacks with their
 * defaults; sorted, indented by two.
 *
 * @param config The config.
 * @returns The file.
 */
export function encodeConfig(config: LoraConfig): Uint8Array {
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
    [WEIGHTS_FILE, encodeWeights(adapter.modules.values(), adapter.trainingState)],
    [CONFIG_FILE, encodeConfig(adapter.config)],
  ]);
  await writeFiles(sink, contents, options);
}
