/**
 * What one adapter is inside one embedding: a branch, a magnitude, a table, or rows of it.
 *
 * @module
 */

import type { Backend, Tensor, Weight } from "../backend.ts";
import { ShapeError } from "../errors.ts";
import { type StoredTensor, toFloat32 } from "../formats/dtype.ts";
import { formatShape } from "../shape.ts";
import { type LoraFactors, matrixValues, refuseFactors, transposed } from "./factors.ts";
import { LinearAdapter } from "./linear_adapter.ts";

/** New rows of a table. `TokenRows` of a loaded adapter are such. */
export interface RowReplacements {
  /** Row numbers in the table. */
  readonly indices: readonly number[];
  /** The rows (k, dim), in the same order: they stand in for those of the table. */
  readonly rows: StoredTensor;
}

/** Rows of a table that an adapter brought. */
export interface OwnRows {
  /** Which of `rows` stands in for a row of the table, by its number. */
  readonly places: ReadonlyMap<number, number>;
  /** The rows (k, dim). */
  readonly rows: Tensor;
  /** Their elements. */
  readonly values: Float32Array;
}

/** One adapter, packed. */
export class EmbeddingAdapter {
  /**
   * The adapter as that of a linear layer whose weight is the table (vocab, dim): its A is Bᵀ (rank, dim), its B is Aᵀ
   * (vocab, rank).
   */
  readonly linear: LinearAdapter;
  /** B (dim, rank); null where the adapter has no factors. */
  b: Weight | null = null;
  /** Its rows of the table. */
  ownRows: OwnRows | null = null;
  readonly #backend: Backend;

  /** Holds nothing yet. */
  constructor(backend: Backend) {
    this.#backend = backend;
    this.linear = new LinearAdapter(backend);
  }

  /**
   * Packs A (rank, vocab) and B (dim, rank).
   *
   * @throws {ShapeError} If a shape does not fit; nothing changes.
   */
  setFactors(name: string, factors: LoraFactors, [vocab, dim]: readonly [number, number]): void {
    const [loraA, loraB] = [matrixValues(name, "A", factors.loraA), matrixValues(name, "B", factors.loraB)];
    const [[rank, columns], [rows, depth]] = [loraA.shape, loraB.shape];
    if (columns !== vocab || rows !== dim || depth !== rank) {
      throw refuseFactors(name, { loraA, loraB }, `[rank, ${vocab}] and [${dim}, rank]`);
    }
    const turned = { ...factors, loraA: transposed(loraB), loraB: transposed(loraA) };
    this.linear.setFactors(name, turned, [vocab, dim], dim);
    this.b = this.#backend.weight(loraB);
  }

  /**
   * Takes rows of a table (vocab, dim).
   *
   * @throws {ShapeError} If they are not (k, dim), or a number is no row of the table; nothing changes.
   */
  setRows(name: string, { indices, rows }: RowReplacements, [vocab, dim]: readonly [number, number]): void {
    if (rows.shape.length !== 2 || rows.shape[0] !== indices.length || rows.shape[1] !== dim) {
      const message = `Cannot add adapter "${name}" with rows of shape ${formatShape(rows.shape)}`;
      throw new ShapeError(`${message}: expected [${indices.length}, ${dim}]`, { field: name, found: rows.shape });
    }
    const bad = indices.find((index) => !Number.isInteger(index) || index < 0 || index >= vocab);
    if (bad !== undefined) {
      const message = `Cannot add adapter "${name}" with row ${bad}: expected a whole number below ${vocab}`;
      throw new ShapeError(message, { field: name, found: bad, expected: vocab });
    }
    const values = toFloat32(rows);
    this.ownRows?.rows.dispose();
    const tensor = this.#backend.keep(this.#backend.tensor([indices.length, dim], values));
    this.ownRows = { places: new Map(indices.map((index, i) => [index, i])), rows: tensor, values };
  }

  /** Frees everything. */
  dispose(): void {
    this.linear.dispose();
    this.b?.dispose();
    this.ownRows?.rows.dispose();
  }
}
