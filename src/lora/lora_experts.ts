/**
 * The linear layers of fused experts (PEFT's `target_parameters`).
 *
 * @module
 */

import type { Backend, MatrixValues, MergeLoss, Tensor, Weight } from "../backend.ts";
import { MismatchError, ShapeError } from "../errors.ts";
import { formatShape } from "../shape.ts";
import { floatMatrix, floatsOf, type LoraFactors, matrixValues, refuseFactors } from "./factors.ts";
import { addAdapters, type LoraForwardOptions, type LoraLayer, requireUnmerged } from "./layer.ts";
import type { LoraGradients } from "./linear_backward.ts";
import { LinearAdapter } from "./linear_adapter.ts";
import { LoraLinear } from "./lora_linear.ts";
import { assemble, putRows, rowsOf } from "./rows.ts";
import { type AdapterChoice, type AdapterSelection, resolveSelection, type RowMix, takeMixes } from "./selection.ts";

/** What a {@linkcode LoraExperts} is made of. */
export interface LoraExpertsOptions {
  /** W (out, in) of each expert. They stay the caller's to dispose. */
  readonly weights: readonly Weight[];
  /** Adapters by name: A (rank · experts, in) expert-major, B (out, rank · experts) rank-major. */
  readonly adapters?: Readonly<Record<string, LoraFactors>>;
}

/** What {@linkcode LoraExperts.backward} adds to; what is absent is not computed. */
export interface ExpertsBackwardOptions extends LoraForwardOptions {
  /** dx (n, in) +=. */
  readonly dx?: Tensor;
  /** Gradients per expert by adapter name; make them with {@linkcode LoraExperts.gradients}. */
  readonly gradients?: ReadonlyMap<string, readonly LoraGradients[]>;
}

/**
 * yₑ = xₑ Wₑᵀ + Σ w s (xₑ Aₑᵀ) Bₑᵀ for the rows of each expert e: rows are ordered by expert, `counts[e]` of them for e.
 * Expert e of an adapter of rank r has the rows e·r … of A and the columns j·E + e of B, as PEFT stores them.
 *
 * @example
 * ```ts
 * import { LoraExperts, openBackend } from "@lowrank/lora";
 * import assert from "node:assert/strict";
 *
 * const matrix = (rows: number, columns: number, ...values: number[]) => ({
 *   shape: [rows, columns] as const,
 *   dtype: "f32" as const,
 *   bytes: new Uint8Array(Float32Array.from(values).buffer),
 * });
 * const backend = await openBackend();
 * const weights = [backend.weight(matrix(1, 1, 1)), backend.weight(matrix(1, 1, 2))];
 * const qa = { loraA: matrix(2, 1, 1, 1), loraB: matrix(1, 2, 10, 20), scaling: 1 };
 * const layer = new LoraExperts(backend, { weights, adapters: { qa } });
 * const x = backend.tensor([3, 1], Float32Array.of(1, 2, 3)); // one row for the first expert, two for the second
 * const y = layer.forward(x, [1, 2], { adapter: "qa" });
 * assert.deepEqual([...await backend.read(y)], [1 + 10, 4 + 40, 6 + 60]);
 * backend.dispose();
 * ```
 */
export class LoraExperts implements LoraLayer {
  /** The layer of each expert. */
  readonly experts: readonly LoraLinear[];
  readonly #backend: Backend;
  readonly #shape: readonly [number, number];

  /** Packs the adapters that are given. */
  constructor(backend: Backend, options: LoraExpertsOptions) {
    this.#backend = backend;
    this.#shape = options.weights[0]!.shape;
    this.experts = options.weights.map((weight) => new LoraLinear(backend, { weight }));
    addAdapters(this, options.adapters);
  }

  /** Input features of every expert. */
  get inFeatures(): number {
    return this.#shape[1];
  }

  /** Output features of every expert. */
  get outFeatures(): number {
    return this.#shape[0];
  }

  /** Names of the adapters, in the order in which they came. */
  get adapters(): readonly string[] {
    return this.experts[0]!.adapters;
  }

  /** Whether adapters are merged into the experts. */
  get merged(): boolean {
    return this.experts.some(({ merged }) => merged);
  }

  /**
   * Packs one adapter under a name; one of that name is replaced.
   *
   * @throws {ShapeError} If A is not (rank · experts, in) or B not (out, rank · experts); nothing changes.
   * @throws {MismatchError} If it has a magnitude, a bias on B or a diagonal: PEFT has none for experts.
   * @throws {NumericError} If the scaling is not finite.
   */
  addAdapter(name: string, factors: LoraFactors): void {
    requirePlain(name, factors);
    const [loraA, loraB] = [matrixValues(name, "A", factors.loraA), matrixValues(name, "B", factors.loraB)];
    const [rows, columns] = [loraA.shape[0], loraB.shape[1]];
    const count = this.experts.length;
    const [out, inner] = this.#shape;
    if (rows % count !== 0 || columns !== rows || loraA.shape[1] !== inner || loraB.shape[0] !== out) {
      throw refuseFactors(name, { loraA, loraB }, `[rank · ${count}, ${inner}] and [${out}, rank · ${count}]`);
    }
    const [a, b] = [floatsOf(loraA), floatsOf(loraB)];
    const packed: LinearAdapter[] = [];
    try {
      this.experts.forEach((_, e) => {
        const own = { loraA: expertA(a, loraA.shape, e, count), loraB: expertB(b, loraB.shape, e, count) };
        packed.push(new LinearAdapter(this.#backend));
        packed[e]!.setFactors(name, { ...own, scaling: factors.scaling }, this.#shape);
      });
    } catch (error) {
      for (const adapter of packed) adapter.dispose();
      throw error;
    }
    this.experts.forEach((expert, e) => expert.takeAdapter(name, packed[e]!));
  }

  /** Frees the adapter of this name; false when there is none. */
  removeAdapter(name: string): boolean {
    return this.experts.map((expert) => expert.removeAdapter(name)).some((removed) => removed);
  }

  /**
   * Computes y (n, out) for x (n, in) whose rows are ordered by expert.
   *
   * @param x The rows.
   * @param counts Rows of each expert; their sum is n.
   * @param options Which adapters answer: one choice, or one per row of x.
   * @throws {ShapeError} If the counts are not those of the experts and rows.
   */
  forward(x: Tensor, counts: readonly number[], options: LoraForwardOptions = {}): Tensor {
    if (options.adapter !== undefined) requireUnmerged(this, "choose an adapter or the base");
    return this.apply(x, counts, this.#resolve(x, options.adapter));
  }

  #resolve(x: Tensor, selection: AdapterSelection | undefined): RowMix[] {
    const known = new Set(this.adapters);
    return resolveSelection(selection, { rows: x.shape[0] ?? 0, known });
  }

  /** The forward of a model: rows are resolved once for all layers, and names that this layer lacks are skipped. */
  apply(x: Tensor, counts: readonly number[], mixes: readonly RowMix[]): Tensor {
    const backend = this.#backend;
    const rows = x.shape[0] ?? 0;
    const ranges = this.#ranges(rows, counts).filter(({ start, end }) => end > start);
    if (ranges.length === 0) return backend.tensor([0, this.outFeatures]);
    return backend.scope(() =>
      assemble(backend, ranges, [rows, this.outFeatures], (range) => {
        return this.experts[range.expert]!.apply(rowsOf(backend, x, range), rangeMixes(mixes, range));
      })
    );
  }

  #ranges(rows: number, counts: readonly number[]) {
    let end = 0;
    const ranges = counts.map((count, expert) => ({ expert, start: end, end: end += count }));
    if (counts.length === this.experts.length && end === rows) return ranges;
    const message = `Cannot run experts with counts ${formatShape(counts)} for ${rows} rows`;
    throw new ShapeError(`${message}: expected ${this.experts.length} counts of that sum`, { field: "counts" });
  }

  /** Makes gradients of zeros for an adapter, one set per expert, which the caller owns. */
  gradients(name: string): LoraGradients[] {
    return this.experts.map((expert) => expert.gradients(name));
  }

  /** Adds the gradients of {@linkcode LoraExperts.forward} for dy (n, out), given the x, counts and selection it had. */
  backward(dy: Tensor, x: Tensor, counts: readonly number[], options: ExpertsBackwardOptions): void {
    const backend = this.#backend;
    const mixes = this.#resolve(x, options.adapter);
    backend.scope(() => {
      for (const range of this.#ranges(x.shape[0] ?? 0, counts)) {
        if (range.end === range.start) continue;
        const [xRows, dyRows] = [rowsOf(backend, x, range), rowsOf(backend, dy, range)];
        const dx = options.dx && backend.tensor(xRows.shape);
        const own = [...options.gradients ?? []].map(([name, each]) => [name, each[range.expert]!] as const);
        const adapter = rangeMixes(mixes, range).flatMap(({ start, end, mix }) => {
          return new Array<Record<string, number>>(end - start).fill(Object.fromEntries(mix));
        });
        const wanted = { adapter, gradients: new Map(own), ...(dx && { dx }) };
        this.experts[range.expert]!.backward(dyRows, xRows, wanted);
        if (dx) putRows(backend, options.dx!, backend.add(rowsOf(backend, options.dx!, range), dx), range.start);
      }
    });
  }

  /**
   * Folds adapters into the weights of all experts; the report is that of the expert that lost the most.
   *
   * @throws {NumericError} If a result would not be finite; every weight is as it was.
   */
  async merge(adapter: AdapterChoice): Promise<MergeLoss> {
    const done: LoraLinear[] = [];
    let error = 0;
    try {
      for (const expert of this.experts) {
        error = Math.max(error, (await expert.merge(adapter)).error);
        done.push(expert);
      }
      return { error };
    } catch (cause) {
      for (const expert of done) expert.unmerge();
      throw cause;
    }
  }

  /** Puts all weights back, bit for bit. */
  unmerge(): void {
    for (const expert of this.experts) expert.unmerge();
  }

  /** Frees the adapters; the weights stay with the caller. */
  dispose(): void {
    for (const expert of this.experts) expert.dispose();
  }

  /** The same as `dispose()`. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** Refuses what would be left out without a word. */
function requirePlain(name: string, factors: LoraFactors): void {
  const field = (["magnitude", "loraBias", "diagonal"] as const).find((part) => factors[part] !== undefined);
  if (field === undefined) return;
  throw new MismatchError(`Cannot add adapter "${name}" with ${field} to experts: expected A and B alone`, { field });
}

function rangeMixes(mixes: readonly RowMix[], { start, end }: { start: number; end: number }): RowMix[] {
  return takeMixes(mixes, Array.from({ length: end - start }, (_, i) => start + i));
}

function expertA(a: Float32Array, [rows, columns]: readonly [number, number], e: number, count: number): MatrixValues {
  const rank = rows / count;
  return floatMatrix([rank, columns], a.slice(e * rank * columns, (e + 1) * rank * columns));
}

function expertB(b: Float32Array, [out, columns]: readonly [number, number], e: number, count: number): MatrixValues {
  const rank = columns / count;
  const own = Float32Array.from({ length: out * rank }, (_, i) => {
    return b[Math.floor(i / rank) * columns + i % rank * count + e]!;
  });
  return floatMatrix([out, rank], own);
}
