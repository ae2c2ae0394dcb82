/**
 * The gradients of `linear_forward.ts`. The norms of DoRA are constants, as in PEFT:
 *
 * ```text
 * dm += Σ dy ∘ z / n     dz = g ∘ dy     db_B += s Σ dz     dB += s dzᵀ h     dA += (s dz B)ᵀ x     dx += dz (W + Σ s B A)
 * ```
 *
 * @module
 */

import type { Backend, LoraBranch, LoraGradientBranch, Tensor } from "../backend.ts";
import type { LinearAdapter } from "./linear_adapter.ts";
import {
  type LinearBase,
  replacedWeight,
  type Stage,
  stagesOf,
  sumStage,
  type Term,
  type TermRange,
} from "./linear_forward.ts";
import { coverRows, putRows, rowsOf } from "./rows.ts";

/** Where a backward pass adds the gradients of one adapter. */
export interface LoraGradients {
  /** dA (rank, in). */
  readonly da: Tensor;
  /** dB (out, rank). */
  readonly db: Tensor;
  /** d b_B (out), where the adapter has a bias on B. */
  readonly dLoraBias?: Tensor;
  /** dm (out), where the adapter has a magnitude. */
  readonly dMagnitude?: Tensor;
}

/** What is differentiated, and what is wanted. */
export interface BackwardCall {
  /** dy (n, out). */
  readonly dy: Tensor;
  /** x (n, in). */
  readonly x: Tensor;
  /** dx (n, in) += …. */
  readonly dx: Tensor | undefined;
  /** dW (out, in) += dzᵀ x, for the W that answered. */
  readonly dw: Tensor | undefined;
  /** dbias (out) += Σ dy. */
  readonly dbias: Tensor | undefined;
  /** Gradients by adapter. */
  readonly gradients: ReadonlyMap<LinearAdapter, LoraGradients>;
}

/** Adds the gradients of the forward for ranges that may leave rows to the base. */
export function backwardLinear(
  backend: Backend,
  base: LinearBase,
  call: BackwardCall,
  ranges: readonly TermRange[],
): void {
  const { dy, x, dx, dw, dbias, gradients } = call;
  if (ranges.every(({ terms }) => terms.every(({ adapter }) => adapter.isPlain))) {
    const adapters = ranges.map(({ start, end, terms }) => ({
      start,
      end,
      branches: gradientBranches(terms, gradients),
    }));
    const wanted = { ...(dx && { dx }), ...(dw && { dw }), ...(dbias && { dbias }) };
    return backend.linearBackward(dy, x, base.weight, { adapters, ...wanted });
  }
  backend.scope(() => {
    if (dbias) backend.columnSums(dbias, dy);
    for (const range of coverRows(ranges, x.shape[0] ?? 0, (rows): TermRange => ({ ...rows, terms: [] }))) {
      const [xRows, dyRows] = [rowsOf(backend, x, range), rowsOf(backend, dy, range)];
      const dxRows = dx && backend.tensor(xRows.shape);
      backwardRange(backend, base, { ...call, x: xRows, dy: dyRows, dx: dxRows }, range.terms);
      if (dx && dxRows) putRows(backend, dx, backend.add(rowsOf(backend, dx, range), dxRows), range.start);
    }
  });
}

function gradientBranches(terms: readonly Term[], gradients: BackwardCall["gradients"]): LoraGradientBranch[] {
  return terms.flatMap(({ adapter, weight }) => {
    const { da, db } = gradients.get(adapter) ?? {};
    return adapter.branches(weight).map((branch) => ({ ...branch, ...(da && { da }), ...(db && { db }) }));
  });
}

/** Rows of one choice of adapters: forward again, then the stages backwards. */
function backwardRange(backend: Backend, base: LinearBase, call: BackwardCall, terms: readonly Term[]): void {
  const { x, dx, dw, gradients } = call;
  const rows = { start: 0, end: x.shape[0] ?? 0 };
  const weight = replacedWeight(base, terms);
  const stages = stagesOf(base.weight, terms);
  const sums: Tensor[] = [];
  let before: Tensor | null = null;
  for (const stage of stages) {
    const z = sumStage(backend, { weight, x, before }, stage);
    sums.push(z);
    before = stage.gain ? backend.affineRows(z, [{ ...rows, scale: stage.gain.gain }]) : z;
  }
  let dz = call.dy;
  for (let i = stages.length - 1; i >= 0; i--) {
    dz = backwardGain(backend, stages[i]!, { dz, z: sums[i]! }, gradients);
    for (const { adapter, weight: w } of stages[i]!.terms) {
      const { dLoraBias } = gradients.get(adapter) ?? {};
      if (dLoraBias) backend.columnSums(dLoraBias, dz, { factor: adapter.branch!.scaling * w });
    }
    if (i > 0) {
      for (const branch of gradientBranches(stages[i]!.terms, gradients)) {
        backwardBranch(backend, branch, { dz, x, dx });
      }
    }
  }
  const branches = gradientBranches(stages[0]!.terms, gradients);
  backend.linearBackward(dz, x, weight, { adapters: [{ ...rows, branches }], ...(dx && { dx }), ...(dw && { dw }) });
}

/** Through z' = g ∘ z; returns dz. */
function backwardGain(
  backend: Backend,
  { terms, gain }: Stage,
  { dz, z }: { dz: Tensor; z: Tensor },
  gradients: BackwardCall["gradients"],
): Tensor {
  if (!gain) return dz;
  const rows = { start: 0, end: dz.shape[0] ?? 0 };
  const { dMagnitude } = gradients.get(terms.at(-1)!.adapter) ?? {};
  if (dMagnitude) backend.columnSums(dMagnitude, backend.affineRows(dz, [{ ...rows, scale: gain.inverse }]), { y: z });
  return backend.affineRows(dz, [{ ...rows, scale: gain.gain }]);
}

/** A branch that no product with the base computed: A and B are linear layers of their own. */
function backwardBranch(
  backend: Backend,
  { a, b, scaling, da, db }: LoraBranch & LoraGradientBranch,
  { dz, x, dx }: { dz: Tensor; x: Tensor; dx: Tensor | undefined },
): void {
  const scaled = backend.affineRows(dz, [{ start: 0, end: dz.shape[0] ?? 0, factor: scaling }]);
  const h = backend.linear(x, a);
  const dh = backend.tensor(h.shape);
  backend.linearBackward(scaled, h, b, { dx: dh, ...(db && { dw: db }) });
  backend.linearBackward(dh, x, a, { ...(dx && { dx }), ...(da && { dw: da }) });
}
