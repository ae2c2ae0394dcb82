/** Finding figures in a run, and comparing them. */
import { median } from "../src/cli/bench_timing.ts";
import type { Figure, Run } from "./types.ts";

/** A number by least times, and by medians. */
export interface Pair {
  readonly least: number;
  readonly median: number;
}

/** The engine that the targets are for, and peers' own. */
export const MAIN_ENGINE = "Node 24";

/** What tells a figure from others. */
export interface Wanted {
  readonly topic: Figure["topic"];
  readonly party?: string;
  readonly name?: string;
  readonly variant?: string;
  readonly threads?: number;
  /** What the engine's name begins with; absent is any. */
  readonly engine?: string;
}

/** All figures of one thread, or as many as wanted, that fit. */
export function findFigures({ figures }: Pick<Run, "figures">, wanted: Wanted): Figure[] {
  const { topic, party, name, variant, threads = 1, engine = "" } = wanted;
  return figures.filter((figure) =>
    figure.topic === topic && figure.threads === threads && figure.engine.startsWith(engine) &&
    figure.party === (party ?? figure.party) && figure.name === (name ?? figure.name) &&
    figure.variant === (variant ?? figure.variant)
  );
}

/** This package's figure in the main engine. */
export function ownFigure(run: Pick<Run, "figures">, wanted: Omit<Wanted, "party">): Figure | undefined {
  return findFigures(run, { engine: MAIN_ENGINE, ...wanted, party: "lora" })[0];
}

/** Work per ms: more is better. */
export function rateOf({ work, times }: Figure): Pair {
  const amount = work.tokens ?? (work.bytes ?? work.flop ?? NaN);
  return { least: amount / times.least, median: amount / median(times.batches) };
}

/** The figure of the highest median rate. */
export function fastest(figures: readonly Figure[]): Figure | undefined {
  return figures.toSorted((a, b) => rateOf(b).median - rateOf(a).median)[0];
}

/**
 * How many times as fast the first is. The two ran at different times: where both took turns with the same limit, it is
 * their times in terms of it that are compared, so that a busy or slower moment counts for neither.
 */
export function speedUp(a: Figure | undefined, b: Figure | undefined): Pair | null {
  if (!a || !b) return null;
  // Of one shape the times are compared, so that formats of fewer bytes count as faster.
  const scale = a.work.tokens !== undefined ? a.work.tokens / (b.work.tokens ?? NaN) : 1;
  const isRelative = a.threads === b.threads && a.limits?.[0]?.kind === b.limits?.[0]?.kind;
  const [x, y] = [costOf(a, isRelative), costOf(b, isRelative)];
  return { least: scale * y.least / x.least, median: scale * y.median / x.median };
}

/** Ms, or how much of the first limit could have been done in that time. */
function costOf({ times, limits = [] }: Figure, isRelative: boolean): Pair {
  const [limit] = limits;
  if (!isRelative || !limit) return { least: times.least, median: median(times.batches) };
  const costs = times.batches.map((ms, index) => ms / (limit.times.batches[index] ?? NaN) * limit.per);
  return { least: times.least / limit.times.least * limit.per, median: median(costs) };
}

/** The least time that the silicon allows over the time taken. */
export function shareOfLimit({ times, limits = [] }: Figure): Pair | null {
  if (limits.length === 0) return null;
  const floors = limits.map(({ work, per, times }) => ({
    least: times.least * work / per,
    batches: times.batches.map((ms) => ms * work / per),
  }));
  const shares = times.batches.map((ms, index) => Math.max(...floors.map(({ batches }) => batches[index] ?? NaN)) / ms);
  return { least: Math.max(...floors.map(({ least }) => least)) / times.least, median: median(shares) };
}

/** Time with the adapter over time without it, less 1. */
export function overhead({ times, base }: Figure): Pair | null {
  if (!base) return null;
  const ratios = times.batches.map((ms, index) => ms / (base.batches[index] ?? NaN));
  return { least: times.least / base.least - 1, median: median(ratios) - 1 };
}

/** Rates in the unit that a person expects. */
export function readableRate(figure: Figure): Pair & { readonly unit: string } {
  const { least, median } = rateOf(figure);
  if (figure.work.tokens !== undefined) return { least: least * 1e3, median: median * 1e3, unit: "tokens/s" };
  const unit = figure.work.bytes === undefined ? "GFLOP/s" : "GB/s";
  return { least: least / 1e6, median: median / 1e6, unit };
}
