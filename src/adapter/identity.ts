import { concat } from "../formats/concat.ts";
import { stringifyJson } from "../formats/json_writer.ts";
import { sha256, toHex } from "../formats/sha256.ts";
import type { LoraConfig } from "./lora_config.ts";

/**
 * Digests an adapter: by its bytes, never by its name.
 *
 * @param weights The weight file.
 * @param config The config.
 * @returns sha256 of the weight file, and id = sha256 of that digest followed by the config with sorted keys.
 */
export async function identify(weights: Uint8Array, config: LoraConfig): Promise<{ sha256: string; id: string }> {
  const digest = await sha256(weights);
  const text = new TextEncoder().encode(stringifyJson(new Map(config.raw), { sortKeys: true }));
  return { sha256: toHex(digest), id: toHex(await sha256(concat([digest, text]))) };
}
