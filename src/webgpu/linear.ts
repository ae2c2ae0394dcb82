/**
 * The linear operation and its gradients on kernels: base and first branch in one product where one adapter serves all
 * rows (K extended by the rank), further branches added to the rows they belong to.
 *
 * @module
 */

import type { RowBranches } from "../backend.ts";
import type { ProductSizes } from "../shape.ts";
import type { DeviceBuffer } from "./buffer_pool.ts";
import { cutPanels, type Panels } from "./handles.ts";
import { addInput, addOuter, addProduct, type Gpu, type Packed, type Rows, shrink } from "./product.ts";

/** One branch's factors as f32 panels. */
export interface PackedBranch {
  /** A (rank, in). */
  readonly a: Panels;
  /** B (out, rank). */
  readonly b: Panels;
  /** r. */
  readonly rank: number;
  /** s. */
  readonly scaling: number;
}

/** A branch with its gradients; null where one is not wanted. */
export interface GradientBranch extends PackedBranch {
  /** dA (rank, in). */
  readonly da: DeviceBuffer | null;
  /** dB (out, rank). */
  readonly db: DeviceBuffer | null;
}

interface LinearCall extends ProductSizes {
  readonly y: DeviceBuffer;
  readonly x: DeviceBuffer;
  readonly w: Packed;
  readonly bias: DeviceBuffer | null;
}

interface GradientCall extends ProductSizes {
  readonly dy: DeviceBuffer;
  readonly x: DeviceBuffer;
  readonly w: Packed;
  readonly dx: DeviceBuffer | null;
  readonly dw: DeviceBuffer | null;
  readonly dbias: DeviceBuffer | null;
}

/** Runs y = x Wᵀ + bias + Σ s (x Aᵀ) Bᵀ per row range. */
export function addLinear(gpu: Gpu, call: LinearCall, ranges: readonly RowBranches<PackedBranch>[]): void {
  const { y, x, w, bias, m, n, k } = call;
  const only = ranges.length === 1 && ranges[0]!.start === 0 && ranges[0]!.end === m ? ranges[0]!.branches[0] : null;
  const whole = (buffer: DeviceBuffer) => ({ buffer, row: 0 });
  const base = { y: whole(y), x: whole(x), w, bias, m, n, k };
  if (only) {
    const { a, b, rank, scaling } = only;
    const tail = { b, rank, scaling };
    shrink(gpu, { x: base.x, m, k, a, rank }, (shrunk) => addProduct(gpu, { ...base, tail: { ...shrunk, ...tail } }));
  } else addProduct(gpu, base);
  for (const { start, end, branches } of ranges) {
    for (const branch of branches) {
      if (branch !== only && end > start) addBranch(gpu, { ...base, start, rows: end - start }, branch);
    }
  }
}

/** y += s (x Aᵀ) Bᵀ in a range of rows: a product whose base has no depth. */
function addBranch(
  gpu: Gpu,
  { y, x, n, k, start, rows }: { y: Rows; x: Rows; n: number; k: number; start: number; rows: number },
  { a, b, rank, scaling }: PackedBranch,
): void {
  const from = { buffer: x.buffer, row: start };
  shrink(gpu, { x: from, m: rows, k, a, rank }, (shrunk) => {
    const w = { panels: b, form: "f32" } as const;
    const tail = { ...shrunk, b, rank, scaling };
    addProduct(gpu, { y: { buffer: y.buffer, row: start }, x, w, tail, m: rows, n, k: 0, accumulate: true });
  });
}

/** Adds the gradients of {@linkcode addLinear}; null is not wanted. */
export function addGradients(gpu: Gpu, call: GradientCall, ranges: readonly RowBranches<GradientBranch>[]): void {
  const { dx, dw, dbias, w, m, n, k } = call;
  const [dy, x] = [{ buffer: call.dy, row: 0 }, { buffer: call.x, row: 0 }];
  const largest = ranges.flatMap(({ start, end, branches }) => branches.map(({ rank }) => (end - start) * rank));
  // Before the first dispatch, so that nothing is half added when there is no memory.
  gpu.memory.scratch(Math.max(0, ...largest) * 4, (h) => {
    if (dx) addInput(gpu, { dx: { buffer: dx, row: 0 }, dy, w, m, n, k, scale: 1, accumulate: true });
    if (dw) addOuter(gpu, { dw, dy, x, m, n, k, scale: 1 });
    if (dbias) {
      const groups = Math.ceil(n / 64);
      const buffers = [call.dy, call.dy, dbias];
      gpu.queue.dispatch({ shader: "column_sums", groups, buffers, integers: [m, n, 0], floats: [1] });
    }
    for (const { start, end, branches } of ranges) {
      const rows = { ...call, row: start, m: end - start, h: { buffer: h, row: 0 } };
      for (const branch of branches) if (end > start) addBranchGradients(gpu, rows, branch);
    }
  });
}

function addBranchGradients(
  gpu: Gpu,
  call: Omit<GradientCall, "w"> & { readonly row: number; readonly h: Rows },
  { a, b, rank, scaling: scale, da, db }: GradientBranch,
): void {
  const { row, h, m, n, k } = call;
  const [dy, x] = [{ buffer: call.dy, row }, { buffer: call.x, row }];
  const [aPacked, bPacked] = [{ panels: a, form: "f32" }, { panels: b, form: "f32" }] as const;
  if (db) {
    addProduct(gpu, { y: h, x, w: aPacked, m, n: rank, k });
    addOuter(gpu, { dw: db, dy, x: h, m, n, k: rank, scale });
  }
  if (!da && !call.dx) return;
  addInput(gpu, { dx: h, dy, w: bPacked, m, n, k: rank, scale: 1, accumulate: false });
  if (da) addOuter(gpu, { dw: da, dy: h, x, m, n: rank, k, scale });
  if (!call.dx) return;
  addInput(gpu, { dx: { buffer: call.dx, row }, dy: h, w: aPacked, m, n: rank, k, scale, accumulate: true });
}

/** delta (n, k) = s B A. */
export function writeDelta(
  { queue }: Gpu,
  delta: DeviceBuffer,
  { a, b, rank, scaling }: PackedBranch,
  [n, k]: readonly [number, number],
): void {
  for (const ranks of cutPanels(a)) {
    for (const rows of cutPanels(b)) {
      const [{ buffer: aBuffer, panel: aPanel }, { buffer: bBuffer, panel: bPanel }] = [
        ranks.parts[0]!,
        rows.parts[0]!,
      ];
      const run = [ranks.first * 8, Math.min(rank - ranks.first * 8, ranks.count * 8), aPanel];
      queue.dispatch({
        shader: "delta_weight",
        groups: Math.ceil(rows.count / 4) * Math.ceil(k / 32),
        buffers: [aBuffer, bBuffer, delta],
        integers: [n, k, rank, ...run, rows.first, rows.count, bPanel, ranks.first > 0 ? 1 : 0],
        floats: [scaling],
      });
    }
  }
}
