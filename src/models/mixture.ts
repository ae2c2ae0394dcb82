/**
 * A feed-forward of experts of which a router chooses some per token (Mixtral, Jiang et al. 2024):
 *
 * ```text
 * p = softmax(h Wrᵀ) of the chosen experts      y = Σ pₑ (silu(gₑ) ∘ uₑ) Wdₑᵀ,  [gₑ, uₑ] = h Wguₑᵀ
 * ```
 *
 * The router's logits are read: which rows go where is decided here, and the experts run on those rows alone.
 *
 * @module
 */

import type { Backend, Tensor } from "../backend.ts";
import type { LoraExperts } from "../lora/lora_experts.ts";
import type { LoraLinear } from "../lora/lora_linear.ts";
import { numbersFrom } from "../lora/rows.ts";
import { type RowMix, takeMixes } from "../lora/selection.ts";
import type { ModelLayers } from "./model_layers.ts";

/** How many experts there are. */
export interface ExpertSizes {
  /** Experts of a layer. */
  readonly count: number;
  /** Experts that a token uses. */
  readonly used: number;
}

/** Which rows each expert computes, and how their results are summed. */
export interface Routes {
  /** The row of h of each computed row, ordered by expert. */
  readonly rows: Uint32Array;
  /** Computed rows per expert. */
  readonly counts: readonly number[];
  /** The computed rows of row i of h: `used` of them. */
  readonly places: Uint32Array;
  /** Their weights. */
  readonly weights: Float32Array;
}

/** The experts of one layer and their router. */
export class Mixture {
  readonly #backend: Backend;
  readonly #sizes: ExpertSizes;
  readonly #router: LoraLinear;
  readonly #gateUp: LoraExperts;
  readonly #down: LoraExperts;

  /** Makes the layers under a path. */
  constructor(layers: ModelLayers, path: string, sizes: ExpertSizes) {
    this.#backend = layers.backend;
    this.#sizes = sizes;
    this.#router = layers.linear(`${path}.gate`);
    this.#gateUp = layers.experts(`${path}.experts.gate_up_proj`, sizes.count);
    this.#down = layers.experts(`${path}.experts.down_proj`, sizes.count);
  }

  /** x + the mixture of h; disposes both. */
  async add(x: Tensor, h: Tensor, mixes: readonly RowMix[]): Promise<Tensor> {
    const backend = this.#backend;
    try {
      const router = this.#router.apply(h, mixes);
      const logits = await backend.read(router).finally(() => router.dispose());
      const routes = route(logits, this.#sizes);
      return backend.scope(() => backend.add(x, this.#mix(h, routes, mixes)));
    } finally {
      x.dispose();
      h.dispose();
    }
  }

  #mix(h: Tensor, { rows, counts, places, weights }: Routes, mixes: readonly RowMix[]): Tensor {
    const backend = this.#backend;
    const own = takeMixes(mixes, rows);
    const both = this.#gateUp.apply(backend.takeRows(h, rows), counts, own);
    const [count = 0, width = 0] = both.shape;
    const halves = backend.reshape(both, [2 * count, width / 2]);
    const half = (first: number) => backend.takeRows(halves, rows.map((_, i) => 2 * i + first));
    const y = this.#down.apply(backend.siluMul(half(0), half(1)), counts, own);
    const offsets = numbersFrom({ start: 0, end: (h.shape[0] ?? 0) + 1 }).map((i) => i * this.#sizes.used);
    return backend.gatherSum(y, { offsets, rows: places, weights });
  }
}

/** Chooses the experts with the largest logits (rows, count); their softmax gives the weights. */
export function route(logits: Float32Array, { count, used }: ExpertSizes): Routes {
  const tokens = logits.length / count;
  const chosen = Array.from({ length: tokens }, (_, i) => {
    const row = logits.subarray(i * count, (i + 1) * count);
    // Sorting keeps the order of equals: the first of them wins.
    return Array.from(row, (_, e) => e).sort((a, b) => row[b]! - row[a]!).slice(0, used);
  });
  const perExpert = Array.from({ length: count }, (): number[] => []);
  chosen.forEach((experts, i) => experts.forEach((e) => perExpert[e]!.push(i)));
  const firsts = perExpert.map((_, e) => perExpert.slice(0, e).reduce((sum, { length }) => sum + length, 0));
  const seen = new Array<number>(count).fill(0);
  const [places, weights] = [new Uint32Array(tokens * used), new Float32Array(tokens * used)];
  chosen.forEach((experts, i) => {
    const powers = experts.map((e) => Math.exp(logits[i * count + e]! - logits[i * count + experts[0]!]!));
    const total = powers.reduce((sum, power) => sum + power, 0);
    experts.forEach((e, j) => {
      places[i * used + j] = firsts[e]! + seen[e]!++;
      weights[i * used + j] = powers[j]! / total;
    });
  });
  return { rows: Uint32Array.from(perExpert.flat()), counts: perExpert.map(({ length }) => length), places, weights };
}
