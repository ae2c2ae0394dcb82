/**
 * The forward of a linear layer whose adapters are more than branches. Adapters act one after the other, as PEFT's do:
 *
 * ```text
 * z = x Wᵀ      per adapter  z += s (x Aᵀ) Bᵀ + s b_B      with DoRA then  z = g ∘ z, g = m / ‖W + s B A‖
 * y = z + bias  (W and bias are an adapter's own where it has them)
 * ```
 *
 * @module
 */

import type { Backend, LoraBranch, RowAffine, Tensor, Weight } from "../backend.ts";
import type { DoraGain, LinearAdapter } from "./linear_adapter.ts";
import { assemble, coverRows, type RowRange, rowsOf } from "./rows.ts";

/** An adapter with its weight in a mix. */
export interface Term {
  /** The adapter. */
  readonly adapter: LinearAdapter;
  /** Its weight; s becomes weight · s. */
  readonly weight: number;
}

/** The adapters of some rows, in the order in which they act. */
export interface TermRange extends RowRange {
  /** None is the base alone. */
  readonly terms: readonly Term[];
}

/** W (out, in) and the bias (out). */
export interface LinearBase {
  /** W. */
  readonly weight: Weight;
  /** The bias. */
  readonly bias: Tensor | undefined;
}

/** Adapters up to and with one that has a magnitude: what DoRA's gain applies to. */
export interface Stage {
  /** The adapters. */
  readonly terms: readonly Term[];
  /** DoRA's gain after them; null where the last has none. */
  readonly gain: DoraGain | null;
}

/** Runs the forward above for ranges that may leave rows to the base. */
export function forwardLinear(backend: Backend, base: LinearBase, x: Tensor, ranges: readonly TermRange[]): Tensor {
  const { weight, bias } = base;
  if (ranges.every(({ terms }) => terms.every(({ adapter }) => adapter.isPlain))) {
    return backend.linear(x, weight, { ...(bias && { bias }), adapters: ranges.map(branchesOf) });
  }
  const all = coverRows(ranges, x.shape[0] ?? 0, (range): TermRange => ({ ...range, terms: [] }));
  return backend.scope(() => {
    if (all.every(isOneProduct)) return forwardTogether(backend, base, x, all);
    const shape = [x.shape[0] ?? 0, weight.shape[0]] as const;
    return assemble(
      backend,
      all,
      shape,
      (range) => forwardRange(backend, base, rowsOf(backend, x, range), range.terms),
    );
  });
}

/** All branches of some terms, on their rows. */
function branchesOf({ start, end, terms }: TermRange): RowRange & { branches: LoraBranch[] } {
  return { start, end, branches: terms.flatMap(({ adapter, weight }) => adapter.branches(weight)) };
}

/** Whether one product with the base and one gain make the whole answer of these rows. */
function isOneProduct({ terms }: TermRange): boolean {
  const gains = terms.filter(({ adapter }) => adapter.magnitude);
  if (terms.some(({ adapter }) => adapter.weight)) return false;
  return gains.length === 0 ||
    (gains.length === 1 && gains[0] === terms.at(-1) && !terms.some(({ adapter }) => adapter.loraBias));
}

/** One product for all rows, then the gain and the bias of each range: rows of many adapters share the reading of W. */
function forwardTogether(backend: Backend, base: LinearBase, x: Tensor, ranges: readonly TermRange[]): Tensor {
  const z = backend.linear(x, base.weight, { adapters: ranges.map(branchesOf) });
  const affine = ranges.map(({ start, end, terms }): RowAffine => {
    const [stage] = stagesOf(base.weight, terms);
    const shift = addLoraBiases(backend, replacedBias(base, terms), terms);
    return { start, end, ...(stage!.gain && { scale: stage!.gain.gain }), ...(shift && { shift }) };
  });
  return backend.affineRows(z, affine);
}

/** A bias, or none, plus Σ s b_B. */
export function addLoraBiases(backend: Backend, bias: Tensor | undefined, terms: readonly Term[]): Tensor | undefined {
  let sum = bias;
  for (const { adapter, weight } of terms) {
    if (!adapter.loraBias) continue;
    const row = backend.reshape(adapter.loraBias, [1, adapter.loraBias.size]);
    const factor = adapter.branch!.scaling * weight;
    const added = backend.affineRows(row, [{ start: 0, end: 1, factor, ...(sum && { shift: sum }) }]);
    sum = backend.reshape(added, adapter.loraBias.shape);
  }
  return sum;
}

/** The bias of the last adapter that has its own, or the base's. */
export function replacedBias(base: LinearBase, terms: readonly Term[]): Tensor | undefined {
  return terms.findLast(({ adapter }) => adapter.bias)?.adapter.bias ?? base.bias;
}

/** The weight of the last adapter that has its own, or the base's. */
export function replacedWeight(base: LinearBase, terms: readonly Term[]): Weight {
  return terms.findLast(({ adapter }) => adapter.weight)?.adapter.weight ?? base.weight;
}

/** Cuts terms behind each magnitude; there is at least one stage. */
export function stagesOf(weight: Weight, terms: readonly Term[]): Stage[] {
  const stages: Stage[] = [];
  let open: Term[] = [];
  for (const term of terms) {
    open.push(term);
    if (!term.adapter.magnitude) continue;
    stages.push({ terms: open, gain: term.adapter.gain(weight, term.weight) });
    open = [];
  }
  return open.length > 0 || stages.length === 0 ? [...stages, { terms: open, gain: null }] : stages;
}

/** The rows x (n, in) of one choice of adapters. */
function forwardRange(backend: Backend, base: LinearBase, x: Tensor, terms: readonly Term[]): Tensor {
  const rows = { start: 0, end: x.shape[0] ?? 0 };
  let y: Tensor | null = null;
  for (const stage of stagesOf(base.weight, terms)) {
    y = sumStage(backend, { weight: replacedWeight(base, terms), x, before: y }, stage);
    if (stage.gain) y = backend.affineRows(y, [{ ...rows, scale: stage.gain.gain }]);
  }
  const shift = replacedBias(base, terms);
  return shift ? backend.affineRows(y!, [{ ...rows, shift }]) : y!;
}

/** z = what was before the stage, or x Wᵀ, plus its branches and their biases. */
export function sumStage(
  backend: Backend,
  { weight, x, before }: { weight: Weight; x: Tensor; before: Tensor | null },
  { terms }: Stage,
): Tensor {
  const rows = { start: 0, end: x.shape[0] ?? 0 };
  let z = before ?? backend.linear(x, weight, { adapters: [branchesOf({ ...rows, terms })] });
  for (const { a, b, scaling } of before ? terms.flatMap(({ adapter, weight }) => adapter.branches(weight)) : []) {
    const branch = backend.linear(backend.linear(x, a), b);
    z = backend.add(z, backend.affineRows(branch, [{ ...rows, factor: scaling }]));
  }
  const shift = addLoraBiases(backend, undefined, terms);
  return shift ? backend.affineRows(z, [{ ...rows, shift }]) : z;
}
