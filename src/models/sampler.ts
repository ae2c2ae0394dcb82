/**
 * Choosing the next token from logits.
 *
 * @module
 */

import { NumericError } from "../errors.ts";

/** How the next token is chosen. */
export interface SamplingOptions {
  /** Divides the logits; 0, the default, always takes the most likely token. */
  readonly temperature?: number;
  /** Only the `topK` most likely tokens are candidates; absent means all. */
  readonly topK?: number;
  /** Only the most likely tokens whose probabilities reach `topP` together are candidates; absent means all. */
  readonly topP?: number;
  /** Start of the random numbers: the same seed gives the same tokens. Absent means a random one. */
  readonly seed?: number;
}

/** Chooses tokens, one call after the other. */
export class Sampler {
  readonly #temperature: number;
  readonly #topK: number;
  readonly #topP: number;
  readonly #random: () => number;

  /**
   * Checks the options.
   *
   * @throws {RangeError} If a value is out of its range; the message names it.
   */
  constructor(options: SamplingOptions = {}) {
    const { temperature = 0, topK = Infinity, topP = 1, seed = Math.floor(Math.random() * 2 ** 32) } = options;
    if (!(temperature >= 0 && temperature < Infinity)) {
      throw refuse("temperature", temperature, "a finite number from 0");
    }
    if (!(topK >= 1 && (topK === Infinity || Number.isInteger(topK)))) throw refuse("topK", topK, "an integer from 1");
    if (!(topP > 0 && topP <= 1)) throw refuse("topP", topP, "a number above 0 and up to 1");
    if (!Number.isSafeInteger(seed)) throw refuse("seed", seed, "an integer");
    this.#temperature = temperature;
    this.#topK = topK;
    this.#topP = topP;
    this.#random = randomNumbers(seed);
  }

  /**
   * The next token for one row of logits.
   *
   * @throws {NumericError} If a logit is NaN, or the greatest is infinite.
   */
  next(logits: Float32Array): number {
    const best = indexOfMax(logits);
    if (this.#temperature === 0) return best;
    const weight = (id: number): number => Math.exp((logits[id]! - logits[best]!) / this.#temperature);
    let candidates = this.#topK < logits.length ? largest(logits, this.#topK) : null;
    let total = sum(candidates, logits.length, weight);
    if (!(total > 0)) throw notFinite(total);
    if (this.#topP < 1) {
      // All tokens below this share weigh less than 1 - topP together: the nucleus has none of them.
      const share = (1 - this.#topP) * total / logits.length;
      candidates = nucleus(candidates ?? heavier(logits.length, weight, share), weight, this.#topP * total);
      total = sum(candidates, logits.length, weight);
    }
    return draw(candidates, logits.length, weight, this.#random() * total);
  }
}

type Weigh = (id: number) => number;

function refuse(field: string, found: number, expected: string): RangeError {
  return new RangeError(`Cannot sample with ${field} ${found}: expected ${expected}`);
}

function notFinite(found: number): NumericError {
  return new NumericError(`Cannot sample from logits with ${found} among them: expected finite numbers`, {
    field: "logits",
    found,
  });
}

function indexOfMax(logits: Float32Array): number {
  let best = 0;
  for (let i = 0; i < logits.length; i++) {
    // Written so that NaN comes here too, and ends the search.
    if (logits[i]! <= logits[best]!) continue;
    best = i;
    if (Number.isNaN(logits[i])) break;
  }
  if (!Number.isFinite(logits[best])) throw notFinite(logits[best] ?? NaN);
  return best;
}

/** Total weight of the candidates; null is every id below `count`. */
function sum(candidates: readonly number[] | null, count: number, weight: Weigh): number {
  let total = 0;
  if (candidates) { for (const id of candidates) total += weight(id); }
  else for (let id = 0; id < count; id++) total += weight(id);
  return total;
}

/** The candidate at which the running sum of weights passes `target`. */
function draw(candidates: readonly number[] | null, count: number, weight: Weigh, target: number): number {
  let id = 0;
  for (let i = 0, left = target; i < (candidates?.length ?? count) && left >= 0; i++) {
    id = candidates ? candidates[i]! : i;
    left -= weight(id);
  }
  return id;
}

function heavier(count: number, weight: Weigh, least: number): number[] {
  const ids: number[] = [];
  for (let id = 0; id < count; id++) if (weight(id) >= least) ids.push(id);
  return ids;
}

/** The fewest of the heaviest candidates that weigh `mass` together. */
function nucleus(candidates: number[], weight: Weigh, mass: number): number[] {
  candidates.sort((x, y) => weight(y) - weight(x) || x - y);
  let kept = 0;
  for (let total = 0; kept < candidates.length && total < mass; kept++) total += weight(candidates[kept]!);
  return candidates.slice(0, kept);
}

/** The ids of the `count` greatest logits, in a heap whose root is the least of them. */
function largest(logits: Float32Array, count: number): number[] {
  const heap = Array.from({ length: count }, (_, i) => i);
  for (let root = count >> 1; root-- > 0;) sink(heap, root, logits);
  for (let id = count; id < logits.length; id++) {
    if (logits[id]! <= logits[heap[0]!]!) continue;
    heap[0] = id;
    sink(heap, 0, logits);
  }
  return heap;
}

function sink(heap: number[], root: number, logits: Float32Array): void {
  const id = heap[root]!;
  for (let child = 2 * root + 1; child < heap.length; child = 2 * root + 1) {
    if (child + 1 < heap.length && logits[heap[child + 1]!]! < logits[heap[child]!]!) child++;
    if (logits[heap[child]!]! >= logits[id]!) break;
    heap[root] = heap[child]!;
    root = child;
  }
  heap[root] = id;
}

/** Numbers in [0, 1) from a 32-bit state (splitmix32). */
function randomNumbers(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x9e3779b9) >>> 0;
    let z = state;
    z = Math.imul(z ^ (z >>> 16), 0x21f0aaad);
    z = Math.imul(z ^ (z >>> 15), 0x735a2d97);
    return ((z ^ (z >>> 15)) >>> 0) / 2 ** 32;
  };
}
