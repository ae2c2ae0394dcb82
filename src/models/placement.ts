/**
 * What of a model lives on a backend, and goes with it.
 *
 * @module
 */

import type { Backend } from "../backend.ts";
import type { ReadOptions } from "../formats/source.ts";
import { ModelAdapters } from "./model_adapters.ts";
import type { ModelLayers } from "./model_layers.ts";
import type { LoadProgress, ModelParameters } from "./weights.ts";

/** A network over layers that adapters change. */
export interface PlacedNetwork {
  /** Its layers. */
  readonly layers: ModelLayers;
}

/** What a {@linkcode Placement} is made of. */
export interface PlacementParts<Network extends PlacedNetwork> {
  /** Where it computes. */
  readonly backend: Backend;
  /** Whether the backend ends with it. */
  readonly ownsBackend: boolean;
  /** The network over the parameters. */
  readonly network: Network;
  /** Its parameters, which end with it. */
  readonly parameters: ModelParameters;
}

/** Where a model's weights are to go, and what is to be told meanwhile. */
export interface ReloadOptions extends ReadOptions {
  /** Where to compute; it stays the caller's. Absent, a model that opened its backend itself opens another one. */
  readonly backend?: Backend;
  /** Called after each tensor. */
  readonly onProgress?: (progress: LoadProgress) => void;
}

/** Parameters on a backend, with the network and the adapters over them. */
export class Placement<Network extends PlacedNetwork = PlacedNetwork> {
  /** Where it computes. */
  readonly backend: Backend;
  /** Whether the backend ends with it. */
  readonly ownsBackend: boolean;
  /** The network. */
  readonly network: Network;
  /** Its adapters. */
  readonly adapters: ModelAdapters;
  /** The sequences that have a cache here. */
  readonly decoders: Set<{ dispose(): void }> = new Set();
  readonly #parameters: ModelParameters;

  /** Takes a network over the parameters. */
  constructor({ backend, ownsBackend, network, parameters }: PlacementParts<Network>) {
    this.backend = backend;
    this.ownsBackend = ownsBackend;
    this.network = network;
    this.adapters = new ModelAdapters(network.layers);
    this.#parameters = parameters;
  }

  /** Packs the adapters of another placement, and merges what is merged there. */
  async adopt({ adapters: { loaded, merged } }: Placement): Promise<void> {
    for (const [name, adapter] of loaded) await this.adapters.add(name, adapter);
    if (merged !== null) await this.adapters.merge(merged);
  }

  /** Frees all of it. */
  dispose(): void {
    for (const decoder of this.decoders) decoder.dispose();
    this.adapters.dispose();
    this.#parameters.dispose();
    if (this.ownsBackend) this.backend.dispose();
  }
}
