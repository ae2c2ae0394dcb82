import type { UnsupportedTensor } from "./unsupported.ts";

/** What a tensor of a PEFT file is: a factor of a linear layer, something only training uses, or another kind. */
export type TensorPart = "loraA" | "loraB" | "training state" | UnsupportedTensor | "unknown";

/** A tensor's name, taken apart. */
export interface TensorKey {
  /** Path of the module in the base model. */
  readonly module: string;
  /** What the tensor is to the module. */
  readonly part: TensorPart;
}

const PREFIX = "base_model.model.";

const PARTS: ReadonlyMap<string, TensorPart> = new Map<string, TensorPart>([
  ["lora_A.weight", "loraA"],
  ["lora_B.weight", "loraB"],
  ["lora_B.bias", "bias of B"],
  ["lora_embedding_A", "embedding"],
  ["lora_embedding_B", "embedding"],
  ["lora_magnitude_vector", "magnitude"],
  ["lora_magnitude_vector.weight", "magnitude"],
  ["lora_diag", "KaSA"],
  ["lora_velora_embed", "training state"],
]);

/**
 * Takes a tensor name of a PEFT file apart: `base_model.model.<module>.lora_A.weight`.
 *
 * The prefix may be missing or doubled, `_orig_mod.` (torch.compile) and the adapter name `default` may be left in.
 * Module names may hold "lora" themselves, so the name is split at the last `.lora_`.
 *
 * @param name The tensor's name.
 * @returns Module and part.
 */
export function parseTensorKey(name: string): TensorKey {
  let path = name.split(".").filter((segment) => segment !== "_orig_mod").join(".");
  while (path.startsWith(PREFIX)) path = path.slice(PREFIX.length);
  const sampler = path.indexOf(".lora_monteclora_sampler.");
  if (sampler >= 0) return { module: path.slice(0, sampler), part: "training state" };
  const split = path.lastIndexOf(".lora_");
  if (split <= 0) return { module: path, part: fullTensor(path) };
  const module = path.slice(0, split);
  const tail = path.slice(split + 1).split(".").filter((segment) => segment !== "default").join(".");
  const part = PARTS.get(tail) ?? "unknown";
  if (part !== "loraA" && part !== "loraB") return { module, part };
  if (module.endsWith(".base_layer")) return { module, part: "expert" };
  if (module.includes(".base_layer.")) return { module, part: "multi-head attention" };
  return { module, part };
}

function fullTensor(path: string): TensorPart {
  if (path.endsWith(".base_layer.bias")) return "base bias";
  if (path.endsWith(".base_layer.weight")) return "base weight";
  if (path.includes(".token_adapter.")) return "token rows";
  return /\.(?:weight|bias)$/.test(path) && !/\.(?:lora|hada|lokr|oft)_/.test(path) ? "full tensor" : "unknown";
}
