/**
 * What a language model is asked, and what it answers.
 *
 * @module
 */

import type { ReadOptions } from "../formats/source.ts";
import type { AdapterChoice, AdapterSelection } from "../lora/selection.ts";
import type { SamplingOptions } from "./sampler.ts";

/** Which adapters answer in a forward pass. */
export interface ModelForwardOptions extends ReadOptions {
  /**
   * A name, a mix `{ name: weight }`, `null` for the base, or an array with one of these per row of ids; by default
   * the weights as they are, merged or not.
   */
  readonly adapter?: AdapterSelection | undefined;
}

/** Logits of a forward pass. */
export interface Logits {
  /** `[batch, length, vocabulary]`. */
  readonly shape: readonly [number, number, number];
  /** The logits, row-major. */
  readonly values: Float32Array;
}

/** Options of `generate`. */
export interface GenerateOptions extends SamplingOptions, ReadOptions {
  /** A name, a mix `{ name: weight }`, or `null` for the base; by default the weights as they are, merged or not. */
  readonly adapter?: AdapterChoice | undefined;
  /** Most new tokens; 128 when absent. The end of the model's context ends the text too. */
  readonly maxNewTokens?: number;
  /** The prompt is what a user says: the model's chat template is put around it. */
  readonly chat?: boolean;
  /** Called with every new id. */
  readonly onToken?: (id: number) => void;
}

/** Options of `generateBatch`. */
export interface GenerateBatchOptions extends Omit<GenerateOptions, "adapter" | "onToken"> {
  /** One choice for all prompts, or an array with one per prompt: a name, a mix `{ name: weight }`, or `null`. */
  readonly adapter?: AdapterSelection | undefined;
  /** Called with every new id and the number of its prompt. */
  readonly onToken?: (id: number, row: number) => void;
}
