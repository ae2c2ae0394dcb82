import type { FloatDtype } from "../formats/dtype.ts";

/** Element type of a merged checkpoint. */
export type MergeDtype = "f32" | "bf16" | "f16";

/** The stored dtype of each choice, and PyTorch's name for it. */
export const MERGE_DTYPES: Readonly<Record<MergeDtype, { readonly stored: FloatDtype; readonly torch: string }>> = {
  f32: { stored: "F32", torch: "float32" },
  bf16: { stored: "BF16", torch: "bfloat16" },
  f16: { stored: "F16", torch: "float16" },
};
