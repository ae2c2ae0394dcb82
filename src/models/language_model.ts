/**
 * A language model whose adapters are swapped without touching the base.
 *
 * @module
 */

import { Adapter } from "../adapter/adapter.ts";
import { type AdapterSource, loadAdapter, type LoadAdapterOptions } from "../adapter/load.ts";
import type { Backend, MergeLoss } from "../backend.ts";
import { DisposedError } from "../errors.ts";
import type { ReadOptions } from "../formats/source.ts";
import type { AdapterChoice, AdapterSelection, RowMix } from "../lora/selection.ts";
import type { Tokenizer } from "../text/mod.ts";
import { Decoder } from "./decoder.ts";
import { Generation } from "./generation.ts";
import { Llama, type LlamaPass } from "./llama.ts";
import type { LlamaConfig } from "./llama_config.ts";
import { ModelAdapters } from "./model_adapters.ts";
import { Pace } from "./pace.ts";
import { Sampler, type SamplingOptions } from "./sampler.ts";
import { checkTokenIds, flattenRows } from "./token_ids.ts";
import type { ModelParameters } from "./weights.ts";

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
export interface LanguageModelParts {
  /** Where it computes. */
  readonly backend: Backend;
  /** Whether the backend ends with the model. */
  readonly ownsBackend: boolean;
  /** The model's numbers. */
  readonly config: LlamaConfig;
  /** Its parameters, which end with the model. */
  readonly parameters: ModelParameters;
  /** Text to ids and back; null where the files have none. */
  readonly tokenizer: Tokenizer | null;
  /** Ids that end a text. */
  readonly eosIds: readonly number[];
}

/** New tokens for which the cache has room at first; it grows when they are more. */
const FIRST_ROOM = 256;

/** A base model, held once, and the adapters that answer over it. Made by {@linkcode loadModel}. */
export class LanguageModel implements Disposable {
  /** The model's numbers. */
  readonly config: LlamaConfig;
  /** Where it computes. */
  readonly backend: Backend;
  /** Text to ids and back; null where the files have none. */
  readonly tokenizer: Tokenizer | null;
  /** Ids that end a text. */
  readonly eosIds: readonly number[];
  readonly #parts: LanguageModelParts;
  readonly #llama: Llama;
  readonly #adapters: ModelAdapters;
  readonly #decoders: Set<Decoder> = new Set();
  readonly #pace: Pace = new Pace();
  #disposed = false;

  /** Takes parameters that match the config. */
  constructor(parts: LanguageModelParts) {
    this.config = parts.config;
    this.backend = parts.backend;
    this.tokenizer = parts.tokenizer;
    this.eosIds = parts.eosIds;
    this.#parts = parts;
    this.#llama = new Llama(parts.backend, parts.config, parts.parameters);
    this.#adapters = new ModelAdapters(this.#llama.modules);
  }

  /** The loaded adapters by name. */
  get adapters(): ReadonlyMap<string, Adapter> {
    return this.#adapters.loaded;
  }

  /** What is merged into the weights; null is nothing. */
  get merged(): AdapterChoice {
    return this.#adapters.merged;
  }

  /**
   * Loads a PEFT adapter under a name, beside those already there. All of it finds its place, or nothing changes.
   *
   * @param name The name by which it is chosen.
   * @param source Its folder, URL, files by name, or an adapter already loaded.
   * @param options Limits and abort.
   * @throws {MismatchError} If it does not fit this model; the error lists the names.
   * @throws {RangeError} If the name is taken.
   */
  async loadAdapter(name: string, source: AdapterSource | Adapter, options: LoadAdapterOptions = {}): Promise<Adapter> {
    this.#requireLive();
    this.#adapters.requireFree(name);
    const adapter = source instanceof Adapter ? source : await loadAdapter(source, options);
    this.#requireLive();
    this.#adapters.add(name, adapter);
    return adapter;
  }

  /**
   * Frees the adapter of this name; false when there is none.
   *
   * @throws {RangeError} If it is merged.
   */
  unloadAdapter(name: string): boolean {
    this.#requireLive();
    return this.#adapters.remove(name);
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
    this.#requireLive();
    const flat = flattenRows("run forward", ids, this.config);
    const mixes = this.#adapters.resolve(options.adapter, ids.length);
    const logits = await this.#llama.logits(flat, { ...this.#pass(mixes, options.signal), cache: null });
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
    this.#requireLive();
    for (const row of ids) checkTokenIds("compute a loss", row, this.config);
    const ranges = this.#adapters.resolve(options.adapter, ids.length);
    const losses: Float32Array[] = [];
    for (const { start, end, mix } of ranges) {
      const pass = { ...this.#pass([{ start: 0, end: 1, mix }], options.signal), cache: null };
      for (const row of ids.slice(start, end)) {
        const tokens = Uint32Array.from(row);
        losses.push(await this.#llama.losses(tokens.subarray(0, -1), tokens.subarray(1), pass));
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
    this.#requireLive();
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
      llama: this.#llama,
      pass: this.#pass(this.#adapters.resolve(options.adapter, 1), options.signal),
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

  /** Refuses to go on with what others have changed meanwhile. */
  #pass(mixes: readonly RowMix[], signal: AbortSignal | undefined): Omit<LlamaPass, "cache"> {
    const unchanged = this.#adapters.watch(mixes);
    const check = (): void => {
      signal?.throwIfAborted();
      this.#requireLive();
      unchanged();
    };
    const pause = async (): Promise<void> => {
      check();
      await this.#pace.pause();
      check();
    };
    return { batch: mixes.at(-1)!.end, mixes, pause };
  }

  /**
   * Folds adapters into the weights, for as long as they do not change: answers then cost what the base costs. The
   * report is that of the layer that lost the most, which only quantized ones do.
   *
   * @param adapter A name, or a mix `{ name: weight }`.
   * @throws {NumericError} If a weight would not be finite; every weight is as it was.
   * @throws {MismatchError} If a name is unknown; the message lists the known ones.
   */
  async merge(adapter: AdapterChoice): Promise<MergeLoss> {
    this.#requireLive();
    const report = await this.#adapters.merge(adapter);
    this.#requireLive();
    return report;
  }

  /**
   * Puts all weights back, bit for bit.
   *
   * @throws {RangeError} If nothing is merged.
   */
  unmerge(): void {
    this.#requireLive();
    this.#adapters.unmerge();
  }

  #requireLive(): void {
    if (this.#disposed) throw new DisposedError("Cannot use a model: it is disposed");
  }

  /** Frees everything that the model holds, and its backend if it opened that itself. */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    for (const decoder of this.#decoders) decoder.dispose();
    this.#adapters.dispose();
    this.#parts.parameters.dispose();
    if (this.#parts.ownsBackend) this.backend.dispose();
  }

  /** The same as `dispose()`. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}
