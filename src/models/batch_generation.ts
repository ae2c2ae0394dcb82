/**
 * Text after several prompts at once: each pass over the weights serves every sequence that has not ended.
 *
 * @module
 */

import type { Backend, Tensor } from "../backend.ts";
import { takeMixes } from "../lora/selection.ts";
import type { CausalNetwork, NetworkPass } from "./causal_network.ts";
import { KvCache } from "./kv_cache.ts";
import type { Prompt } from "./prompt.ts";

/** What {@linkcode BatchGeneration} asks of a model. */
export interface BatchGenerationOptions {
  /** The prompts. */
  readonly prompts: readonly Prompt[];
  /** Where it computes. */
  readonly backend: Backend;
  /** The network. */
  readonly network: CausalNetwork;
  /** Adapters of all prompts, and pauses. */
  readonly pass: Omit<NetworkPass, "cache">;
  /** Ids that end a text. */
  readonly eosIds: ReadonlySet<number>;
  /** Called with every new id and the number of its prompt. */
  readonly onToken?: ((id: number, row: number) => void) | undefined;
  /** Holds what has caches, so that a model's end frees them. */
  readonly live: Set<{ dispose(): void }>;
}

/** A piece of new text. */
export interface BatchPiece {
  /** Number of the prompt that it follows. */
  readonly row: number;
  /** The text. */
  readonly text: string;
}

/** Pieces of new text after each of several prompts, computed as they are asked for. It can be iterated once. */
export class BatchGeneration implements AsyncIterable<BatchPiece> {
  /** Number of tokens in each prompt. */
  readonly promptTokens: readonly number[];
  /** Ids of the new tokens after each prompt so far, the end token included. */
  readonly tokens: readonly number[][];
  #options: BatchGenerationOptions | null;

  /** Prepares the generation; nothing is computed before it is iterated. */
  constructor(options: BatchGenerationOptions) {
    this.promptTokens = options.prompts.map(({ ids }) => ids.length);
    this.tokens = options.prompts.map(() => []);
    this.#options = options;
  }

  /**
   * Begins to generate. Leaving the loop early frees what it used.
   *
   * @throws {RangeError} If it was iterated before.
   */
  [Symbol.asyncIterator](): AsyncGenerator<BatchPiece, void, void> {
    if (!this.#options) throw new RangeError("Cannot iterate a generation twice: generate again");
    const options = this.#options;
    this.#options = null;
    return run(options, this.tokens);
  }
}

async function* run(
  options: BatchGenerationOptions,
  tokens: readonly number[][],
): AsyncGenerator<BatchPiece, void, void> {
  const { prompts, live } = options;
  const caches = new BatchCaches(options);
  live.add(caches);
  try {
    let rows = prompts.flatMap(({ maxNewTokens }, row) => maxNewTokens > 0 ? [row] : []);
    // The prompts differ in length, so each is read on its own; from then on every sequence grows by one token.
    for (const row of rows) {
      yield* take(options, tokens, row, (await next(options, caches, [row], prompts[row]!.ids))[0]!);
    }
    for (;;) {
      rows = rows.filter((row) => !hasEnded(options, tokens, row));
      caches.keep(rows);
      if (rows.length === 0) return;
      const ids = await next(options, caches, rows, rows.map((row) => tokens[row]!.at(-1)!));
      for (const [i, row] of rows.entries()) yield* take(options, tokens, row, ids[i]!);
    }
  } finally {
    caches.dispose();
    live.delete(caches);
  }
}

/** The tokens after the last of `ids` in each of these rows. */
async function next(
  { prompts, backend, network, pass }: BatchGenerationOptions,
  caches: BatchCaches,
  rows: readonly number[],
  ids: readonly number[],
): Promise<readonly number[]> {
  const starts = new Map([...pass.starts].map(([name, all]) => [name, rows.map((row) => all[row]!)]));
  const own = { batch: rows.length, mixes: takeMixes(pass.mixes, rows), starts, pause: pass.pause };
  const logits: Tensor = await network.nextLogits(Uint32Array.from(ids), { ...own, cache: caches.of(rows) });
  const samplers = rows.map((row) => prompts[row]!.sampler);
  return await samplers[0]!.nextRows(backend, logits, samplers).finally(() => logits.dispose());
}

/** Notes a new token, and gives the text that it completes. */
function* take(
  options: BatchGenerationOptions,
  tokens: readonly number[][],
  row: number,
  id: number,
): Generator<BatchPiece, void, void> {
  const { prompts, eosIds, onToken } = options;
  const { stream } = prompts[row]!;
  tokens[row]!.push(id);
  onToken?.(id, row);
  const text = [eosIds.has(id) ? "" : stream?.push(id), hasEnded(options, tokens, row) ? stream?.end() : ""].join("");
  if (text) yield { row, text };
}

function hasEnded({ prompts, eosIds }: BatchGenerationOptions, tokens: readonly number[][], row: number): boolean {
  const own = tokens[row]!;
  return own.length >= prompts[row]!.maxNewTokens || (own.length > 0 && eosIds.has(own.at(-1)!));
}

/** A cache for each sequence that has not ended, made when it is first needed. */
class BatchCaches {
  readonly #options: BatchGenerationOptions;
  readonly #caches = new Map<number, KvCache>();

  constructor(options: BatchGenerationOptions) {
    this.#options = options;
  }

  of(rows: readonly number[]): readonly KvCache[] {
    const { backend, prompts } = this.#options;
    return rows.map((row) => {
      const cache = this.#caches.get(row) ?? new KvCache(backend, prompts[row]!.cache);
      this.#caches.set(row, cache);
      return cache;
    });
  }

  /** Frees the caches of all other rows. */
  keep(rows: readonly number[]): void {
    for (const [row, cache] of this.#caches) {
      if (rows.includes(row)) continue;
      cache.dispose();
      this.#caches.delete(row);
    }
  }

  dispose(): void {
    this.keep([]);
  }
}
