/**
 * The linear operation and its gradients on kernels: base and first adapter in one pass where one adapter serves all
 * rows (K extended by the rank), further branches added to the rows they belong to.
 *
 * @module
 */

import type { RowBranches } from "../backend.ts";
import type { ProductSizes } from "../shape.ts";
import type { Kernels } from "./kernels.ts";
import { DTYPE_CODES, type LinearMemory } from "./memory.ts";

/** Addresses of one branch's factors as f32 panels. */
export interface BranchAddresses {
  /** A (rank, in). */
  readonly a: number;
  /** B (out, rank). */
  readonly b: number;
  /** r. */
  readonly rank: number;
  /** s. */
  readonly scaling: number;
}

/** A branch with the addresses of its gradients; 0 where one is not wanted. */
export interface GradientAddresses extends BranchAddresses {
  /** dA (rank, in). */
  readonly da: number;
  /** dB (out, rank). */
  readonly db: number;
}

interface LinearCall extends ProductSizes {
  readonly y: number;
  readonly x: number;
  readonly w: number;
  readonly dtype: number;
  readonly bias: number;
}

interface GradientCall extends ProductSizes {
  readonly dy: number;
  readonly x: number;
  readonly w: number;
  readonly dtype: number;
  readonly dx: number;
  readonly dw: number;
  readonly dbias: number;
}

const F32 = DTYPE_CODES.f32;

/** Runs y = x Wᵀ + bias + Σ s (x Aᵀ) Bᵀ per row range. */
export function addLinear(
  kernels: Kernels,
  memory: LinearMemory,
  call: LinearCall,
  ranges: readonly RowBranches<BranchAddresses>[],
): void {
  const { y, x, w, dtype, bias, m, n, k } = call;
  const shrink = (row: number, rows: number, branch: BranchAddresses, body: (h: number) => void): void => {
    memory.scratch(rows * branch.rank * 4, (h) => {
      product(kernels, memory, { y: h, x: x + row * k * 4, w: branch.a, dtype: F32, m: rows, n: branch.rank, k });
      if (branch.scaling !== 1) kernels.scale(h, branch.scaling, rows * branch.rank);
      body(h);
    });
  };
  const only = ranges.length === 1 && ranges[0]!.start === 0 && ranges[0]!.end === m ? ranges[0]!.branches[0] : null;
  const base = { y, x, w, dtype, bias, m, n, k };
  if (only) shrink(0, m, only, (h) => product(kernels, memory, { ...base, h, b: only.b, r: only.rank }));
  else product(kernels, memory, base);
  for (const { start, end, branches } of ranges) {
    for (const branch of branches) {
      if (branch === only || end === start) continue;
      shrink(start, end - start, branch, (h) => {
        const rows = { y: y + start * n * 4, m: end - start, n, k: branch.rank };
        product(kernels, memory, { ...rows, x: h, w: branch.b, dtype: F32, accumulate: true });
      });
    }
  }
}

interface Product extends ProductSizes {
  readonly y: number;
  readonly x: number;
  readonly w: number;
  readonly dtype: number;
  readonly bias?: number;
  readonly h?: number;
  readonly b?: number;
  readonly r?: number;
  readonly accumulate?: boolean;
}

function product(kernels: Kernels, memory: LinearMemory, call: Product): void {
  const { y, x, w, dtype, bias = 0, h = 0, b = 0, m, n, k, r = 0 } = call;
  memory.scratch(kernels.linear_scratch(m, n, k, dtype), (scratch) => {
    kernels.linear(y, x, w, dtype, bias, h, b, m, n, k, r, call.accumulate ? 1 : 0, scratch);
  });
}

/** Adds the gradients of {@linkcode addLinear}; an address of 0 is not wanted. */
export function addGradients(
  kernels: Kernels,
  memory: LinearMemory,
  call: GradientCall,
  ranges: readonly RowBranches<GradientAddresses>[],
): void {
  const { dy, x, dx, dw, dbias, m, n, k } = call;
  if (dx) addInput(kernels, memory, { dx, dy, w: call.w, dtype: call.dtype, m, n, k });
  if (dw) addWeight(kernels, memory, { dw, dy, x, m, n, k });
  if (dbias) kernels.sum_rows(dbias, dy, m, n);
  for (const { start, end, branches } of ranges) {
    const rows = {
      dy: dy + start * n * 4,
      x: x + start * k * 4,
      dx: dx && dx + start * k * 4,
      m: end - start,
      n,
      k,
    };
    for (const branch of branches) addBranchGradients(kernels, memory, rows, branch);
  }
}

function addBranchGradients(
  kernels: Kernels,
  memory: LinearMemory,
  { dy, x, dx, m, n, k }: ProductSizes & { readonly dy: number; readonly x: number; readonly dx: number },
  { a, b, rank, scaling, da, db }: GradientAddresses,
): void {
  const bytes = m * rank * 4;
  memory.scratch(bytes, (h) => {
    if (db) {
      product(kernels, memory, { y: h, x, w: a, dtype: F32, m, n: rank, k });
      kernels.scale(h, scaling, m * rank);
      addWeight(kernels, memory, { dw: db, dy, x: h, m, n, k: rank });
    }
    if (!da && !dx) return;
    memory.bytes(h, bytes).fill(0);
    addInput(kernels, memory, { dx: h, dy, w: b, dtype: F32, m, n, k: rank });
    kernels.scale(h, scaling, m * rank);
    if (da) addWeight(kernels, memory, { dw: da, dy: h, x, m, n: rank, k });
    if (dx) addInput(kernels, memory, { dx, dy: h, w: a, dtype: F32, m, n: rank, k });
  });
}

function addInput(
  kernels: Kernels,
  memory: LinearMemory,
  { dx, dy, w, dtype, m, n, k }: ProductSizes & { dx: number; dy: number; w: number; dtype: number },
): void {
  memory.scratch(kernels.linear_backward_input_scratch(m, n, k, dtype), (scratch) => {
    kernels.linear_backward_input(dx, dy, w, dtype, m, n, k, scratch);
  });
}

function addWeight(
  kernels: Kernels,
  memory: LinearMemory,
  { dw, dy, x, m, n, k }: ProductSizes & { dw: number; dy: number; x: number },
): void {
  memory.scratch(kernels.linear_backward_weight_scratch(m, n, k), (scratch) => {
    kernels.linear_backward_weight(dw, dy, x, m, n, k, scratch);
  });
}
