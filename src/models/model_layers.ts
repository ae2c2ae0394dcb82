/**
 * The layers of a model by their path, as PEFT names them.
 *
 * @module
 */

import type { BaseModule } from "../adapter/create_options.ts";
import { lastName } from "../adapter/paths.ts";
import type { Backend } from "../backend.ts";
import { LoraEmbedding } from "../lora/lora_embedding.ts";
import { LoraExperts } from "../lora/lora_experts.ts";
import { LoraLinear } from "../lora/lora_linear.ts";
import { Norm } from "./norm.ts";
import type { ModelParameters } from "./weights.ts";

/** A layer that adapters can change. */
export type ModelLayer = LoraLinear | LoraEmbedding | LoraExperts | Norm;

/** A head that shares its weight with an embedding. */
export interface TiedHead {
  /** The head. */
  readonly head: string;
  /** The embedding. */
  readonly embedding: string;
}

/** What a model knows of tensors by their names. */
export interface TensorRules {
  /** Whether a tensor that is not wanted may be passed over. */
  readonly isSpare: (name: string) => boolean;
  /** Whether a matrix is stored (in, out). */
  readonly isTransposed?: (name: string) => boolean;
}

/** Makes the layers of a model from its parameters, and knows them by path. */
export class ModelLayers {
  /** Where they compute. */
  readonly backend: Backend;
  /** The layers by path. */
  readonly byPath: Map<string, ModelLayer> = new Map();
  /** Null where the head has a weight of its own. */
  tied: TiedHead | null = null;
  /** Whether files store a matrix (in, out). */
  readonly isTransposed: (name: string) => boolean;
  /** Whether a tensor is one that files may have, and of which nothing is computed. */
  readonly isSpare: (name: string) => boolean;
  readonly #parameters: ModelParameters;

  /** Takes parameters that stay their loader's. */
  constructor(backend: Backend, parameters: ModelParameters, tensors: TensorRules) {
    this.backend = backend;
    this.isTransposed = tensors.isTransposed ?? (() => false);
    this.isSpare = tensors.isSpare;
    this.#parameters = parameters;
  }

  /** The linear layer at a path, with the bias if there is one. */
  linear(path: string): LoraLinear {
    const bias = this.#parameters.vectors.get(`${path}.bias`);
    const weight = this.#parameters.weights.get(`${path}.weight`)!;
    return this.#keep(path, new LoraLinear(this.backend, { weight, ...(bias && { bias }) }));
  }

  /** The embedding at a path. */
  embedding(path: string, shared: boolean = false): LoraEmbedding {
    const weight = this.#parameters.weights.get(`${path}.weight`)!;
    return this.#keep(path, new LoraEmbedding(this.backend, { weight, shared }));
  }

  /** The head at a path whose weight is that of the embedding at another one. */
  tiedHead(head: string, embedding: string): LoraLinear {
    this.tied = { head, embedding };
    const weight = this.#parameters.weights.get(`${embedding}.weight`)!;
    return this.#keep(head, new LoraLinear(this.backend, { weight, shared: true }));
  }

  /** The experts' weights under the name of their parameter. */
  experts(name: string, count: number): LoraExperts {
    const weights = Array.from({ length: count }, (_, e) => this.#parameters.weights.get(`${name}.${e}`)!);
    return this.#keep(name, new LoraExperts(this.backend, { weights }));
  }

  /** The norm at a path. */
  norm(path: string, eps: number): Norm {
    const { vectors } = this.#parameters;
    const parts = { gain: vectors.get(`${path}.weight`)!, bias: vectors.get(`${path}.bias`), eps };
    return this.#keep(path, new Norm(this.backend, parts));
  }

  #keep<Layer extends ModelLayer>(path: string, layer: Layer): Layer {
    this.byPath.set(path, layer);
    return layer;
  }
}

/**
 * The layers that an adapter can have factors for. Norms have none, nor has the router of experts, which PEFT does not
 * adapt either.
 *
 * @param layers The layers.
 * @returns Their paths, kinds and sizes.
 */
export function baseModules({ byPath }: ModelLayers): BaseModule[] {
  const routers = [...byPath.keys()].map((path) => path.replace(/\.experts\.down_proj$/, ".gate"));
  return [...byPath].flatMap(([name, layer]): BaseModule[] => {
    if (layer instanceof LoraExperts) {
      const { inFeatures, outFeatures, experts } = layer;
      const parameter = lastName(name);
      return [{ name, kind: "experts", parameter, experts: experts.length, inFeatures, outFeatures }];
    }
    if (layer instanceof Norm || (name.endsWith(".gate") && routers.includes(name))) return [];
    const [rows, columns] = layer.weight.shape;
    const isTable = layer instanceof LoraEmbedding;
    const [inFeatures, outFeatures] = isTable ? [rows, columns] : [columns, rows];
    return [{ name, kind: isTable ? "embedding" : "linear", inFeatures, outFeatures }];
  });
}
