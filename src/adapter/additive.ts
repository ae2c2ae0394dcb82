import { MismatchError } from "../errors.ts";
import { quote } from "../formats/quote.ts";
import type { Adapter, LoraModule } from "./adapter.ts";
import { isBaseTable } from "./base_tables.ts";
import { baseFieldOf } from "./variant_fields.ts";

/** What an adapter may be more than sums of B A, and B's biases, over the base as it was published. */
type Trait = readonly [field: string, found: unknown, isThere: boolean];

/**
 * Refuses an adapter whose effect is no sum: ΔW = s B A of linear layers, embeddings and convolutions without groups, and
 * s b of `lora_bias`, can be added up, scaled and approximated; all else cannot.
 *
 * @param adapter The adapter.
 * @param action What is to be done with it, for the message: `"combine"`.
 * @throws {MismatchError} If it is more; the error names the field or the module.
 */
export function requireAdditive(adapter: Adapter, action: string): void {
  const { config, tokenRows, invocationTokens, baseChange } = adapter;
  const whole = [...adapter.replacements.keys()].filter((tensor) => !isBaseTable(adapter, tensor));
  const traits: readonly Trait[] = [
    [baseChange === null ? "init_lora_weights" : baseFieldOf(baseChange), baseChange, baseChange !== null],
    ["use_dora", true, config.useDora],
    ["alora_invocation_tokens", invocationTokens, invocationTokens !== null],
    ["layer_replication", config.layerReplication, config.layerReplication !== null],
    ["ensure_weight_tying", true, config.ensureWeightTying],
    ["trainable_token_indices", [...tokenRows.keys()], tokenRows.size > 0],
    [config.bias === "none" ? "modules_to_save" : "bias", whole, whole.length > 0],
  ];
  for (const [field, found, isThere] of traits) if (isThere) throw refuse(adapter, action, { field, found });
  for (const module of adapter.modules.values()) {
    const what = nonAdditivePart(module);
    if (what !== undefined) {
      throw refuse(adapter, action, { field: `${what} of module ${quote(module.name)}`, found: what });
    }
  }
}

function nonAdditivePart({ kind, rank, loraB, magnitude, diagonal }: LoraModule): string | undefined {
  if (kind === "experts") return "fused experts";
  if (kind === "conv" && loraB.shape[1] !== rank) return "groups";
  if (magnitude) return "magnitude";
  return diagonal && "diagonal";
}

/** What helps: extraction sees matrices of layers that are in both checkpoints, with the shapes of the base. */
function remedyFor(field: string): string {
  if (/^(?:init_lora_weights|kasa_config)/.test(field)) {
    return "; make it plain LoRA first, by toPlainLora() (lora convert --plain or --initial)";
  }
  if (/^alora/.test(field)) return "; run it as it is, beside the others";
  if (/^(?:layer_replication|fused experts|groups)/.test(field)) return "; run or merge it as it is, with its weight";
  return "; merge it into a checkpoint, then make an adapter of the difference, by extractAdapter() (lora extract)";
}

function refuse(
  { name }: Adapter,
  action: string,
  { field, found }: { readonly field: string; readonly found: unknown },
): MismatchError {
  const message = `Cannot ${action} ${quote(name)} with ${field}: expected updates that are sums, s B A and s b`;
  return new MismatchError(message + remedyFor(field), {
    code: "unsupported",
    file: name,
    field,
    found,
    expected: "plain LoRA",
  });
}
