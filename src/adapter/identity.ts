import { stringifyJson } from "../formats/json_writer.ts";
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
  const both = new Uint8Array(digest.length + text.length);
  both.set(digest);
  both.set(text, digest.length);
  return { sha256: hex(digest), id: hex(await sha256(both)) };
}

async function sha256(bytes: Uint8Array): Promise<Uint8Array> {
  return new Uint8Array(await crypto.subtle.digest("SHA-256", bytes as BufferSource));
}

function hex(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
