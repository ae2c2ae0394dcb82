/**
 * The linear operation and its gradients on kernels: base and first adapter in one pass where one adapter serves all
 * rows (K extended by the rank), further branches added to the rows they belong to. All scratch is reserved before the
 * first kernel runs, so that a lack of memory changes nothing.
 *
 * @module
 */

import type { RowBranches } from "../backend.ts";
import type { ProductSizes } from "../shape.ts";
import type { Kernels } from "./kernels.ts";
import { DTYPE_CODES, INTEGERS } from "./dtypes.ts";
import type { LinearMemory } from "./memory.ts";

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

/** Addresses of a linear operation. */
export interface LinearCall extends ProductSizes {
  /** y (m, n). */
  readonly y: number;
  /** x (m, k). */
  readonly x: number;
  /** Panels of W (n, k). */
  readonly w: number;
  /** Code of W's dtype. */
  readonly dtype: number;
  /** Bias (n), or 0. */
  readonly bias: number;
}

/** Addresses of a backward pass; an address of 0 is not wanted. */
export interface GradientCall extends ProductSizes {
  /** dy (m, n). */
  readonly dy: number;
  /** x (m, k). */
  readonly x: number;
  /** Panels of W (n, k). */
  readonly w: number;
  /** Code of W's dtype. */
  readonly dtype: number;
  /** dx (m, k). */
  readonly dx: number;
  /** dW (n, k). */
  readonly dw: number;
  /** dbias (n). */
  readonly dbias: number;
}

const F32 = DTYPE_CODES.f32;
const ALIGNMENT = 64;

type Body = (h: number, scratch: number) => void;

function reserve(memory: LinearMemory, rankBytes: number, kernelBytes: number, body: Body): void {
  const h = Math.ceil(rankBytes / ALIGNMENT) * ALIGNMENT;
  memory.scratch(h + kernelBytes, (address) => body(address, address + h));
}

function largest(values: Iterable<number>): number {
  let most = 0;
  for (const value of values) most = Math.max(most, value);
  return most;
}

/** Runs y = x Wᵀ + bias + Σ s (x Aᵀ) Bᵀ per row range. */
export function runLinear(
  kernels: Kernels,
  memory: LinearMemory,
  call: LinearCall,
  ranges: readonly RowBranches<BranchAddresses>[],
): void {
  const { y, x, w, dtype, bias, m, n, k } = call;
  const ranks = ranges.flatMap(({ branches }) => branches.map(({ rank }) => rank));
  const needs = ranks.flatMap((r) => [kernels.linear_scratch(m, r, k, F32), kernels.linear_scratch(m, n, r, F32)]);
  const kernelBytes = largest([kernels.linear_scratch(m, n, k, dtype), ...needs]);
  reserve(memory, m * largest(ranks) * 4, kernelBytes, (h, scratch) => {
    const shrink = (start: number, rows: number, { a, rank, scaling }: BranchAddresses): void => {
      kernels.linear(h, x + start * k * 4, a, F32, 0, 0, 0, rows, rank, k, 0, 0, rank, 0, scratch);
      if (scaling !== 1) kernels.scale(h, scaling, rows * rank);
    };
    const whole = ranges.length === 1 && ranges[0]!.start === 0 && ranges[0]!.end === m;
    const first = whole ? ranges[0]!.branches[0] : undefined;
    if (first) shrink(0, m, first);
    if (INTEGERS.includes(dtype)) kernels.round_activations(scratch, x, m, k, dtype, 0, m);
    kernels.linear(y, x, w, dtype, bias, first ? h : 0, first?.b ?? 0, m, n, k, first?.rank ?? 0, 0, n, 0, scratch);
    for (const { start, end, branches } of ranges) {
      for (const branch of branches) {
        if (branch === first) continue;
        shrink(start, end - start, branch);
        const rows = y + start * n * 4;
        kernels.linear(rows, h, branch.b, F32, 0, 0, 0, end - start, n, branch.rank, 0, 0, n, 1, scratch);
      }
    }
  });
}

/** Adds the gradients of {@linkcode runLinear}. */
export function addGradients(
  kernels: Kernels,
  memory: LinearMemory,
  call: GradientCall,
  ranges: readonly RowBranches<GradientAddresses>[],
): void {
  const { dy, x, w, dtype, dx, dw, dbias, m, n, k } = call;
  const ranks = ranges.flatMap(({ branches }) => branches.map(({ rank }) => rank));
  const kernelBytes = largest([
    kernels.linear_backward_input_scratch(m, n, k, dtype),
    kernels.linear_backward_weight_scratch(m, n, k),
    ...ranks.flatMap((rank) => branchScratch(kernels, call, rank)),
  ]);
  reserve(memory, m * largest(ranks) * 4, kernelBytes, (h, scratch) => {
    if (dx) kernels.linear_backward_input(dx, dy, w, dtype, m, n, k, 0, k, scratch);
    if (dw) kernels.linear_backward_weight(dw, dy, x, m, n, k, n, k, scratch);
    if (dbias) kernels.column_sums(dbias, dy, 0, 1, m, n);
    for (const { start, end, branches } of ranges) {
      const from = { dy: dy + start * n * 4, x: x + start * k * 4, dx: dx && dx + start * k * 4 };
      const rows = { ...from, m: end - start, n, k, h, scratch };
      for (const branch of branches) addBranchGradients(kernels, memory, rows, branch);
    }
  });
}

function branchScratch(kernels: Kernels, { m, n, k }: ProductSizes, rank: number): number[] {
  return [
    kernels.linear_scratch(m, rank, k, F32),
    kernels.linear_backward_weight_scratch(m, n, rank),
    kernels.linear_backward_weight_scratch(m, rank, k),
    kernels.linear_backward_input_scratch(m, n, rank, F32),
    kernels.linear_backward_input_scratch(m, rank, k, F32),
  ];
}

interface BranchRows extends ProductSizes {
  readonly dy: number;
  readonly x: number;
  readonly dx: number;
  readonly h: number;
  readonly scratch: number;
}

function addBranchGradients(
  kernels: Kernels,
  memory: LinearMemory,
  { dy, x, dx, m, n, k, h, scratch }: BranchRows,
  { a, b, rank, scaling, da, db }: GradientAddresses,
): void {
  if (db) {
    kernels.linear(h, x, a, F32, 0, 0, 0, m, rank, k, 0, 0, rank, 0, scratch);
    kernels.scale(h, scaling, m * rank);
    kernels.linear_backward_weight(db, dy, h, m, n, rank, n, rank, scratch);
  }
  if (!da && !dx) return;
  memory.bytes(h, m * rank * 4).fill(0);
  kernels.linear_backward_input(h, dy, b, F32, m, n, rank, 0, rank, scratch);
  kernels.scale(h, scaling, m * rank);
  if (da) kernels.linear_backward_weight(da, h, x, m, rank, k, rank, k, scratch);
  if (dx) kernels.linear_backward_input(dx, h, a, F32, m, rank, k, 0, k, scratch);
}
