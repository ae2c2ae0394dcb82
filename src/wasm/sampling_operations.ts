/**
 * Choosing tokens on the CPU: logits go in, ids come out.
 *
 * @module
 */

import type { SampleOptions, Tensor } from "../backend.ts";
import * as check from "../check_sampling.ts";
import { inverseTemperature } from "../shape.ts";
import { WasmRowOperations } from "./row_operations.ts";

/** What a decoder needs after the last layer. */
export abstract class WasmSamplingOperations extends WasmRowOperations {
  /** See `Backend.argmax`. */
  argmax(logits: Tensor): Tensor {
    const [rows, classes] = check.checkLogits("argmax", logits);
    const input = this.at(logits);
    return this.memory.produce([rows], (ids) => this.kernels.argmax(ids, input, rows, classes));
  }

  /** See `Backend.sample`. */
  sample(logits: Tensor, options: SampleOptions): Tensor {
    const [rows, classes] = check.checkSample(logits, options);
    const { temperature, topK = classes, topP = 1, minP = 0, random } = options;
    const filters = [inverseTemperature(temperature), Math.min(topK, classes), topP, minP] as const;
    const input = this.at(logits);
    return this.memory.produce([rows], (ids) => {
      this.memory.indices(random, (words) => {
        this.memory.scratch(this.kernels.sample_scratch(classes), (scratch) => {
          this.kernels.sample(ids, input, words, rows, classes, ...filters, scratch);
        });
      });
    });
  }
}
