/** The shapes that all libraries are measured at. */
import type { Job, Topic } from "./types.ts";

/** y (rows, outputs) = x (rows, inputs) Wᵀ. */
export interface Shape {
  readonly rows: number;
  readonly inputs: number;
  readonly outputs: number;
}

function shape(rows: number, inputs: number, outputs: number = inputs): Shape {
  return { rows, inputs, outputs };
}

/** `rows x inputs x outputs`, as figures are called. */
export function shapeName({ rows, inputs, outputs }: Shape): string {
  return `${rows} x ${inputs} x ${outputs}`;
}

/** FLOP of the product. */
export function flopOf({ rows, inputs, outputs }: Shape): number {
  return 2 * rows * inputs * outputs;
}

/** Square products, and a batch through a large weight. */
export function gemmShapes({ quick }: Job): Shape[] {
  const sizes = quick ? [512, 1024] : [256, 512, 1024, 2048];
  return [...sizes.map((size) => shape(size, size)), shape(128, 4096)];
}

/** From the cache, and twice from memory. */
export function gemvShapes({ quick }: Job): Shape[] {
  return quick ? [shape(1, 4096)] : [shape(1, 1024), shape(1, 4096), shape(1, 4096, 11008)];
}

/** Rank and batch of the adapters measured. */
export function loraCases({ quick }: Job): { readonly rank: number; readonly shape: Shape }[] {
  const ranks = quick ? [16] : [8, 16, 64];
  return [1, 128].flatMap((rows) => ranks.map((rank) => ({ rank, shape: shape(rows, 4096) })));
}

/** Whether the job measures this. */
export function wants({ topics }: Job, topic: Topic): boolean {
  return topics.includes(topic);
}
