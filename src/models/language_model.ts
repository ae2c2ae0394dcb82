/**
 * A language model whose adapters are swapped without touching the base.
 *
 * @module
 */

import { Adapter } from "../adapter/adapter.ts";
import { type AdapterSource, loadAdapter, type LoadAdapterOptions } from "../adapter/load.ts";
import type { Backend, MergeLoss } from "../backend.ts";
import { DisposedError } from "../errors.ts";
import type { AdapterChoice, RowMix } from "../lora/selection.ts";
import type { Tokenizer } from "../text/mod.ts";
import { Decoder } from "./decoder.ts";
import { Generation } from "./generation.ts";
import type { GenerateOptions, Logits, ModelForwardOptions } from "./language_model_options.ts";
import type { LlamaPass } from "./llama.ts";
import type { LlamaConfig } from "./llama_config.ts";
import { Pace } from "./pace.ts";
import type { Placement, ReloadOptions } from "./placement.ts";
import { encodePrompt } from "./prompt.ts";
import { Sampler } from "./sampler.ts";
import { checkTokenIds, flattenRows } from "./token_ids.ts";

/** What a {@linkcode LanguageModel} is made of. */
export interface LanguageModelParts {
  /** The model's numbers. */
  readonly config: LlamaConfig;
  /** Its parameters on a backend, which end with the model. */
  readonly placement: Placement;
  /** Reads the parameters once more. */
  readonly place: (options: ReloadOptions) => Promise<Placement>;
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
  /** Text to ids and back; null where the files have none. */
  readonly tokenizer: Tokenizer | null;
  /** Ids that end a text. */
  readonly eosIds: readonly number[];
  readonly #place: LanguageModelParts["place"];
  readonly #pace: Pace = new Pace();
  #placement: Placement;
  #reloading = false;
  #disposed = false;

  /** Takes parameters that match the config. */
  constructor(parts: LanguageModelParts) {
    this.config = parts.config;
    this.tokenizer = parts.tokenizer;
    this.eosIds = parts.eosIds;
    this.#placement = parts.placement;
    this.#place = parts.place;
  }

  /** Where it computes; another one after {@linkcode LanguageModel.reload}. */
  get backend(): Backend {
    return this.#placement.backend;
  }

  get #adapters(): Placement["adapters"] {
    return this.#placement.adapters;
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
    const { backend, llama } = this.#placement;
    const logits = await llama.logits(flat, { ...this.#pass(mixes, options.signal), cache: null });
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
    this.#requireLive();
    for (const row of ids) checkTokenIds("compute a loss", row, this.config);
    const ranges = this.#adapters.resolve(options.adapter, ids.length);
    const { llama } = this.#placement;
    const losses: Float32Array[] = [];
    for (const { start, end, mix } of ranges) {
      const pass = { ...this.#pass([{ start: 0, end: 1, mix }], options.signal), cache: null };
      for (const row of ids.slice(start, end)) {
        const tokens = Uint32Array.from(row);
        losses.push(await llama.losses(tokens.subarray(0, -1), tokens.subarray(1), pass));
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
    const ids = encodePrompt(prompt, this.tokenizer, options.chat ?? false);
    checkTokenIds("generate", ids, this.config);
    const { maxNewTokens = 128 } = options;
    if (!Number.isInteger(maxNewTokens) || maxNewTokens < 0) {
      throw new RangeError(`Cannot generate with maxNewTokens ${maxNewTokens}: expected an integer from 0`);
    }
    const { layers, kvHeads, headDim, maxPositions } = this.config;
    // The last token of a full context is chosen, but never seen.
    const room = Math.min(maxNewTokens, maxPositions + 1 - ids.length);
    const { backend, llama, decoders } = this.#placement;
    const decoder = new Decoder({
      backend,
      llama,
      pass: this.#pass(this.#adapters.resolve(options.adapter, 1), options.signal),
      cache: { layers, batch: 1, kvDim: kvHeads * headDim, capacity: ids.length + Math.min(room, FIRST_ROOM) },
      live: decoders,
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

  /** Refuses to go on with what others have changed meanwhile. */
  #pass(mixes: readonly RowMix[], signal: AbortSignal | undefined): Omit<LlamaPass, "cache"> {
    const placement = this.#placement;
    const unchanged = placement.adapters.watch(mixes);
    const check = (): void => {
      signal?.throwIfAborted();
      this.#requireLive();
      if (this.#placement !== placement) throw new DisposedError("Cannot go on: the model was reloaded meanwhile");
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

  /**
   * Reads the weights once more from where they came from, and puts adapters and merges back: what brings a model back
   * whose GPU was lost, and every call of which rejects with `DeviceLostError` since. It moves one to another backend
   * too. Nothing else can be done with the model meanwhile; if it fails, the model is as it was.
   *
   * @param options Where to compute from now on, progress and abort.
   * @throws {TypeError} If the backend is the caller's, and no other one is given.
   */
  async reload(options: ReloadOptions = {}): Promise<void> {
    this.#requireLive();
    const last = this.#placement;
    if (!options.backend && !last.ownsBackend) {
      throw new TypeError("Cannot reload a model that was given its backend: expected another one");
    }
    last.adapters.requireSettled("reload");
    this.#reloading = true;
    try {
      const next = await this.#place(options);
      try {
        await next.adopt(last);
        if (this.#disposed) throw new DisposedError("Cannot reload a model: it is disposed");
      } catch (error) {
        next.dispose();
        throw error;
      }
      this.#placement = next;
      last.dispose();
    } finally {
      this.#reloading = false;
    }
  }

  #requireLive(): void {
    if (this.#disposed) throw new DisposedError("Cannot use a model: it is disposed");
    if (this.#reloading) throw new RangeError("Cannot use a model while it is reloaded: await reload() first");
  }

  /** Frees everything that the model holds, and its backend if it opened that itself. */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#placement.dispose();
  }

  /** The same as `dispose()`. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}
