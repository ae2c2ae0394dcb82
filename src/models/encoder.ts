/**
 * An encoder whose adapters are swapped without touching the base.
 *
 * @module
 */

import { AdaptedModel, type AdaptedModelParts } from "./adapted_model.ts";
import type { Bert } from "./bert.ts";
import type { BertConfig } from "./bert_config.ts";
import type { ModelForwardOptions } from "./language_model_options.ts";
import { type PackedRows, packMixes, packRows } from "./packed_rows.ts";
import type { Placement } from "./placement.ts";

/** What an {@linkcode Encoder} is made of. */
export interface EncoderParts extends AdaptedModelParts<Bert> {
  /** The model's numbers. */
  readonly config: BertConfig;
}

/** Options of {@linkcode Encoder.forward}. */
export interface EncoderForwardOptions extends ModelForwardOptions {
  /**
   * 1 for each token and 0 for padding, in the shape of the ids. A token keeps its position in the row, as in
   * transformers. Absent, every id is a token.
   */
  readonly attentionMask?: readonly (readonly number[])[];
}

/** Options of {@linkcode Encoder.embed}. */
export interface EmbedOptions extends EncoderForwardOptions {
  /** What stands for a sequence: the mean of its tokens, or the first one ([CLS]); the mean if absent. */
  readonly pooling?: "mean" | "first";
  /** Whether every vector has the length 1, so that products are cosines; false if absent. */
  readonly normalize?: boolean;
}

/** What an encoder says. */
export interface Encoding {
  /** `[batch, length, width]` of a last hidden state, `[batch, labels]` of a classifier, `[batch, width]` of vectors. */
  readonly shape: readonly number[];
  /** The numbers, row-major. Those of padding are 0. */
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
   * The last hidden state (batch, length, width), or the logits (batch, labels) of a classifier of sequences. Rows may
   * differ in length, and be padded where a mask says so: a sequence gives what it gives alone, and padding, whose states
   * are zero, costs nothing.
   *
   * @param ids Token ids, one row per sequence.
   * @param options The mask, which adapters answer, and abort.
   * @throws {ShapeError} If there are no ids, or the mask has another shape or hides a whole row.
   * @throws {LimitError} If a row is longer than the model's positions.
   * @throws {MismatchError} If an adapter's name is unknown; the message lists the known ones.
   */
  async forward(ids: readonly (readonly number[])[], options: EncoderForwardOptions = {}): Promise<Encoding> {
    const { labels, hiddenSize } = this.config;
    const { rows, values: packed } = await this.#run("run forward", ids, options, true);
    const width = labels ? labels.length : hiddenSize;
    const length = labels ? 1 : rows.width;
    const values = new Float32Array(ids.length * length * width);
    rows.sequences.forEach(({ row, start, positions }, i) => {
      if (labels) return values.set(packed.subarray(i * width, (i + 1) * width), row * width);
      positions.forEach((position, token) => {
        const from = (start + token) * width;
        values.set(packed.subarray(from, from + width), (row * length + position) * width);
      });
    });
    return { shape: labels ? [ids.length, width] : [ids.length, length, width], values };
  }

  /**
   * One vector (batch, width) per sequence: the mean of the last hidden state over its tokens, padding left out.
   *
   * @param ids Token ids, one row per sequence: `tokenizer.encode(text, { addSpecial: true })`, with [CLS] and [SEP].
   * @param options The pooling, the mask, which adapters answer, and abort.
   * @throws {ShapeError} If there are no ids, or the mask has another shape or hides a whole row.
   * @throws {LimitError} If a row is longer than the model's positions.
   * @throws {MismatchError} If an adapter's name is unknown; the message lists the known ones.
   */
  async embed(ids: readonly (readonly number[])[], options: EmbedOptions = {}): Promise<Encoding> {
    const { pooling = "mean", normalize = false } = options;
    if (pooling !== "mean" && pooling !== "first") {
      throw new TypeError(`Cannot embed with pooling "${pooling}": expected "mean" or "first"`);
    }
    const { rows, values: packed } = await this.#run("embed", ids, options, false);
    const width = this.config.hiddenSize;
    const values = new Float32Array(ids.length * width);
    for (const { row, start, positions } of rows.sequences) {
      const count = pooling === "mean" ? positions.length : 1;
      const sums = new Float64Array(width);
      for (let i = 0; i < count * width; i++) sums[i % width]! += packed[start * width + i]!;
      const size = normalize ? Math.sqrt(sums.reduce((sum, value) => sum + value * value, 0)) : count;
      values.set(sums.map((value) => size === 0 ? 0 : value / size), row * width);
    }
    return { shape: [ids.length, width], values };
  }

  /** The output of the network in packed order, and that order. */
  async #run(
    action: string,
    ids: readonly (readonly number[])[],
    { adapter, attentionMask, signal }: EncoderForwardOptions,
    classify: boolean,
  ): Promise<{ readonly rows: PackedRows; readonly values: Float32Array }> {
    this.requireLive();
    const rows = packRows(action, ids, attentionMask, this.config);
    const { backend, network, adapters } = this.placement as Placement<Bert>;
    const resolved = adapters.resolve(adapter, ids.length);
    const pause = this.pauses(resolved, signal);
    const output = await network.run({ rows, mixes: packMixes(resolved, rows), classify, pause });
    try {
      return { rows, values: await backend.read(output) };
    } finally {
      output.dispose();
    }
  }
}
