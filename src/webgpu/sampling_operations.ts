/**
 * Choosing tokens on the GPU: the logits stay there, only ids are read back.
 *
 * @module
 */

import type { SampleOptions, Tensor } from "../backend.ts";
import * as check from "../check_sampling.ts";
import { inverseTemperature } from "../shape.ts";
import { WebGpuRowOperations } from "./row_operations.ts";

/** What a decoder needs after the last layer. */
export abstract class WebGpuSamplingOperations extends WebGpuRowOperations {
  /** See `Backend.argmax`. */
  argmax(logits: Tensor): Tensor {
    const [rows, classes] = check.checkLogits("argmax", logits);
    return this.run([rows], { shader: "argmax", buffers: [this.at(logits)], groups: rows, integers: [classes] });
  }

  /** See `Backend.sample`. */
  sample(logits: Tensor, options: SampleOptions): Tensor {
    const [rows, classes] = check.checkSample(logits, options);
    const { temperature, topK = classes, topP = 1, minP = 0, random } = options;
    const input = this.at(logits);
    return this.live.indices(random, (words) =>
      this.run([rows], {
        shader: "sample",
        buffers: [input, words],
        groups: rows,
        integers: [classes, Math.min(topK, classes)],
        floats: [inverseTemperature(temperature), topP, minP],
      }));
  }
}
