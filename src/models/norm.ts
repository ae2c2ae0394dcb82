/**
 * Layer and RMS norms, with those that adapters bring trained in full.
 *
 * @module
 */

import type { Backend, MergeLoss, RowAffine, Tensor } from "../backend.ts";
import { keptVector, vectorValues } from "../lora/factors.ts";
import type { LoraLayer } from "../lora/layer.ts";
import type { Replacements } from "../lora/linear_adapter.ts";
import { coverRows } from "../lora/rows.ts";
import { type AdapterChoice, resolveChoice, type RowMix } from "../lora/selection.ts";

/** What a {@linkcode Norm} is made of. */
export interface NormParts {
  /** Gain (dim). */
  readonly gain: Tensor;
  /** Bias (dim) of a layer norm; an RMS norm has none. */
  readonly bias: Tensor | undefined;
  /** Added to the mean square. */
  readonly eps: number;
}

interface Vectors {
  readonly gain: Tensor | null;
  readonly bias: Tensor | null;
}

/** y = x / sqrt(mean(x²) + eps) ∘ gain, or with a bias a layer norm; gain and bias may be an adapter's own. */
export class Norm implements LoraLayer {
  readonly #backend: Backend;
  readonly #parts: NormParts;
  readonly #adapters: Map<string, Vectors> = new Map();
  #merged: Vectors | null = null;
  /** Gain 1 and bias 0, where rows have norms of their own. */
  #neutral: { readonly ones: Tensor; readonly zeros: Tensor } | null = null;

  /** Takes vectors that stay their loader's. */
  constructor(backend: Backend, parts: NormParts) {
    this.#backend = backend;
    this.#parts = parts;
  }

  /** Names of the adapters that have a norm of their own here. */
  get adapters(): readonly string[] {
    return [...this.#adapters.keys()];
  }

  /** Whether an adapter's norm stands in the base's place. */
  get merged(): boolean {
    return this.#merged !== null;
  }

  /**
   * Gives an adapter a gain or a bias of its own.
   *
   * @throws {ShapeError} If it has another length.
   */
  replaceFor(name: string, { weight, bias }: Replacements): void {
    const dim = this.#parts.gain.size;
    const gain = weight ? vectorValues(name, "weight", weight, dim) : null;
    const shift = bias ? vectorValues(name, "bias", bias, dim) : null;
    const known = this.#adapters.get(name);
    this.#adapters.set(name, {
      gain: gain ? keptVector(this.#backend, gain) : known?.gain ?? null,
      bias: shift ? keptVector(this.#backend, shift) : known?.bias ?? null,
    });
  }

  /** Normalises x (n, dim); rows of an RMS norm may be several heads (n, heads · dim). */
  apply(x: Tensor, mixes: readonly RowMix[]): Tensor {
    const [first, ...others] = mixes.map(({ mix }) => this.#vectors(mix));
    const isOne = others.every((each) => each.gain === first?.gain && each.bias === first?.bias);
    if (isOne) return this.#normalize(x, first ?? this.#vectors([]));
    const ranges = coverRows(mixes, x.shape[0] ?? 0, (rows) => ({ ...rows, mix: [] }));
    const { ones, zeros } = this.#neutralVectors();
    const backend = this.#backend;
    return backend.scope(() => {
      const heads = x.size / (x.shape[0] ?? 1) / ones.size;
      const rows = backend.reshape(this.#normalize(x, { gain: ones, bias: zeros }), [x.size / ones.size, ones.size]);
      const affine = ranges.map(({ start, end, mix }): RowAffine => {
        const { gain, bias } = this.#vectors(mix);
        return { start: start * heads, end: end * heads, scale: gain, ...(bias && { shift: bias }) };
      });
      return backend.reshape(backend.affineRows(rows, affine), x.shape);
    });
  }

  #vectors(mix: RowMix["mix"]): { gain: Tensor; bias: Tensor | undefined } {
    const own = mix.flatMap(([name]) => this.#adapters.get(name) ?? []);
    if (this.#merged) own.push(this.#merged);
    return {
      gain: own.findLast(({ gain }) => gain)?.gain ?? this.#parts.gain,
      bias: own.findLast(({ bias }) => bias)?.bias ?? this.#parts.bias,
    };
  }

  #neutralVectors() {
    const dim = this.#parts.gain.size;
    return this.#neutral ??= {
      ones: keptVector(this.#backend, new Float32Array(dim).fill(1)),
      zeros: keptVector(this.#backend, new Float32Array(dim)),
    };
  }

  #normalize(x: Tensor, { gain, bias }: { gain: Tensor; bias: Tensor | undefined }): Tensor {
    const { eps, bias: own } = this.#parts;
    return own && bias ? this.#backend.layerNorm(x, gain, bias, eps) : this.#backend.rmsNorm(x, gain, eps);
  }

  /** Frees the norm of this adapter; false when there is none. */
  removeAdapter(name: string): boolean {
    const vectors = this.#adapters.get(name);
    vectors?.gain?.dispose();
    vectors?.bias?.dispose();
    return this.#adapters.delete(name);
  }

  /** Puts the norm of the last adapter of a mix in the base's place. */
  // deno-lint-ignore require-await -- nothing is computed; the contract's other layers compute
  async merge(adapter: AdapterChoice): Promise<MergeLoss> {
    const { gain, bias } = this.#vectors(resolveChoice(adapter, this.#adapters));
    this.#merged = { gain, bias: bias ?? null };
    return { error: 0 };
  }

  /** Puts the base's norm back. */
  unmerge(): void {
    this.#merged = null;
  }

  /** Frees what adapters brought. */
  dispose(): void {
    for (const name of this.adapters) this.removeAdapter(name);
    this.#neutral?.ones.dispose();
    this.#neutral?.zeros.dispose();
    this.#neutral = null;
    this.#merged = null;
  }

  /** The same as `dispose()`. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}
