import type { LoraModule } from "../adapter/adapter.ts";
import { sizeOf } from "../shape.ts";
import type { StepView } from "./draft.ts";

/** How a module's ΔW lies in its tensor. */
export interface WeightLayout extends StepView {
  /** Whether Δᵀ is added. */
  readonly transposed: boolean;
  /** Whether it could be either way by the shape. */
  readonly isSquare: boolean;
}

/**
 * Finds how a module's ΔW lies in a tensor.
 *
 * @param module The module.
 * @param shape The shape of the tensor.
 * @param square Whether a square weight is stored (in, out).
 * @returns The layout; undefined if the module is for another shape.
 */
export function layoutOf(module: LoraModule, shape: readonly number[], square: boolean): WeightLayout | undefined {
  const { kind, inFeatures, outFeatures, experts = 1 } = module;
  const isSquare = inFeatures === outFeatures;
  if (kind === "embedding") {
    const fits = isShape(shape, [inFeatures, outFeatures]);
    return fits ? { transposed: true, isSquare: false, columns: outFeatures } : undefined;
  }
  if (kind === "conv") return convLayout(module, shape);
  const [rows, columns] = shape.slice(-2) as [number, number];
  const leading = kind === "linear" || (experts === 1 && shape.length === 2) ? [] : [experts];
  const plain = isShape(shape, [...leading, outFeatures, inFeatures]);
  const turned = isShape(shape, [...leading, inFeatures, outFeatures]);
  if (!plain && !turned) return undefined;
  return { transposed: isSquare ? square : turned, isSquare, columns: columns ?? rows };
}

function convLayout(
  { loraA, loraB, rank, outFeatures }: LoraModule,
  shape: readonly number[],
): WeightLayout | undefined {
  const groups = rank / loraB.shape[1]!;
  const [, inFeatures, ...kernel] = loraA.shape as readonly [number, number, ...number[]];
  if (!isShape(shape, [outFeatures, inFeatures / groups, ...kernel])) return undefined;
  const whole = [outFeatures, inFeatures, ...kernel];
  const columns = sizeOf(whole.slice(1));
  return { transposed: false, isSquare: false, columns, ...(groups > 1 && { groups, shape: whole }) };
}

function isShape(shape: readonly number[], wanted: readonly number[]): boolean {
  return shape.join() === wanted.join();
}
