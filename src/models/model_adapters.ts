/**
 * The adapters of a model: in all layers, or in none.
 *
 * @module
 */

import type { Adapter } from "../adapter/adapter.ts";
import type { MergeLoss } from "../backend.ts";
import { DisposedError, MismatchError } from "../errors.ts";
import type { LoraLayer } from "../lora/layer.ts";
import { type AdapterChoice, type AdapterSelection, resolveChoice, resolveSelection } from "../lora/selection.ts";
import type { Mix, RowMix } from "../lora/selection.ts";
import { placeAdapter } from "./adapter_placement.ts";
import type { ModelLayers } from "./model_layers.ts";

/** Loads, chooses and merges adapters over the layers of a model. */
export class ModelAdapters {
  readonly #layers: ModelLayers;
  readonly #loaded: Map<string, Adapter> = new Map();
  readonly #loading: Set<string> = new Set();
  #merged: AdapterChoice = null;
  #merging = false;
  #disposed = false;
  /** Grows with every merge and unmerge: what was begun before must not go on. */
  #epoch = 0;

  /** Works on these layers. */
  constructor(layers: ModelLayers) {
    this.#layers = layers;
  }

  /** The loaded adapters by name. */
  get loaded(): ReadonlyMap<string, Adapter> {
    return this.#loaded;
  }

  /** What is merged into the weights; null is nothing. */
  get merged(): AdapterChoice {
    return this.#merged;
  }

  /**
   * Refuses a name that is taken.
   *
   * @throws {RangeError} If it is.
   */
  requireFree(name: string): void {
    if (typeof name !== "string") throw new TypeError(`Cannot load an adapter as ${typeof name}: its name is a string`);
    if (this.#loaded.has(name) || this.#loading.has(name)) {
      throw new RangeError(`Cannot load adapter "${name}" twice: unload it first, or give another name`);
    }
  }

  /**
   * Gives every layer what the adapter has for it.
   *
   * @returns The adapter, whose report tells what has no effect here.
   * @throws {MismatchError} If a part has no place; nothing changes.
   * @throws {DisposedError} If the model was disposed, or reloaded, meanwhile.
   */
  async add(name: string, adapter: Adapter): Promise<Adapter> {
    this.requireFree(name);
    this.#loading.add(name);
    try {
      const placed = await placeAdapter(this.#layers, name, adapter);
      if (this.#disposed) throw new DisposedError(`Cannot load adapter "${name}": its model was disposed meanwhile`);
      this.#loaded.set(name, placed);
      return placed;
    } catch (error) {
      this.#free(name);
      throw error;
    } finally {
      this.#loading.delete(name);
    }
  }

  /**
   * Frees the adapter of this name; false when there is none.
   *
   * @throws {RangeError} If it is merged.
   */
  remove(name: string): boolean {
    if (!this.#loaded.has(name)) return false;
    if (resolveChoice(this.#merged, this.#loaded).some(([merged]) => merged === name)) {
      throw new RangeError(`Cannot unload adapter "${name}": it is merged, unmerge it first`);
    }
    this.#free(name);
    return this.#loaded.delete(name);
  }

  #free(name: string): void {
    for (const module of this.#layers.byPath.values()) module.removeAdapter(name);
  }

  /**
   * Refuses to do what a merge must not see.
   *
   * @throws {RangeError} If one is under way.
   */
  requireSettled(action: string): void {
    if (this.#merging) throw new RangeError(`Cannot ${action} while adapters are being merged: await merge() first`);
  }

  /**
   * Resolves a selection for `rows` sequences; none is the weights as they are, merged or not.
   *
   * @throws {MismatchError} If a name is unknown.
   * @throws {RangeError} If an adapter, or the base, is chosen while adapters are merged.
   */
  resolve(selection: AdapterSelection | undefined, rows: number): RowMix[] {
    const mixes = resolveSelection(selection, { rows, known: this.#loaded });
    this.requireSettled("compute");
    if (this.#merged !== null && selection !== undefined) {
      throw new RangeError("Cannot choose an adapter or the base while adapters are merged: unmerge them first");
    }
    return mixes;
  }

  /** A check that what `resolve` gave still holds, for computations that let others run in between. */
  watch(mixes: readonly RowMix[]): () => void {
    const epoch = this.#epoch;
    const used = new Map(mixes.flatMap(({ mix }) => mix.map(([name]) => [name, this.#loaded.get(name)])));
    return () => {
      if (this.#epoch !== epoch) throw new RangeError("Cannot go on: adapters were merged or unmerged meanwhile");
      for (const [name, adapter] of used) {
        if (this.#loaded.get(name) === adapter) continue;
        throw new MismatchError(`Cannot go on: adapter "${name}" was unloaded meanwhile`, { found: name });
      }
    };
  }

  /**
   * Folds adapters into the weights of every layer that they adapt; reports the layer that lost the most.
   *
   * @throws {NumericError} If a weight would not be finite; every layer is as it was.
   * @throws {RangeError} If adapters are merged already, or none is chosen.
   * @throws {MismatchError} If one answers only after its invocation tokens.
   */
  async merge(choice: AdapterChoice): Promise<MergeLoss> {
    const mix = resolveChoice(choice, this.#loaded);
    if (this.#merging || this.#merged !== null) throw new RangeError("Cannot merge twice: unmerge the adapters first");
    if (mix.length === 0) throw new RangeError("Cannot merge nothing: choose an adapter or a mix of them");
    const waiting = mix.find(([name]) => this.#loaded.get(name)!.invocationTokens);
    if (waiting) {
      const message = `Cannot merge adapter "${waiting[0]}": it answers only after its invocation tokens`;
      throw new MismatchError(message, { field: "alora_invocation_tokens", found: waiting[0] });
    }
    this.#epoch++;
    this.#merging = true;
    // A copy: what a caller does to its mix later is no merge.
    this.#merged = typeof choice === "string" ? choice : Object.fromEntries(mix);
    const done: LoraLayer[] = [];
    let error = 0;
    try {
      for (const module of this.#layers.byPath.values()) {
        const report = await mergeInto(module, mix);
        if (report) done.push(module);
        error = Math.max(error, report?.error ?? 0);
      }
      return { error };
    } catch (cause) {
      for (const module of done) module.unmerge();
      this.#merged = null;
      throw cause;
    } finally {
      this.#merging = false;
    }
  }

  /**
   * Puts all weights back, bit for bit.
   *
   * @throws {RangeError} If nothing is merged.
   */
  unmerge(): void {
    if (this.#merging || this.#merged === null) throw new RangeError("Cannot unmerge: no adapter is merged");
    this.#epoch++;
    for (const module of this.#layers.byPath.values()) if (module.merged) module.unmerge();
    this.#merged = null;
  }

  /** Frees all factors. */
  dispose(): void {
    this.#disposed = true;
    for (const module of this.#layers.byPath.values()) module.dispose();
    this.#loaded.clear();
  }
}

/** Merges those adapters of a mix that the layer has; null when it has none of them. */
async function mergeInto(module: LoraLayer, mix: Mix): Promise<MergeLoss | null> {
  const names = new Set(module.adapters);
  const own = mix.filter(([name]) => names.has(name));
  if (own.length === 0) return null;
  return await module.merge(Object.fromEntries(own));
}
