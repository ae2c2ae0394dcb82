/** What a tensor of a PEFT file is to a module. */
export type ModulePart = "loraA" | "loraB" | "embeddingA" | "embeddingB" | "loraBias" | "magnitude" | "diagonal";

/** What a tensor of a PEFT file is: a part of a module, rows of a table, a full tensor, or of use in training only. */
export type TensorPart = ModulePart | "token rows" | "full tensor" | "training state" | "unknown";

/** A tensor's name, taken apart. */
export interface TensorKey {
  /** Path of the module, with the `base_layer` that PEFT may put into it; the tensor's name in the base if it is full. */
  readonly module: string;
  /** What the tensor is to the module. */
  readonly part: TensorPart;
}

const PREFIX = "base_model.model.";

const PARTS: ReadonlyMap<string, TensorPart> = new Map<string, TensorPart>([
  ["lora_A.weight", "loraA"],
  ["lora_B.weight", "loraB"],
  ["lora_B.bias", "loraBias"],
  ["lora_embedding_A", "embeddingA"],
  ["lora_embedding_B", "embeddingB"],
  ["lora_magnitude_vector", "magnitude"],
  ["lora_magnitude_vector.weight", "magnitude"],
  ["lora_diag", "diagonal"],
  ["lora_velora_embed", "training state"],
]);
const TOKEN_ROWS = ".token_adapter.trainable_tokens_delta";
/** Copies of what the base had, which PEFT may leave beside what replaces it. */
const ORIGINALS = /\.(?:original_module\.|token_adapter\.(?:trainable_tokens_original|token_indices)\b)/;
/** What PEFT wraps around a parameter that is stored in full. */
const WRAPPERS = /\.(?:(?:token_adapter\.)?base_layer|modules_to_save(?:\.default)?)(\.[^.]+)$/;
const FOREIGN = /\.(?:lora|hada|lokr|oft|ia3)_/;

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
  if (split <= 0) return fullTensor(path);
  const tail = path.slice(split + 1).split(".").filter((segment) => segment !== "default").join(".");
  return { module: path.slice(0, split), part: PARTS.get(tail) ?? "unknown" };
}

function fullTensor(path: string): TensorKey {
  const bare = path.replace(/\.default$/, "");
  if (bare.endsWith(TOKEN_ROWS)) return { module: bare.slice(0, -TOKEN_ROWS.length), part: "token rows" };
  if (ORIGINALS.test(path)) return { module: path, part: "training state" };
  return { module: path.replace(WRAPPERS, "$1"), part: FOREIGN.test(path) ? "unknown" : "full tensor" };
}
