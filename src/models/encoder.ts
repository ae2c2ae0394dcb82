/**
 * An encoder whose adapters are swapped without touching the base.
 *
 * @module
 */

import { AdaptedModel, type AdaptedModelParts } from "./adapted_model.ts";
import type { Bert } from "./bert.ts";
import type { BertConfig } from "./bert_config.ts";
import type { ModelForwardOptions } from "./language_model_options.ts";
import type { Placement } from "./placement.ts";
import { flattenRows } from "./token_ids.ts";

/** What an {@linkcode Encoder} is made of. */
export interface EncoderParts extends AdaptedModelParts<Bert> {
  /** The model's numbers. */
  readonly config: BertConfig;
}

/** What an encoder says. */
export interface Encoding {
  /** `[batch, length, width]` of a last hidden state, `[batch, labels]` of a classifier. */
  readonly shape: readonly number[];
  /** The numbers, row-major. */
  readonly values: Float32Array;
}

/** A base encoder, held once, and the adapters that answer over it. Made by {@linkcode loadEncoder}. */
export class Encoder extends AdaptedModel {
  /** The model's numbers. */
  readonly config: BertConfig;

  /** Takes a network whose parameters match the config. */
  constructor(parts: EncoderParts) {
    super(parts);
    this.config = parts.config;
  }

  /**
   * The last hidden state (batch, length, width), or the logits (batch, labels) of a classifier of sequences.
   *
   * @param ids Token ids, one row per sequence; all rows have one length, and none is padding.
   * @param options Which adapters answer, and abort.
   * @throws {ShapeError} If there are no ids, or rows of several lengths.
   * @throws {LimitError} If the rows are longer than the model's positions.
   * @throws {MismatchError} If an adapter's name is unknown; the message lists the known ones.
   */
  async forward(ids: readonly (readonly number[])[], options: ModelForwardOptions = {}): Promise<Encoding> {
    this.requireLive();
    const flat = flattenRows("run forward", ids, this.config);
    const batch = ids.length;
    const length = flat.length / batch;
    const { backend, network, adapters } = this.placement as Placement<Bert>;
    const rows = adapters.resolve(options.adapter, batch);
    const mixes = rows.map(({ start, end, mix }) => ({ start: start * length, end: end * length, mix }));
    const output = await network.run(flat, { batch, mixes, pause: this.pauses(rows, options.signal) });
    try {
      const { labels, hiddenSize } = this.config;
      const shape = labels ? [batch, labels.length] : [batch, length, hiddenSize];
      return { shape, values: await backend.read(output) };
    } finally {
      output.dispose();
    }
  }
}
