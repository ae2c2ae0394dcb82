import type { Matrix } from "./linear_algebra.ts";

/**
 * Clips the values of two factors at ± their q-quantile, as PEFT's `svd_clamp` and kohya's `clamp_quantile` do with U S
 * and V. They take the quantile of the values as the decomposition left them, whose signs are arbitrary; here it is that
 * of the values and their negatives, which does not depend on them.
 *
 * @param factors The factors.
 * @param quantile q, above 0.5 up to 1; 1 clips nothing.
 * @returns The clipped factors.
 */
export function clampFactors<Name extends string>(
  factors: Readonly<Record<Name, Matrix>>,
  quantile: number,
): Record<Name, Matrix> {
  const entries = Object.entries(factors) as [Name, Matrix][];
  const sizes = new Float64Array(entries.reduce((count, [, { values }]) => count + values.length, 0));
  let filled = 0;
  for (const [, { values }] of entries) {
    sizes.set(values.map(Math.abs), filled);
    filled += values.length;
  }
  sizes.sort();
  // Of n values and their negatives, sorted, the upper n are these; between two the line, as torch.quantile takes it.
  const place = quantile * (2 * sizes.length - 1) - sizes.length;
  const [lower, upper] = [Math.floor(place), Math.ceil(place)].map((at) => at < 0 ? -sizes[0]! : sizes[at]!);
  const bound = Math.max(0, lower! + (upper! - lower!) * (place - Math.floor(place)));
  const clip = (value: number) => Math.min(Math.max(value, -bound), bound);
  return Object.fromEntries(entries.map(([name, one]) => [name, { ...one, values: one.values.map(clip) }])) as Record<
    Name,
    Matrix
  >;
}

/** Whether a number is a quantile that {@linkcode clampFactors} takes. */
export function isClamp(quantile: number): boolean {
  return quantile > 0.5 && quantile <= 1;
}
