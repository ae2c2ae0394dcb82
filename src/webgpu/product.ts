/**
 * Products with packed matrices: which kernel, in which pieces.
 *
 * @module
 */

import type { ProductSizes } from "../shape.ts";
import type { DeviceBuffer } from "./buffer_pool.ts";
import type { CommandQueue } from "./commands.ts";
import { codeOf, type Form } from "./forms.ts";
import { cutPanels, type Panels } from "./handles.ts";
import type { GpuMemory } from "./memory.ts";

/** What operations run on. */
export interface Gpu {
  /** Takes the commands. */
  readonly queue: CommandQueue;
  /** Holds the values. */
  readonly memory: GpuMemory;
}

/** Rows of a matrix (rows, columns) from one row on. */
export interface Rows {
  /** The matrix. */
  readonly buffer: DeviceBuffer;
  /** The first row. */
  readonly row: number;
}

/** A packed matrix. */
export interface Packed {
  /** Its panels. */
  readonly panels: Panels;
  /** How they store elements. */
  readonly form: Form;
}

/** x Aᵀ (m, r) of one branch, in partial sums that its reader adds up. */
export interface Shrunk {
  /** The sums (parts, m, r). */
  readonly h: DeviceBuffer;
  /** How many there are of each. */
  readonly parts: number;
}

/** The LoRA tail of a product: + scaling · h Bᵀ. */
export interface Tail extends Shrunk {
  /** B (n, r). */
  readonly b: Panels;
  /** r. */
  readonly rank: number;
  /** s. */
  readonly scaling: number;
}

/** y (m, n) = x (m, k) Wᵀ + bias + tail, or y += that. */
export interface Product extends ProductSizes {
  readonly y: Rows;
  readonly x: Rows;
  readonly w: Packed;
  readonly bias?: DeviceBuffer | null;
  readonly tail?: Tail | null;
  readonly accumulate?: boolean;
}

/** Up to here a workgroup per panel and a few rows beats tiles of 32 rows, of which most would be empty. */
const FEW_ROWS = 8;
/** A product of so few columns has few tiles too: it goes by rows until the rows alone fill the GPU. */
const FEW_COLUMNS = 64;
const MANY_ROWS = 512;
/** Workgroups that are worth splitting the depth for, and the least depth of a part. */
const WANTED_GROUPS = 64;
const LEAST_SPAN = 512;
const MAX_PARTS = 16;

/** Computes a {@linkcode Product}. */
export function addProduct({ queue }: Gpu, call: Product): void {
  const { m, n, k, x, y, w, bias, tail } = call;
  const byRows = m <= FEW_ROWS;
  for (const { first, count, parts: [main, second] } of cutPanels(w.panels, ...(tail ? [tail.b] : []))) {
    const sizes = [m, n, k, tail?.rank ?? 0, tail?.parts ?? 0];
    const places = [first, count, main!.panel, second?.panel ?? 0, x.row, y.row];
    const flags = [bias ? 1 : 0, call.accumulate ? 1 : 0];
    // What a kernel is told not to read is bound to x.
    const inputs = [x.buffer, main!.buffer, bias ?? x.buffer, tail?.h ?? x.buffer, second?.buffer ?? x.buffer];
    const constants = { FORM: codeOf(w.form) };
    const rows = rowsAtOnce(m);
    queue.dispatch({
      ...(byRows
        ? { shader: "linear_rows", constants: { ...constants, ROWS: rows }, groups: count * Math.ceil(m / rows) }
        : { shader: "linear", constants, groups: Math.ceil(count / 4) * Math.ceil(m / 32) }),
      buffers: [...inputs, y.buffer],
      integers: [...sizes, ...places, ...flags, ...(byRows ? [Math.max(k, 1)] : [])],
      floats: [tail?.scaling ?? 0],
    });
  }
}

interface ShrinkCall {
  readonly x: Rows;
  readonly m: number;
  readonly k: number;
  readonly a: Panels;
  readonly rank: number;
}

/** Runs `body` with h = x Aᵀ for rows of x. */
export function shrink(gpu: Gpu, call: ShrinkCall, body: (shrunk: Shrunk) => void): void {
  const { x, m, k, a, rank } = call;
  const byRows = m <= FEW_ROWS || (rank <= FEW_COLUMNS && m <= MANY_ROWS);
  const groups = Math.max(a.count * Math.ceil(m / rowsAtOnce(m)), 1);
  const wanted = Math.min(Math.ceil(k / LEAST_SPAN), Math.ceil(WANTED_GROUPS / groups), MAX_PARTS);
  const parts = byRows ? Math.max(wanted, 1) : 1;
  gpu.memory.scratch(parts * m * rank * 4, (h) => {
    if (byRows) shrinkByRows(gpu, call, { h, parts });
    else addProduct(gpu, { x, y: { buffer: h, row: 0 }, w: { panels: a, form: "f32" }, m, n: rank, k });
    body({ h, parts });
  });
}

function shrinkByRows({ queue }: Gpu, { x, m, k, a, rank }: ShrinkCall, { h, parts }: Shrunk): void {
  const span = Math.max(Math.ceil(k / parts), 1);
  for (const { first, count, parts: [part] } of cutPanels(a)) {
    queue.dispatch({
      shader: "linear_rows",
      constants: { FORM: codeOf("f32"), ROWS: rowsAtOnce(m) },
      groups: count * Math.ceil(m / rowsAtOnce(m)) * parts,
      buffers: [x.buffer, part!.buffer, x.buffer, x.buffer, x.buffer, h],
      integers: [m, rank, k, 0, 0, first, count, part!.panel, 0, x.row, 0, 0, 0, span],
      floats: [0],
    });
  }
}

/** Rows of one workgroup of `linear_rows`: 1, 2 or 4. */
function rowsAtOnce(m: number): number {
  return m < 3 ? Math.max(m, 1) : 4;
}

/** dx (m, k) = scale · dy (m, n) W, or dx += that. */
export function addInput(
  { queue }: Gpu,
  { dx, dy, w, m, n, k, scale, accumulate }: ProductSizes & {
    dx: Rows;
    dy: Rows;
    w: Packed;
    scale: number;
    accumulate: boolean;
  },
): void {
  for (const { first, count, parts } of cutPanels(w.panels)) {
    const { buffer, panel } = parts[0]!;
    queue.dispatch({
      shader: "linear_backward_input",
      constants: { FORM: codeOf(w.form) },
      groups: Math.ceil(m / 32) * Math.ceil(k / 32),
      buffers: [dy.buffer, buffer, dx.buffer],
      integers: [m, n, k, first, count, panel, dy.row, dx.row, accumulate || first > 0 ? 1 : 0],
      floats: [scale],
    });
  }
}

/** dw (n, k) += scale · dyᵀ x over m rows. */
export function addOuter(
  { queue }: Gpu,
  { dw, dy, x, m, n, k, scale }: ProductSizes & { dw: DeviceBuffer; dy: Rows; x: Rows; scale: number },
): void {
  queue.dispatch({
    shader: "linear_backward_weight",
    groups: Math.ceil(n / 32) * Math.ceil(k / 32),
    buffers: [dy.buffer, x.buffer, dw],
    integers: [m, n, k, dy.row, x.row],
    floats: [scale],
  });
}
