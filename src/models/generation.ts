/**
 * Text from a model, token by token.
 *
 * @module
 */

import type { Decoder } from "./decoder.ts";
import type { Prompt } from "./prompt.ts";

/** What {@linkcode Generation} asks of a model. */
export interface GenerationOptions {
  /** The prompt. */
  readonly prompt: Prompt;
  /** Ids that end the text; the one that does is among the tokens, not in the text. */
  readonly eosIds: ReadonlySet<number>;
  /** Called with every new id. */
  readonly onToken?: ((id: number) => void) | undefined;
  /** Computes what comes after all ids given so far; it ends with the generation. */
  readonly decoder: Decoder;
}

/** Pieces of new text, computed as they are asked for. It can be iterated once. */
export class Generation implements AsyncIterable<string> {
  /** Number of tokens in the prompt. */
  readonly promptTokens: number;
  /** Ids of the new tokens so far, the end token included. */
  readonly tokens: number[] = [];
  #options: GenerationOptions | null;

  /** Prepares the generation; nothing is computed before it is iterated. */
  constructor(options: GenerationOptions) {
    this.promptTokens = options.prompt.ids.length;
    this.#options = options;
  }

  /**
   * Begins to generate. Leaving the loop early frees what it used.
   *
   * @throws {RangeError} If it was iterated before.
   */
  [Symbol.asyncIterator](): AsyncGenerator<string, void, void> {
    if (!this.#options) throw new RangeError("Cannot iterate a generation twice: generate again");
    const options = this.#options;
    this.#options = null;
    return run(options, this.tokens);
  }
}

async function* run(options: GenerationOptions, tokens: number[]): AsyncGenerator<string, void, void> {
  const { prompt, decoder, eosIds, onToken } = options;
  const { stream, sampler, maxNewTokens } = prompt;
  try {
    let { ids } = prompt;
    while (tokens.length < maxNewTokens) {
      const id = await decoder.step(ids, sampler);
      tokens.push(id);
      onToken?.(id);
      if (eosIds.has(id)) break;
      const piece = stream?.push(id);
      if (piece) yield piece;
      ids = [id];
    }
    const tail = stream?.end();
    if (tail) yield tail;
  } finally {
    decoder.dispose();
  }
}
