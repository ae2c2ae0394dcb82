/**
 * A language model whose adapters are swapped without touching the base.
 *
 * @module
 */

import type { ReadOptions } from "../formats/source.ts";
import type { AdapterChoice, RowMix } from "../lora/selection.ts";
import { AdaptedModel, type AdaptedModelParts, type ModelForwardOptions } from "./adapted_model.ts";
import type { CausalNetwork, NetworkPass } from "./causal_network.ts";
import { Decoder } from "./decoder.ts";
import { Generation } from "./generation.ts";
import type { Gpt2Config } from "./gpt2_config.ts";
import type { LlamaConfig } from "./llama_config.ts";
import { Sampler, type SamplingOptions } from "./sampler.ts";
import { checkTokenIds, flattenRows } from "./token_ids.ts";
import { findStart } from "./token_mixes.ts";

/** The numbers that define a causal language model, by its `modelType`. */
export type LanguageModelConfig = LlamaConfig | Gpt2Config;

/** Logits of a forward pass. */
export interface Logits {
  /** `[batch, length, vocabulary]`. */
  readonly shape: readonly [number, number, number];
  /** The logits, row-major. */
  readonly values: Float32Array;
}

/** Options of {@linkcode LanguageModel.generate}. */
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

/** What a {@linkcode LanguageModel} is made of. */
export interface LanguageModelParts extends Omit<AdaptedModelParts, "layers"> {
  /** The network. */
  readonly network: CausalNetwork;
  /** The model's numbers. */
  readonly config: LanguageModelConfig;
  /** Ids that end a text. */
  readonly eosIds: readonly number[];
}

/** New tokens for which the cache has room at first; it grows when they are more. */
const FIRST_ROOM = 256;

/** A causal language model, held once, and the adapters that answer over it. Made by {@linkcode loadModel}. */
export class LanguageModel extends AdaptedModel {
  /** The model's numbers. */
  readonly config: LanguageModelConfig;
  /** Ids that end a text. */
  readonly eosIds: readonly number[];
  readonly #network: CausalNetwork;
  readonly #decoders: Set<Decoder> = new Set();

  /** Takes a network whose parameters match the config. */
  constructor(parts: LanguageModelParts) {
    super({ ...parts, layers: parts.network.layers });
    this.config = parts.config;
    this.eosIds = parts.eosIds;
    this.#network = parts.network;
  }

  /**
   * Logits (batch, length, vocabulary) of every position.
   *
   * @param ids Token ids, one row per sequence; all rows have one length.
   * @param options Which adapters answer, and abort.
   * @throws {ShapeError} If there are no ids, or rows of several lengths.
   * @throws {LimitError} If the rows are longer than the model's context.
   * @throws {MismatchError} If an adapter's name is unknown; the message lists the known ones.
   */
  async forward(ids: readonly (readonly number[])[], options: ModelForwardOptions = {}): Promise<Logits> {
    this.requireLive();
    const flat = flattenRows("run forward", ids, this.config);
    const mixes = this.resolve(options.adapter, ids.length);
    const logits = await this.#network.logits(flat, { ...this.#pass(mixes, ids, options.signal), cache: null });
    try {
      const values = await this.backend.read(logits);
      return { shape: [ids.length, flat.length / ids.length, this.config.vocabSize], values };
    } finally {
      logits.dispose();
    }
  }

  /**
   * Losses −log p(next token) per row, one for each token but the first. exp of their mean is the perplexity.
   *
   * @param ids Token ids, one row per sequence; rows may differ in length.
   * @param options Which adapters answer, and abort.
   * @throws {ShapeError} If a row is empty.
   * @throws {MismatchError} If an adapter's name is unknown; the message lists the known ones.
   */
  async loss(ids: readonly (readonly number[])[], options: ModelForwardOptions = {}): Promise<Float32Array[]> {
    this.requireLive();
    for (const row of ids) checkTokenIds("compute a loss", row, this.config);
    const ranges = this.resolve(options.adapter, ids.length);
    const losses: Float32Array[] = [];
    for (const { start, end, mix } of ranges) {
      for (const row of ids.slice(start, end)) {
        const tokens = Uint32Array.from(row);
        const pass = { ...this.#pass([{ start: 0, end: 1, mix }], [row], options.signal), cache: null };
        losses.push(await this.#network.losses(tokens.subarray(0, -1), tokens.subarray(1), pass));
      }
    }
    return losses;
  }

  /**
   * Continues a prompt. Text comes in pieces as it is computed; `tokens` of the returned object are the new ids.
   *
   * @param prompt Text, tokenized as it stands with special tokens recognised, or token ids. The text begins with the
   *   beginning-of-text token where the model's tokenizer adds it. Special tokens in the answer are left out.
   * @param options Which adapter answers, how tokens are chosen, and when to stop.
   * @throws {ShapeError} If the prompt is empty.
   * @throws {LimitError} If it is longer than the model's context.
   * @throws {MismatchError} If an adapter's name is unknown; the message lists the known ones.
   */
  generate(prompt: string | readonly number[], options: GenerateOptions = {}): Generation {
    this.requireLive();
    const ids = this.#encode(prompt, options.chat ?? false);
    checkTokenIds("generate", ids, this.config);
    const { maxNewTokens = 128 } = options;
    if (!Number.isInteger(maxNewTokens) || maxNewTokens < 0) {
      throw new RangeError(`Cannot generate with maxNewTokens ${maxNewTokens}: expected an integer from 0`);
    }
    const { layers, kvHeads, headDim, maxPositions } = this.config;
    // The last token of a full context is chosen, but never seen.
    const room = Math.min(maxNewTokens, maxPositions + 1 - ids.length);
    const decoder = new Decoder({
      backend: this.backend,
      network: this.#network,
      pass: this.#pass(this.resolve(options.adapter, 1), [ids], options.signal),
      cache: { layers, batch: 1, kvDim: kvHeads * headDim, capacity: ids.length + Math.min(room, FIRST_ROOM) },
      live: this.#decoders,
    });
    return new Generation({
      prompt: ids,
      maxNewTokens: room,
      eosIds: new Set(this.eosIds),
      sampler: new Sampler(options),
      stream: this.tokenizer?.stream({ skipSpecial: true }) ?? null,
      onToken: options.onToken,
      decoder,
    });
  }

  #encode(prompt: string | readonly number[], chat: boolean): readonly number[] {
    if (typeof prompt !== "string" && !Array.isArray(prompt)) {
      throw new TypeError(`Cannot generate from ${typeof prompt}: the prompt is text or an array of token ids`);
    }
    if (typeof prompt !== "string") {
      if (chat) throw new TypeError("Cannot generate a chat answer from token ids: chat needs the prompt as text");
      return [...prompt];
    }
    if (!this.tokenizer) {
      throw new TypeError("Cannot generate from text: this model has no tokenizer, pass token ids");
    }
    if (chat) return this.tokenizer.chat([{ role: "user", content: prompt }]);
    const { addsBos, bosId } = this.tokenizer;
    const ids = this.tokenizer.encode(prompt);
    // A text that begins with it already gets no second one, and an empty one stays empty.
    return addsBos && bosId !== null && ids.length > 0 && ids[0] !== bosId ? [bosId, ...ids] : ids;
  }

  /** A pass over these prompts: adapters with invocation tokens begin at the last of those. */
  #pass(
    mixes: readonly RowMix[],
    prompts: readonly (readonly number[])[],
    signal: AbortSignal | undefined,
  ): Omit<NetworkPass, "cache"> {
    const starts = new Map<string, number[]>();
    for (const [name] of mixes.flatMap(({ mix }) => mix)) {
      const tokens = this.adapters.get(name)?.invocationTokens;
      if (tokens && !starts.has(name)) starts.set(name, prompts.map((prompt) => findStart(prompt, tokens)));
    }
    return { batch: mixes.at(-1)!.end, mixes, starts, pause: this.pauses(mixes, signal) };
  }

  /** Frees the caches of generations that still run. */
  protected override release(): void {
    for (const decoder of this.#decoders) decoder.dispose();
  }
}
