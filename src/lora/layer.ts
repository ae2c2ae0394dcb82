/**
 * What all adapted layers have in common.
 *
 * @module
 */

import type { MergeLoss } from "../backend.ts";
import type { AdapterChoice, AdapterSelection } from "./selection.ts";

/** A layer over which adapters answer: one, mixed, or another one per row. */
export interface LoraLayer extends Disposable {
  /** Names of the adapters, in the order in which they came. */
  readonly adapters: readonly string[];
  /** Whether adapters are merged into the layer. */
  readonly merged: boolean;
  /** Frees the adapter of this name; false when there is none. */
  removeAdapter(name: string): boolean;
  /** Folds adapters into the weights; the bits that they overwrite are kept. */
  merge(adapter: AdapterChoice): Promise<MergeLoss>;
  /** Puts everything back, bit for bit. */
  unmerge(): void;
  /** Frees the adapters; what the layer was made of stays with the caller. */
  dispose(): void;
}

/** Which adapters answer. */
export interface LoraForwardOptions {
  /** A name, a mix `{ name: weight }`, `null` for the base, or an array with one of these per row of x. */
  readonly adapter?: AdapterSelection | undefined;
}

/**
 * Refuses what only adapters that are not merged can do.
 *
 * @throws {RangeError} If adapters are merged into the layer.
 */
export function requireUnmerged({ merged }: Pick<LoraLayer, "merged">, action: string): void {
  if (merged) throw new RangeError(`Cannot ${action}: adapters are merged into the layer, unmerge them first`);
}

/** Adds the adapters that a layer begins with; a layer that one of them does not fit is freed. */
export function addAdapters<Factors>(
  layer: { addAdapter(name: string, factors: Factors): void; dispose(): void },
  adapters: Readonly<Record<string, Factors>> = {},
): void {
  try {
    for (const [name, factors] of Object.entries(adapters)) layer.addAdapter(name, factors);
  } catch (error) {
    layer.dispose();
    throw error;
  }
}
