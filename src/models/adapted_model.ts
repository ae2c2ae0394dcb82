/**
 * What all models have in common: a base that is held once, and the adapters over it.
 *
 * @module
 */

import { Adapter } from "../adapter/adapter.ts";
import { type AdapterSource, loadAdapter, type LoadAdapterOptions } from "../adapter/load.ts";
import type { Backend } from "../backend.ts";
import { DisposedError } from "../errors.ts";
import type { ReadOptions } from "../formats/source.ts";
import type { AdapterChoice, AdapterSelection, RowMix } from "../lora/selection.ts";
import type { Tokenizer } from "../text/mod.ts";
import { ModelAdapters } from "./model_adapters.ts";
import type { ModelLayers } from "./model_layers.ts";
import { Pace } from "./pace.ts";
import type { ModelParameters } from "./weights.ts";

/** Which adapters answer in a forward pass. */
export interface ModelForwardOptions extends ReadOptions {
  /**
   * A name, a mix `{ name: weight }`, `null` for the base, or an array with one of these per row of ids; by default
   * the weights as they are, merged or not.
   */
  readonly adapter?: AdapterSelection | undefined;
}

/** What an {@linkcode AdaptedModel} is made of. */
export interface AdaptedModelParts {
  /** Where it computes. */
  readonly backend: Backend;
  /** Whether the backend ends with the model. */
  readonly ownsBackend: boolean;
  /** The layers that adapters change. */
  readonly layers: ModelLayers;
  /** Its parameters, which end with the model. */
  readonly parameters: ModelParameters;
  /** Text to ids and back; null where the files have none. */
  readonly tokenizer: Tokenizer | null;
}

/** A base model, held once, and the adapters that answer over it. */
export abstract class AdaptedModel implements Disposable {
  /** Where it computes. */
  readonly backend: Backend;
  /** Text to ids and back; null where the files have none. */
  readonly tokenizer: Tokenizer | null;
  readonly #parts: AdaptedModelParts;
  readonly #adapters: ModelAdapters;
  readonly #pace: Pace = new Pace();
  #disposed = false;

  /** Takes layers of parameters that match the config. */
  constructor(parts: AdaptedModelParts) {
    this.backend = parts.backend;
    this.tokenizer = parts.tokenizer;
    this.#parts = parts;
    this.#adapters = new ModelAdapters(parts.layers);
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
    this.requireLive();
    this.#adapters.requireFree(name);
    const adapter = source instanceof Adapter ? source : await loadAdapter(source, options);
    this.requireLive();
    await this.#adapters.add(name, adapter);
    return adapter;
  }

  /**
   * Frees the adapter of this name; false when there is none.
   *
   * @throws {RangeError} If it is merged.
   */
  unloadAdapter(name: string): boolean {
    this.requireLive();
    return this.#adapters.remove(name);
  }

  /** Resolves a selection for `rows` sequences; none is the weights as they are. */
  protected resolve(selection: AdapterSelection | undefined, rows: number): RowMix[] {
    return this.#adapters.resolve(selection, rows);
  }

  /** A pause for a pass with these adapters: it refuses to go on with what others have changed meanwhile. */
  protected pauses(mixes: readonly RowMix[], signal: AbortSignal | undefined): () => Promise<void> {
    const unchanged = this.#adapters.watch(mixes);
    const check = (): void => {
      signal?.throwIfAborted();
      this.requireLive();
      unchanged();
    };
    return async () => {
      check();
      await this.#pace.pause();
      check();
    };
  }

  /**
   * Folds adapters into the weights, for as long as they do not change: answers then cost what the base costs.
   *
   * @param adapter A name, or a mix `{ name: weight }`.
   * @throws {NumericError} If a weight would not be finite; every weight is as it was.
   * @throws {MismatchError} If a name is unknown; the message lists the known ones, or if it cannot be merged (aLoRA).
   */
  async merge(adapter: AdapterChoice): Promise<void> {
    this.requireLive();
    await this.#adapters.merge(adapter);
    this.requireLive();
  }

  /**
   * Puts all weights back, bit for bit.
   *
   * @throws {RangeError} If nothing is merged.
   */
  unmerge(): void {
    this.requireLive();
    this.#adapters.unmerge();
  }

  /** Refuses to go on without a model. */
  protected requireLive(): void {
    if (this.#disposed) throw new DisposedError("Cannot use a model: it is disposed");
  }

  /** Frees what a kind of model holds beside layers and parameters. */
  protected abstract release(): void;

  /** Frees everything that the model holds, and its backend if it opened that itself. */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.release();
    this.#adapters.dispose();
    this.#parts.parameters.dispose();
    if (this.#parts.ownsBackend) this.backend.dispose();
  }

  /** The same as `dispose()`. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}
