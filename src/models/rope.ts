/**
 * Rotary position embedding (Su et al. 2021): the angles, computed in float64 once per forward.
 *
 * @module
 */

import type { LlamaConfig } from "./llama_config.ts";

/**
 * Inverse frequencies (headDim / 2): θ^(−2i / headDim), scaled as the config says.
 *
 * @param config The model's config.
 */
export function inverseFrequencies(
  config: Pick<LlamaConfig, "headDim" | "ropeTheta" | "ropeScaling">,
): Float64Array {
  const { headDim, ropeTheta, ropeScaling: scaling } = config;
  const frequencies = new Float64Array(headDim / 2);
  for (let i = 0; i < frequencies.length; i++) {
    const frequency = ropeTheta ** (-2 * i / headDim);
    if (scaling.type === "default") frequencies[i] = frequency;
    else if (scaling.type === "linear") frequencies[i] = frequency / scaling.factor;
    else frequencies[i] = scaleLlama3(frequency, scaling);
  }
  return frequencies;
}

type Llama3Scaling = Extract<LlamaConfig["ropeScaling"], { type: "llama3" }>;

/** Llama 3.1: short waves stay, long ones are stretched by `factor`, those between are blended. */
function scaleLlama3(frequency: number, scaling: Llama3Scaling): number {
  const { factor, lowFreqFactor, highFreqFactor, originalMaxPositions } = scaling;
  const turns = originalMaxPositions * frequency / (2 * Math.PI);
  if (turns < lowFreqFactor) return frequency / factor;
  if (turns > highFreqFactor) return frequency;
  const smooth = (turns - lowFreqFactor) / (highFreqFactor - lowFreqFactor);
  return (1 - smooth) * frequency / factor + smooth * frequency;
}

/** Cosines and sines (rows, headDim / 2), row by row. */
export interface RopeRows {
  /** Cosine of position times frequency. */
  readonly cos: Float32Array;
  /** Sine of the same angle. */
  readonly sin: Float32Array;
}

/**
 * Angles of sequences of `length` positions each.
 *
 * @param frequencies From {@linkcode inverseFrequencies}.
 * @param rows Their length, and the first position of each.
 */
export function ropeRows(
  frequencies: Float64Array,
  { length, pasts }: { readonly length: number; readonly pasts: readonly number[] },
): RopeRows {
  const half = frequencies.length;
  const block = length * half;
  const cos = new Float32Array(pasts.length * block);
  const sin = new Float32Array(pasts.length * block);
  pasts.forEach((past, sequence) => {
    const start = sequence * block;
    // Sequences mostly stand at one place: their angles are computed once.
    const same = pasts.indexOf(past) * block;
    if (same < start) {
      cos.copyWithin(start, same, same + block);
      sin.copyWithin(start, same, same + block);
      return;
    }
    for (let t = 0; t < length; t++) {
      for (let i = 0; i < half; i++) {
        const angle = (past + t) * frequencies[i]!;
        cos[start + t * half + i] = Math.cos(angle);
        sin[start + t * half + i] = Math.sin(angle);
      }
    }
  });
  return { cos, sin };
}
