import type { FusedLayer } from "./fused.ts";

const DOUBLE: readonly (readonly [whole: string, parts: readonly string[]])[] = [
  ["img_attn.qkv", ["attn.to_q", "attn.to_k", "attn.to_v"]],
  ["txt_attn.qkv", ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"]],
  ["img_attn.proj", ["attn.to_out.0"]],
  ["txt_attn.proj", ["attn.to_add_out"]],
  ["img_mlp.0", ["ff.net.0.proj"]],
  ["img_mlp.2", ["ff.net.2"]],
  ["txt_mlp.0", ["ff_context.net.0.proj"]],
  ["txt_mlp.2", ["ff_context.net.2"]],
  ["img_mod.lin", ["norm1.linear"]],
  ["txt_mod.lin", ["norm1_context.linear"]],
];
const SINGLE: typeof DOUBLE = [
  ["linear1", ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"]],
  ["linear2", ["proj_out"]],
  ["modulation.lin", ["norm.linear"]],
];

/** The blocks of Flux: Black Forest Labs' names, which sd-scripts and ComfyUI have, and diffusers' names for the parts. */
export const FLUX_LAYERS: readonly FusedLayer[] = [
  ...DOUBLE.map(([whole, parts]) => ({
    whole: `double_blocks.*.${whole}`,
    parts: parts.map((part) => `transformer_blocks.*.${part}`),
  })),
  ...SINGLE.map(([whole, parts]) => ({
    whole: `single_blocks.*.${whole}`,
    parts: parts.map((part) => `single_transformer_blocks.*.${part}`),
    restLast: parts.length > 1,
  })),
];
