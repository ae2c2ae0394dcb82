/**
 * Choosing the next token from logits, where they are: only its id leaves the backend.
 *
 * @module
 */

import type { Backend, SampleOptions, Tensor } from "../backend.ts";
import { NumericError } from "../errors.ts";

/** How the next token is chosen: candidates are what `topK` leaves, of that `topP`, of that `minP`. */
export interface SamplingOptions {
  /** Divides the logits; 0, the default, always takes the most likely token. */
  readonly temperature?: number;
  /** Only the `topK` most likely tokens are candidates; absent means all. */
  readonly topK?: number;
  /** Only the most likely tokens whose probabilities reach `topP` together are candidates; absent means all. */
  readonly topP?: number;
  /** Only tokens with at least `minP` times the probability of the most likely one are candidates; absent means all. */
  readonly minP?: number;
  /** Start of the random numbers: the same seed gives the same tokens on one backend. Absent means a random one. */
  readonly seed?: number;
}

/** Chooses tokens, one call after the other. */
export class Sampler {
  /** Absent where the most likely token is always taken. */
  readonly #filters: Omit<SampleOptions, "random"> | null;
  readonly #random: () => number;

  /**
   * Checks the options.
   *
   * @throws {RangeError} If a value is out of its range; the message names it.
   */
  constructor(options: SamplingOptions = {}) {
    const { temperature = 0, topK = Infinity, topP = 1, minP = 0 } = options;
    const { seed = Math.floor(Math.random() * 2 ** 32) } = options;
    if (!(temperature >= 0 && temperature < Infinity)) {
      throw refuse("temperature", temperature, "a finite number from 0");
    }
    if (!(topK >= 1 && (topK === Infinity || Number.isInteger(topK)))) throw refuse("topK", topK, "an integer from 1");
    if (!(topP > 0 && topP <= 1)) throw refuse("topP", topP, "a number above 0 and up to 1");
    if (!(minP >= 0 && minP <= 1)) throw refuse("minP", minP, "a number from 0 to 1");
    if (!Number.isSafeInteger(seed)) throw refuse("seed", seed, "an integer");
    this.#filters = temperature === 0 ? null : { temperature, ...(topK < Infinity && { topK }), topP, minP };
    this.#random = randomWords(seed);
  }

  /**
   * The next token for one row of logits (1, classes).
   *
   * @throws {NumericError} If a logit is NaN, or the greatest is infinite.
   */
  async next(backend: Backend, logits: Tensor): Promise<number> {
    const [id] = await this.nextRows(backend, logits, [this]);
    return id!;
  }

  /**
   * The next token for every row of logits (rows, classes), each by the random numbers of its own sampler. All have this
   * one's options.
   *
   * @throws {NumericError} If a logit is NaN, or the greatest of a row is infinite.
   */
  async nextRows(backend: Backend, logits: Tensor, samplers: readonly Sampler[]): Promise<readonly number[]> {
    const ids = this.#filters
      ? backend.sample(logits, { ...this.#filters, random: Uint32Array.from(samplers, (one) => one.#random()) })
      : backend.argmax(logits);
    const chosen = Array.from(await backend.read(ids).finally(() => ids.dispose()));
    if (chosen.every((id) => id >= 0)) return chosen;
    const message = "Cannot choose a token from logits with NaN among them, or an infinite one above all: expected " +
      "finite numbers";
    throw new NumericError(message, { field: "logits" });
  }
}

function refuse(field: string, found: number, expected: string): RangeError {
  return new RangeError(`Cannot sample with ${field} ${found}: expected ${expected}`);
}

/** 32-bit numbers from a 32-bit state (splitmix32). */
function randomWords(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x9e3779b9) >>> 0;
    let z = state;
    z = Math.imul(z ^ (z >>> 16), 0x21f0aaad);
    z = Math.imul(z ^ (z >>> 15), 0x735a2d97);
    return (z ^ (z >>> 15)) >>> 0;
  };
}
