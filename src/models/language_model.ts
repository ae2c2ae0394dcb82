/**
 * A language model whose adapters are swapped without touching the base.
 *
 * @module
 */

import type { CacheDtype } from "../backend.ts";
import { ShapeError } from "../errors.ts";
import type { RowMix } from "../lora/selection.ts";
import { AdaptedModel, type AdaptedModelParts } from "./adapted_model.ts";
import { BatchGeneration } from "./batch_generation.ts";
import type { CausalNetwork, NetworkPass } from "./causal_network.ts";
import { Decoder } from "./decoder.ts";
import { Generation } from "./generation.ts";
import type { Gpt2Config } from "./gpt2_config.ts";
import type { GenerateBatchOptions, GenerateOptions, Logits, ModelForwardOptions } from "./language_model_options.ts";
import type { LlamaConfig } from "./llama_config.ts";
import type { Placement } from "./placement.ts";
import { encodePrompt, type Prompt } from "./prompt.ts";
import { Sampler } from "./sampler.ts";
import { checkTokenIds, flattenRows } from "./token_ids.ts";
import { findStart } from "./token_mixes.ts";

/** The numbers that define a causal language model, by its `modelType`. */
export type LanguageModelConfig = LlamaConfig | Gpt2Config;

/** What a {@linkcode LanguageModel} is made of. */
export interface LanguageModelParts extends AdaptedModelParts<CausalNetwork> {
  /** The model's numbers. */
  readonly config: LanguageModelConfig;
  /** Ids that end a text. */
  readonly eosIds: readonly number[];
  /** How `generate` stores keys and values. */
  readonly cache: CacheDtype;
}

/** New tokens for which the cache has room at first; it grows when they are more. */
const FIRST_ROOM = 256;

/** A causal language model, held once, and the adapters that answer over it. Made by {@linkcode loadModel}. */
export class LanguageModel extends AdaptedModel {
  /** The model's numbers. */
  readonly config: LanguageModelConfig;
  /** Ids that end a text. */
  readonly eosIds: readonly number[];
  /** How `generate` stores keys and values of the positions that it has seen. */
  readonly cache: CacheDtype;

  /** Takes a network whose parameters match the config. */
  constructor(parts: LanguageModelParts) {
    super(parts);
    this.config = parts.config;
    this.eosIds = parts.eosIds;
    this.cache = parts.cache;
  }

  get #placed(): Placement<CausalNetwork> {
    return this.placement as Placement<CausalNetwork>;
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
    const { backend, network, adapters } = this.#placed;
    const mixes = adapters.resolve(options.adapter, ids.length);
    const logits = await network.logits(flat, {
      ...this.#pass(mixes, ids, this.pauses(mixes, options.signal)),
      cache: null,
    });
    try {
      const values = await backend.read(logits);
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
    const { network, adapters } = this.#placed;
    const ranges = adapters.resolve(options.adapter, ids.length);
    // One for all rows: a change between two of them is a change too.
    const pause = this.pauses(ranges, options.signal);
    const losses: Float32Array[] = [];
    for (const { start, end, mix } of ranges) {
      for (const row of ids.slice(start, end)) {
        const tokens = Uint32Array.from(row);
        const pass = { ...this.#pass([{ start: 0, end: 1, mix }], [row], pause), cache: null };
        losses.push(await network.losses(tokens.subarray(0, -1), tokens.subarray(1), pass));
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
    const own = this.#prompt("generate", prompt, options);
    const { backend, network, adapters, decoders } = this.#placed;
    const mixes = adapters.resolve(options.adapter, 1);
    const decoder = new Decoder({
      backend,
      network,
      pass: this.#pass(mixes, [own.ids], this.pauses(mixes, options.signal)),
      cache: own.cache,
      live: decoders,
    });
    return new Generation({ prompt: own, eosIds: new Set(this.eosIds), onToken: options.onToken, decoder });
  }

  /**
   * Continues several prompts at once, each by its own adapter: what `generate` gives one by one, in less time, as every
   * pass over the weights serves all. The prompts may differ in length, and each ends on its own.
   *
   * @param prompts Texts or token ids, as for {@linkcode LanguageModel.generate}.
   * @param options Which adapters answer, how tokens are chosen, and when to stop; a seed is that of every prompt,
   *   without one each has its own.
   * @throws {ShapeError} If there is no prompt, or one is empty, or the adapters are not one per prompt.
   * @throws {LimitError} If one is longer than the model's context.
   * @throws {MismatchError} If an adapter's name is unknown; the message lists the known ones.
   *
   * @example
   * ```ts
   * import { folder } from "@lowrank/lora/fs";
   * import { loadModel } from "@lowrank/lora/models";
   * import assert from "node:assert/strict";
   *
   * const model = await loadModel(folder("examples/models/tiny/base"));
   * await model.loadAdapter("news", folder("examples/models/tiny/news"));
   * const texts = ["", ""];
   * const batch = model.generateBatch(["<|end|>The", "<|end|>Just"], { adapter: ["news", null], maxNewTokens: 5 });
   * for await (const { row, text } of batch) texts[row] += text;
   * assert(texts.every((text) => text.length > 0));
   * model.dispose();
   * ```
   */
  generateBatch(
    prompts: readonly (string | readonly number[])[],
    options: GenerateBatchOptions = {},
  ): BatchGeneration {
    this.requireLive();
    if (!Array.isArray(prompts)) {
      throw new TypeError(`Cannot generate a batch from ${typeof prompts}: expected an array of prompts`);
    }
    if (prompts.length === 0) {
      throw new ShapeError("Cannot generate with no prompts: expected at least one", { field: "prompts", found: 0 });
    }
    const rows = prompts.map((prompt, row) => this.#prompt(`generate row ${row}`, prompt, options));
    const { backend, network, adapters, decoders } = this.#placed;
    const mixes = adapters.resolve(options.adapter, rows.length);
    return new BatchGeneration({
      prompts: rows,
      backend,
      network,
      pass: this.#pass(mixes, rows.map(({ ids }) => ids), this.pauses(mixes, options.signal)),
      eosIds: new Set(this.eosIds),
      onToken: options.onToken,
      live: decoders,
    });
  }

  #prompt(action: string, prompt: string | readonly number[], options: GenerateBatchOptions): Prompt {
    const { chat = false, maxNewTokens = 128 } = options;
    const ids = encodePrompt(prompt, this.tokenizer, chat);
    const { layers, kvHeads, headDim, maxPositions } = this.config;
    checkTokenIds(action, ids, this.config);
    if (!Number.isInteger(maxNewTokens) || maxNewTokens < 0) {
      throw new RangeError(`Cannot generate with maxNewTokens ${maxNewTokens}: expected an integer from 0`);
    }
    // The last token of a full context is chosen, but never seen.
    const room = Math.min(maxNewTokens, maxPositions + 1 - ids.length);
    const capacity = ids.length + Math.min(room, FIRST_ROOM);
    return {
      ids,
      maxNewTokens: room,
      sampler: new Sampler(options),
      stream: this.tokenizer?.stream({ skipSpecial: true }) ?? null,
      cache: { layers, batch: 1, kvHeads, headDim, capacity, dtype: this.cache },
    };
  }

  /** A pass over these prompts: adapters with invocation tokens begin at the last of those. */
  #pass(
    mixes: readonly RowMix[],
    prompts: readonly (readonly number[])[],
    pause: NetworkPass["pause"],
  ): Omit<NetworkPass, "cache"> {
    const starts = new Map<string, number[]>();
    for (const [name] of mixes.flatMap(({ mix }) => mix)) {
      const tokens = this.adapters.get(name)?.invocationTokens;
      if (tokens && !starts.has(name)) starts.set(name, prompts.map((ids) => findStart(ids, tokens)));
    }
    return { batch: mixes.at(-1)!.end, mixes, starts, pause };
  }
}
