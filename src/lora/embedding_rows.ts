/**
 * Forward and backward of an embedding for the ids of one choice of adapters:
 *
 * ```text
 * z = E[id] (or the adapter's own row)      per adapter  z += s A[:, id]ᵀ Bᵀ      with DoRA then  z = g ∘ z
 * y = scale · z                             g = m / ‖E + s (B A)ᵀ‖, one norm per column of the whole table
 * ```
 *
 * @module
 */

import type { Backend, Tensor, Weight } from "../backend.ts";
import type { EmbeddingAdapter } from "./embedding_adapter.ts";
import { numbersFrom, putRows } from "./rows.ts";

/** An adapter with its weight in a mix. */
export interface EmbeddingTerm {
  /** The adapter. */
  readonly adapter: EmbeddingAdapter;
  /** Its weight; s becomes weight · s. */
  readonly weight: number;
}

/** The table and what is the same for all ids. */
export interface EmbeddingBase {
  /** E (vocab, dim). */
  readonly weight: Weight;
  /** Factor of every result. */
  readonly scale: number;
  /** The id whose column of A has no gradient; null for none. */
  readonly paddingId: number | null;
}

/** Gradients of some rows of a table: those of `ids`, each once. */
export interface SparseRows {
  /** The rows' numbers, ascending. */
  readonly ids: Uint32Array;
  /** Their gradients (ids, width). */
  readonly rows: Tensor;
}

/** What a forward keeps for its backward: z before each term's gain, and Aᵀ of the ids. */
interface Step {
  readonly z: Tensor;
  readonly h: Tensor | null;
}

/** Rows y (n, dim) of `ids`. */
export function embedRows(
  backend: Backend,
  base: EmbeddingBase,
  ids: Uint32Array,
  terms: readonly EmbeddingTerm[],
): Tensor {
  return run(backend, base, ids, terms).y;
}

function run(
  backend: Backend,
  base: EmbeddingBase,
  ids: Uint32Array,
  terms: readonly EmbeddingTerm[],
): { y: Tensor; steps: Step[] } {
  const rows = { start: 0, end: ids.length };
  const table = terms.findLast(({ adapter }) => adapter.linear.weight)?.adapter.linear.weight ?? base.weight;
  let z = backend.embedding(ids, table);
  for (const { adapter } of terms) z = replaceRows(backend, z, ids, adapter);
  const steps: Step[] = [];
  for (const { adapter, weight } of terms) {
    const [branch] = adapter.linear.branches(weight);
    const h = branch ? backend.embedding(ids, branch.b) : null;
    if (branch && h) {
      z = backend.add(z, backend.affineRows(backend.linear(h, adapter.b!), [{ ...rows, factor: branch.scaling }]));
    }
    steps.push({ z, h });
    if (!adapter.linear.magnitude) continue;
    z = backend.affineRows(z, [{ ...rows, scale: adapter.linear.gain(base.weight, weight, true).gain }]);
  }
  return { y: base.scale === 1 ? z : backend.affineRows(z, [{ ...rows, factor: base.scale }]), steps };
}

/** z (n, dim) with the adapter's own rows where it has the id. */
function replaceRows(backend: Backend, z: Tensor, ids: Uint32Array, { ownRows }: EmbeddingAdapter): Tensor {
  if (!ownRows || !ids.some((id) => ownRows.places.has(id))) return z;
  const [count = 0, dim = 0] = ownRows.rows.shape;
  const both = backend.tensor([ids.length + count, dim]);
  putRows(backend, both, z, 0);
  putRows(backend, both, ownRows.rows, ids.length);
  const places = numbersFrom({ start: 0, end: ids.length }).map((row) => {
    const place = ownRows.places.get(ids[row]!);
    return place === undefined ? row : ids.length + place;
  });
  return backend.takeRows(both, places);
}

/** Where {@linkcode embedBackward} leaves the gradients of one adapter. */
export interface EmbeddingSinks {
  /** dB (dim, rank) +=. */
  readonly db: Tensor;
  /** dm (dim) +=. */
  readonly dMagnitude?: Tensor;
  /** Takes the gradients of columns of A, as rows (ids, rank). */
  readonly onFactorRows: (rows: SparseRows) => void;
  /** Takes the gradients of the adapter's own rows, by their number in the table. */
  readonly onOwnRows: (rows: SparseRows) => void;
}

/** Adds the gradients of {@linkcode embedRows} for dy (n, dim); adapters without sinks get none. */
export function embedBackward(
  backend: Backend,
  base: EmbeddingBase,
  { dy, ids, terms, sinks }: {
    dy: Tensor;
    ids: Uint32Array;
    terms: readonly EmbeddingTerm[];
    sinks: ReadonlyMap<EmbeddingAdapter, EmbeddingSinks>;
  },
): void {
  const rows = { start: 0, end: ids.length };
  const { steps } = run(backend, base, ids, terms);
  let dz = base.scale === 1 ? dy : backend.affineRows(dy, [{ ...rows, factor: base.scale }]);
  for (let i = terms.length - 1; i >= 0; i--) {
    const { adapter, weight } = terms[i]!;
    const sink = sinks.get(adapter);
    if (adapter.linear.magnitude) {
      const { gain, inverse } = adapter.linear.gain(base.weight, weight, true);
      const scaled = sink?.dMagnitude && backend.affineRows(dz, [{ ...rows, scale: inverse }]);
      if (scaled) backend.columnSums(sink.dMagnitude, scaled, { y: steps[i]!.z });
      dz = backend.affineRows(dz, [{ ...rows, scale: gain }]);
    }
    const { h } = steps[i]!;
    if (!sink || !h) continue;
    const dh = backend.tensor(h.shape);
    const factor = adapter.linear.branches(weight)[0]!.scaling;
    backend.linearBackward(backend.affineRows(dz, [{ ...rows, factor }]), h, adapter.b!, { dx: dh, dw: sink.db });
    sink.onFactorRows(sumById(backend, dh, ids, (id) => id !== base.paddingId));
  }
  const claimed = new Set<number>();
  for (const { adapter } of terms.toReversed()) {
    const places = adapter.ownRows?.places;
    if (!places) continue;
    const isOwn = (id: number) => places.has(id) && !claimed.has(id);
    sinks.get(adapter)?.onOwnRows(sumById(backend, dz, ids, isOwn));
    for (const id of places.keys()) claimed.add(id);
  }
}

/** Puts the rows that adapters have of their own into a table (vocab, dim); of several, the last one's. */
export function putOwnRows(table: Float32Array, dim: number, terms: readonly EmbeddingTerm[]): void {
  for (const { adapter: { ownRows } } of terms) {
    for (const [row, place] of ownRows?.places ?? []) {
      table.set(ownRows!.values.subarray(place * dim, (place + 1) * dim), row * dim);
    }
  }
}

/** The sums of the rows of x (n, dim) that belong to one id. */
function sumById(backend: Backend, x: Tensor, ids: Uint32Array, counts: (id: number) => boolean): SparseRows {
  const positions = new Map<number, number[]>();
  ids.forEach((id, row) => {
    if (counts(id)) positions.set(id, [...positions.get(id) ?? [], row]);
  });
  const own = [...positions.keys()].sort((a, b) => a - b);
  const offsets = new Uint32Array(own.length + 1);
  own.forEach((id, i) => offsets[i + 1] = offsets[i]! + positions.get(id)!.length);
  const rows = Uint32Array.from(own.flatMap((id) => positions.get(id)!));
  return { ids: Uint32Array.from(own), rows: backend.keep(backend.gatherSum(x, { offsets, rows })) };
}
