import { setImmediate } from "node:timers/promises";

/** Something to time; `undo` puts things back between two runs, untimed. */
export interface Body {
  /** The work; where not all of it counts, it returns the ms that do. */
  run(): void | number | Promise<void | number>;
  /** What makes it repeatable. */
  undo?(): void;
}

/** Times of one body in ms. */
export interface Times {
  /** Of the run that was disturbed least. */
  readonly least: number;
  /** Means of successive runs, in order. */
  readonly batches: readonly number[];
}

/** How long {@linkcode timeInTurns} measures: at least `ms` and seven rounds, unless those take longer than `most`. */
export interface TimingOptions {
  /** Time wanted, in ms. */
  readonly ms: number;
  /** Rounds beyond the fewest end here, in ms; absent is never. */
  readonly most?: number;
  /** Rounds in any case; 3 if absent. */
  readonly fewest?: number;
  /** Ends it early. */
  readonly signal?: AbortSignal;
}

const LEAST_ROUNDS = 7;
const MOST_BATCHES = 15;

async function time(body: Body): Promise<number> {
  const start = performance.now();
  const counted = await body.run();
  const elapsed = performance.now() - start;
  body.undo?.();
  return counted ?? elapsed;
}

/** The median; of none NaN. */
export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle]! : ((sorted[middle - 1] ?? NaN) + (sorted[middle] ?? NaN)) / 2;
}

/** Least time and the means of at most fifteen batches of successive runs. */
export function summarize(runs: readonly number[]): Times {
  const count = Math.min(runs.length, MOST_BATCHES);
  const batches = Array.from({ length: count }, (_, index) => {
    const batch = runs.slice(Math.floor(index * runs.length / count), Math.floor((index + 1) * runs.length / count));
    return batch.reduce((sum, ms) => sum + ms, 0) / batch.length;
  });
  return { least: Math.min(...runs), batches };
}

/**
 * Times of each body. They run in turns, so that a busy or throttled moment hits all alike; behind the first, the peak,
 * they change places every round, because who comes later finds more of the matrix in the caches.
 */
export async function timeInTurns(bodies: readonly Body[], options: TimingOptions): Promise<Times[]> {
  const { ms, most = Infinity, fewest = 3, signal } = options;
  const runs = bodies.map((): number[] => []);
  const start = performance.now();
  for (let round = 0;; round++) {
    const elapsed = performance.now() - start;
    if (round >= LEAST_ROUNDS ? elapsed >= ms : round >= fewest && elapsed >= most) break;
    const [peak, ...others] = [...bodies.entries()];
    for (const [index, body] of [peak!, ...(round % 2 === 0 ? others : others.reverse())]) {
      runs[index]!.push(await time(body));
    }
    await setImmediate();
    signal?.throwIfAborted();
  }
  return runs.map(summarize);
}
