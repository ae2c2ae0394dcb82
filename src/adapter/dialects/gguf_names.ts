/**
 * GGUF's names of linear layers, both ways, by architecture.
 *
 * @module
 */

/** A family of models with the same names. */
interface Architecture {
  /** Names in a layer: Hugging Face's, then GGUF's. */
  readonly layer: ReadonlyMap<string, string>;
  /** Whether the rows of q and k are in pairs. */
  readonly pairs: boolean;
}

const ATTENTION = [["self_attn.o_proj", "attn_output"]] as const;
const SPLIT_ATTENTION = [
  ["self_attn.q_proj", "attn_q"],
  ["self_attn.k_proj", "attn_k"],
  ["self_attn.v_proj", "attn_v"],
  ...ATTENTION,
] as const;
const LLAMA = new Map([
  ...SPLIT_ATTENTION,
  ["mlp.gate_proj", "ffn_gate"],
  ["mlp.up_proj", "ffn_up"],
  ["mlp.down_proj", "ffn_down"],
]);
const PHI3 = new Map([
  ["self_attn.qkv_proj", "attn_qkv"],
  ...ATTENTION,
  ["mlp.gate_up_proj", "ffn_up"],
  ["mlp.down_proj", "ffn_down"],
]);

const ARCHITECTURES: ReadonlyMap<string, Architecture> = new Map([
  ["llama", { layer: LLAMA, pairs: true }],
  ["qwen2", { layer: LLAMA, pairs: false }],
  ["qwen3", { layer: LLAMA, pairs: false }],
  ["gemma", { layer: LLAMA, pairs: false }],
  ["gemma2", { layer: LLAMA, pairs: false }],
  ["gemma3", { layer: LLAMA, pairs: false }],
  ["phi3", { layer: PHI3, pairs: false }],
]);

/** Names of `config.json` for architectures that GGUF calls otherwise. */
const MODEL_TYPES: ReadonlyMap<string, string> = new Map([["mistral", "llama"], ["gemma3_text", "gemma3"]]);

const EMBEDDING = "model.embed_tokens";

/** The architectures whose names are known. */
export const GGUF_ARCHITECTURES: readonly string[] = [...ARCHITECTURES.keys()];

/**
 * Finds the architecture of a model type.
 *
 * @param modelType `model_type` of `config.json`.
 * @returns The architecture's name in GGUF files, or undefined.
 */
export function ggufArchitecture(modelType: string): string | undefined {
  const name = MODEL_TYPES.get(modelType) ?? modelType;
  return ARCHITECTURES.has(name) ? name : undefined;
}

/**
 * Tells whether an architecture's q and k have the rows of every head in pairs.
 *
 * @param architecture Its name in GGUF files.
 * @returns True for Llama's family.
 */
export function hasPairedRows(architecture: string): boolean {
  return ARCHITECTURES.get(architecture)?.pairs ?? false;
}

/**
 * Translates a module path: `model.layers.3.self_attn.q_proj` is `blk.3.attn_q.weight`.
 *
 * @param path Path of the module.
 * @param architecture The architecture's name in GGUF files.
 * @returns The tensor's name, or undefined for a module without one.
 */
export function ggufTensorName(path: string, architecture: string): string | undefined {
  if (path === "lm_head") return "output.weight";
  if (path === EMBEDDING) return "token_embd.weight";
  const [, layer, part] = /^model\.layers\.(\d+)\.(.+)$/.exec(path) ?? [];
  const name = part === undefined ? undefined : ARCHITECTURES.get(architecture)?.layer.get(part);
  return name === undefined ? undefined : `blk.${layer}.${name}.weight`;
}

/**
 * Translates a tensor name back.
 *
 * @param tensor The tensor's name: `blk.3.attn_q.weight`.
 * @param architecture The architecture's name in GGUF files.
 * @returns Path of the module, or undefined for a name that no linear layer has.
 */
export function modulePath(tensor: string, architecture: string): string | undefined {
  if (tensor === "output.weight") return "lm_head";
  if (tensor === "token_embd.weight") return EMBEDDING;
  const [, layer, part] = /^blk\.(\d+)\.(\w+)\.weight$/.exec(tensor) ?? [];
  for (const [name, own] of ARCHITECTURES.get(architecture)?.layer ?? []) {
    if (own === part) return `model.layers.${layer}.${name}`;
  }
  return undefined;
}
