/**
 * What all models have in common: a base that is held once, and the adapters over it.
 *
 * @module
 */

import { Adapter, type LoraModule } from "../adapter/adapter.ts";
import type { BaseModule } from "../adapter/create_options.ts";
import { type AdapterSource, loadAdapter, type LoadAdapterOptions, subtractInitial } from "../adapter/load.ts";
import { isRepeatable } from "../adapter/variant_fields.ts";
import type { Backend, MergeLoss } from "../backend.ts";
import { DisposedError } from "../errors.ts";
import type { StoredTensor } from "../formats/dtype.ts";
import type { ReadOptions } from "../formats/source.ts";
import type { AdapterChoice, RowMix } from "../lora/selection.ts";
import type { Tokenizer } from "../text/mod.ts";
import { baseModules } from "./model_layers.ts";
import { Pace } from "./pace.ts";
import type { PlacedNetwork, Placement, ReloadOptions } from "./placement.ts";

/** What an {@linkcode AdaptedModel} is made of. */
export interface AdaptedModelParts<Network extends PlacedNetwork = PlacedNetwork> {
  /** The network on a backend, which ends with the model. */
  readonly placement: Placement<Network>;
  /** Reads the parameters once more. */
  readonly place: (options: ReloadOptions) => Promise<Placement<Network>>;
  /** Reads the weight of a module as the files have it. */
  readonly readWeight: (module: string, options: ReadOptions) => Promise<StoredTensor>;
  /** Whether the files store a matrix (in, out). */
  readonly isTransposed: (tensor: string) => boolean;
  /** Text to ids and back; null where the files have none. */
  readonly tokenizer: Tokenizer | null;
}

/** A base model, held once, and the adapters that answer over it. */
export abstract class AdaptedModel implements Disposable {
  /** Text to ids and back; null where the files have none. */
  readonly tokenizer: Tokenizer | null;
  readonly #place: AdaptedModelParts["place"];
  readonly #readWeight: AdaptedModelParts["readWeight"];
  readonly #isTransposed: AdaptedModelParts["isTransposed"];
  readonly #pace: Pace = new Pace();
  #placement: Placement;
  #reloading = false;
  #disposed = false;

  /** Takes a network whose parameters match the config. */
  constructor(parts: AdaptedModelParts) {
    this.tokenizer = parts.tokenizer;
    this.#placement = parts.placement;
    this.#place = parts.place;
    this.#readWeight = parts.readWeight;
    this.#isTransposed = parts.isTransposed;
  }

  /** Where it computes; another one after {@linkcode AdaptedModel.reload}. */
  get backend(): Backend {
    return this.#placement.backend;
  }

  /**
   * What lives there.
   *
   * @internal
   */
  protected get placement(): Placement {
    return this.#placement;
  }

  /** The loaded adapters by name. */
  get adapters(): ReadonlyMap<string, Adapter> {
    return this.#placement.adapters.loaded;
  }

  /** The layers that adapters can change, as `createAdapter({ modules: model.layers, … })` takes them. */
  get layers(): readonly BaseModule[] {
    this.requireLive();
    return baseModules(this.#placement.network.layers);
  }

  /** What is merged into the weights; null is nothing. */
  get merged(): AdapterChoice {
    return this.#placement.adapters.merged;
  }

  /**
   * Loads a PEFT adapter under a name, beside those already there. All of it finds its place, or nothing changes.
   *
   * One whose initialisation changed the base runs as plain LoRA of twice the rank: PiSSA, OLoRA and KaSA are computed
   * again from the weights of the model's files, all others need the option `initial`, or a model that is that changed
   * base, and the option `residualBase`.
   *
   * @param name The name by which it is chosen.
   * @param source Its folder, URL, files by name, or an adapter already loaded.
   * @param options Limits, what it was before training, and abort.
   * @returns The adapter as it runs.
   * @throws {MismatchError} If it does not fit this model; the error lists the names.
   * @throws {RangeError} If the name is taken.
   */
  async loadAdapter(name: string, source: AdapterSource | Adapter, options: LoadAdapterOptions = {}): Promise<Adapter> {
    this.requireLive();
    this.#placement.adapters.requireFree(name);
    const loaded = await (source instanceof Adapter ? subtractInitial(source, options) : loadAdapter(source, options));
    const adapter = isRepeatable(loaded.baseChange) ? await this.#overBase(loaded, options) : loaded;
    this.requireLive();
    return await this.#placement.adapters.add(name, adapter);
  }

  async #overBase(adapter: Adapter, options: ReadOptions): Promise<Adapter> {
    this.requireLive();
    const { toPlainLora } = await import("../adapter/to_plain.ts");
    const isTransposed = ({ name }: LoraModule) => this.#isTransposed(`${name}.weight`);
    return await toPlainLora(adapter, { weightOf: (module) => this.#readWeight(module, options), isTransposed });
  }

  /**
   * Frees the adapter of this name; false when there is none.
   *
   * @throws {RangeError} If it is merged.
   */
  unloadAdapter(name: string): boolean {
    this.requireLive();
    return this.#placement.adapters.remove(name);
  }

  /** A pause for a pass with these adapters: it refuses to go on with what others have changed meanwhile. */
  protected pauses(mixes: readonly RowMix[], signal: AbortSignal | undefined): () => Promise<void> {
    const placement = this.#placement;
    const unchanged = placement.adapters.watch(mixes);
    const check = (): void => {
      signal?.throwIfAborted();
      this.requireLive();
      if (this.#placement !== placement) throw new DisposedError("Cannot go on: the model was reloaded meanwhile");
      unchanged();
    };
    return async () => {
      check();
      await this.#pace.pause();
      check();
    };
  }

  /**
   * Folds adapters into the weights, for as long as they do not change: answers then cost what the base costs. The
   * report is that of the layer that lost the most, which only quantized ones do.
   *
   * @param adapter A name, or a mix `{ name: weight }`.
   * @throws {NumericError} If a weight would not be finite; every weight is as it was.
   * @throws {MismatchError} If a name is unknown; the message lists the known ones, or if it cannot be merged (aLoRA).
   */
  async merge(adapter: AdapterChoice): Promise<MergeLoss> {
    this.requireLive();
    const report = await this.#placement.adapters.merge(adapter);
    this.requireLive();
    return report;
  }

  /**
   * Puts all weights back, bit for bit.
   *
   * @throws {RangeError} If nothing is merged.
   */
  unmerge(): void {
    this.requireLive();
    this.#placement.adapters.unmerge();
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
    this.requireLive();
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

  /** Refuses to go on without a model. */
  protected requireLive(): void {
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
