/**
 * The embedding with low-rank adapters.
 *
 * @module
 */

import type { Backend, MergeLoss, Tensor, Weight } from "../backend.ts";
import { DisposedError } from "../errors.ts";
import type { StoredTensor } from "../formats/dtype.ts";
import { EmbeddingAdapter, type RowReplacements } from "./embedding_adapter.ts";
import { embedBackward, type EmbeddingTerm, embedRows, putOwnRows, type SparseRows } from "./embedding_rows.ts";
import type { LoraFactors } from "./factors.ts";
import { addAdapters, type LoraForwardOptions, type LoraLayer, requireUnmerged } from "./layer.ts";
import { MergeState } from "./merge_state.ts";
import { assemble, coverRows, rowsOf } from "./rows.ts";
import {
  type AdapterChoice,
  type AdapterSelection,
  requireOrder,
  resolveChoice,
  resolveSelection,
  type RowMix,
} from "./selection.ts";

/** What a {@linkcode LoraEmbedding} is made of. */
export interface LoraEmbeddingOptions {
  /** E (vocab, dim). It stays the caller's to dispose. */
  readonly weight: Weight;
  /** Factor of every result, adapters included (Gemma's √dim); 1 when absent. */
  readonly scale?: number;
  /** The id whose column of A has no gradient. */
  readonly paddingId?: number;
  /** Adapters by name: A (rank, vocab), B (dim, rank), m (dim). */
  readonly adapters?: Readonly<Record<string, LoraFactors>>;
  /** Others use the table too, as a tied head does: a merge works on a copy, f32 if the table is quantized. */
  readonly shared?: boolean;
}

/** Where a backward pass adds the gradients of one adapter of an embedding. */
export interface EmbeddingGradients {
  /** dB (dim, rank). */
  readonly db: Tensor;
  /** dm (dim), where the adapter has a magnitude. */
  readonly dMagnitude?: Tensor;
  /** Gradients of the columns of A that ids chose, as rows; a backward pass adds pieces, which the caller owns. */
  readonly factorRows: SparseRows[];
  /** Gradients of the adapter's own rows of the table, likewise. */
  readonly ownRows: SparseRows[];
}

/** What {@linkcode LoraEmbedding.backward} adds to. */
export interface EmbeddingBackwardOptions extends LoraForwardOptions {
  /** Gradients by adapter name; make them with {@linkcode LoraEmbedding.gradients}. */
  readonly gradients: ReadonlyMap<string, EmbeddingGradients>;
}

/**
 * y = scale · (E[id] + Σ wᵢ sᵢ Aᵢ[:, id]ᵀ Bᵢᵀ), with the adapters i and their weights wᵢ chosen per id. An adapter with a
 * magnitude (DoRA) scales what is before it by m / ‖E + w s (B A)ᵀ‖, one norm per column of the whole table.
 *
 * @example
 * ```ts
 * import { LoraEmbedding, openBackend } from "@lowrank/lora";
 * import assert from "node:assert/strict";
 *
 * const matrix = (rows: number, columns: number, ...values: number[]) => ({
 *   shape: [rows, columns] as const,
 *   dtype: "f32" as const,
 *   bytes: new Uint8Array(Float32Array.from(values).buffer),
 * });
 * const backend = await openBackend();
 * const weight = backend.weight(matrix(2, 2, 1, 0, 0, 1));
 * const second = { loraA: matrix(1, 2, 0, 1), loraB: matrix(2, 1, 3, 4), scaling: 1 };
 * const layer = new LoraEmbedding(backend, { weight, adapters: { second } });
 * const y = layer.forward(Uint32Array.of(0, 1), { adapter: "second" });
 * assert.deepEqual([...await backend.read(y)], [1, 0, 3, 5]);
 * backend.dispose();
 * ```
 */
export class LoraEmbedding implements LoraLayer {
  /** E (vocab, dim). */
  readonly weight: Weight;
  readonly #backend: Backend;
  readonly #scale: number;
  readonly #paddingId: number | null;
  readonly #state: MergeState;
  readonly #adapters: Map<string, EmbeddingAdapter> = new Map();
  #disposed = false;

  /** Packs the adapters that are given. */
  constructor(backend: Backend, options: LoraEmbeddingOptions) {
    this.#backend = backend;
    this.weight = options.weight;
    this.#scale = options.scale ?? 1;
    this.#paddingId = options.paddingId ?? null;
    this.#state = new MergeState(backend, options.weight, options.shared ?? false);
    addAdapters(this, options.adapters);
  }

  /** Names of the adapters, in the order in which they came. */
  get adapters(): readonly string[] {
    return [...this.#adapters.keys()];
  }

  /** Whether adapters are merged into the table. */
  get merged(): boolean {
    return this.#state.merged;
  }

  /**
   * Packs the factors of one adapter under a name; one of that name is replaced. The base is not touched.
   *
   * @throws {ShapeError} If A is not (rank, vocab), B not (dim, rank), or m not (dim); nothing changes.
   * @throws {NumericError} If the scaling is not finite.
   */
  addAdapter(name: string, factors: LoraFactors): void {
    const adapter = new EmbeddingAdapter(this.#backend);
    try {
      adapter.setFactors(name, factors, this.weight.shape);
    } catch (error) {
      adapter.dispose();
      throw error;
    }
    this.removeAdapter(name);
    this.#adapters.set(name, adapter);
  }

  /**
   * Gives an adapter a table, or rows, of its own: they stand in for the base's while it answers, whatever its weight
   * in a mix. Of several, the last in the mix counts.
   *
   * @throws {ShapeError} If the shapes do not fit; nothing changes.
   */
  replaceFor(name: string, replacements: { readonly weight?: StoredTensor; readonly rows?: RowReplacements }): void {
    const adapter = this.#adapters.get(name) ?? new EmbeddingAdapter(this.#backend);
    const { weight, rows } = replacements;
    if (rows) adapter.setRows(name, rows, this.weight.shape);
    if (weight) adapter.linear.setReplacements(name, { weight }, this.weight);
    this.#adapters.set(name, adapter);
  }

  /** Frees the adapter of this name; false when there is none. */
  removeAdapter(name: string): boolean {
    this.#adapters.get(name)?.dispose();
    return this.#adapters.delete(name);
  }

  /**
   * Computes y (n, dim) for n ids. While adapters are merged, only a call without `adapter` is answered.
   *
   * @throws {MismatchError} If a name is unknown; the message lists the known ones.
   * @throws {RangeError} If an adapter, or the base, is chosen while adapters are merged.
   */
  forward(ids: Uint32Array, options: LoraForwardOptions = {}): Tensor {
    if (options.adapter !== undefined) requireUnmerged(this, "choose an adapter or the base");
    return this.apply(ids, this.#resolve(ids, options.adapter));
  }

  #resolve(ids: Uint32Array, selection: AdapterSelection | undefined): RowMix[] {
    return resolveSelection(selection, { rows: ids.length, known: this.#adapters });
  }

  /** The forward of a model: ids are resolved once for all layers, and names that this layer lacks are skipped. */
  apply(ids: Uint32Array, mixes: readonly RowMix[]): Tensor {
    if (this.#disposed) throw new DisposedError("Cannot run a layer: it is disposed");
    const ranges = this.#ranges(ids, mixes);
    if (ranges.some(({ terms }) => terms.length > 0)) requireUnmerged(this, "apply an adapter");
    const backend = this.#backend;
    const base = { ...this.#base, weight: this.#state.weight };
    return backend.scope(() =>
      assemble(backend, ranges, [ids.length, this.weight.shape[1]], ({ start, end, terms }) => {
        return embedRows(backend, base, ids.subarray(start, end), terms);
      })
    );
  }

  get #base() {
    return { weight: this.weight, scale: this.#scale, paddingId: this.#paddingId };
  }

  /** Ranges that cover all ids; neighbours without an adapter of this layer are one. */
  #ranges(ids: Uint32Array, mixes: readonly RowMix[]) {
    const ranges = mixes.map(({ start, end, mix }) => ({ start, end, terms: this.#terms(mix) }))
      .filter(({ terms }) => terms.length > 0);
    const all = coverRows(ranges, ids.length, (rows) => ({ ...rows, terms: [] as EmbeddingTerm[] }));
    return all.length > 0 ? all : [{ start: 0, end: 0, terms: [] }];
  }

  #terms(mix: RowMix["mix"]): EmbeddingTerm[] {
    const own = mix.filter(([name]) => this.#adapters.has(name));
    const terms = own.map(([name, weight]) => ({ adapter: this.#adapters.get(name)!, weight }));
    if (terms.some(({ adapter }) => adapter.linear.magnitude)) requireOrder(own);
    return terms;
  }

  /**
   * Makes gradients of zeros for an adapter, which the caller owns.
   *
   * @throws {RangeError} If the adapter has no factors in this layer.
   */
  gradients(name: string): EmbeddingGradients {
    resolveChoice(name, this.#adapters);
    const { b, linear: { magnitude } } = this.#adapters.get(name)!;
    if (!b) throw new RangeError(`Cannot make gradients for adapter "${name}": it has no factors in this layer`);
    const dMagnitude = magnitude && this.#backend.tensor(magnitude.shape);
    const db = this.#backend.tensor(b.shape);
    return { db, ...(dMagnitude && { dMagnitude }), factorRows: [], ownRows: [] };
  }

  /**
   * Adds the gradients of {@linkcode LoraEmbedding.forward} for dy (n, dim), given the ids and the selection it had.
   *
   * @throws {MismatchError} If gradients are wanted for an adapter that this layer lacks.
   */
  backward(dy: Tensor, ids: Uint32Array, { adapter, gradients }: EmbeddingBackwardOptions): void {
    requireUnmerged(this, "run backward");
    for (const name of gradients.keys()) resolveChoice(name, this.#adapters);
    const backend = this.#backend;
    const sinks = new Map([...gradients].map(([name, { db, dMagnitude, factorRows, ownRows }]) => [
      this.#adapters.get(name)!,
      {
        ...{ db, ...(dMagnitude && { dMagnitude }) },
        onFactorRows: (rows: SparseRows) => void factorRows.push(rows),
        onOwnRows: (rows: SparseRows) => void ownRows.push(rows),
      },
    ]));
    backend.scope(() => {
      for (const { start, end, terms } of this.#ranges(ids, this.#resolve(ids, adapter))) {
        if (terms.length === 0) continue;
        const rows = rowsOf(backend, dy, { start, end });
        embedBackward(backend, this.#base, { dy: rows, ids: ids.subarray(start, end), terms, sinks });
      }
    });
  }

  /**
   * Folds adapters into the table: E += Σ wᵢ sᵢ (Bᵢ Aᵢ)ᵀ, with DoRA (E + w s (B A)ᵀ) ∘ g. The bits it overwrites are kept.
   *
   * @throws {NumericError} If a result would not be finite; the table is as it was.
   * @throws {RangeError} If adapters are merged already, or none is named.
   */
  async merge(adapter: AdapterChoice): Promise<MergeLoss> {
    const terms = this.#terms(resolveChoice(adapter, this.#adapters));
    const edit = terms.some(({ adapter }) => adapter.ownRows)
      ? (values: Float32Array) => putOwnRows(values, this.weight.shape[1], terms)
      : undefined;
    const linear = terms.map(({ adapter, weight }) => ({ adapter: adapter.linear, weight }));
    return await this.#state.merge(linear, { columns: true, edit });
  }

  /** Puts the table back, bit for bit. */
  unmerge(): void {
    this.#state.unmerge();
  }

  /** Frees the adapters; the table stays with the caller. */
  dispose(): void {
    for (const name of this.adapters) this.removeAdapter(name);
    this.#state.dispose();
    this.#disposed = true;
  }

  /** The same as `dispose()`. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}
