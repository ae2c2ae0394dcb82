/**
 * The checks of the operations that choose tokens, for all backends.
 *
 * @module
 */

import type { SampleOptions, Tensor } from "./backend.ts";
import { refuse, refuseValue, requireMatrix, requireWhole } from "./shape.ts";

/** Checks the logits of an operation that chooses among their classes. */
export function checkLogits(operation: string, logits: Tensor): readonly [number, number] {
  const [rows, classes] = requireMatrix(operation, "logits", logits);
  if ((rows > 0 && classes === 0) || classes > 2 ** 24) {
    throw refuse(`run ${operation}`, "logits", logits.shape, "1 to 2^24 classes");
  }
  return [rows, classes];
}

/** Checks the arguments of `sample`. */
export function checkSample(logits: Tensor, options: SampleOptions): readonly [number, number] {
  const [rows, classes] = checkLogits("sample", logits);
  const { temperature, topK = 1, topP = 1, minP = 0, random } = options;
  const require = (field: string, found: unknown, holds: boolean, wanted: string): void => {
    if (!holds) throw refuseValue("run sample", field, found, wanted);
  };
  require("temperature", temperature, temperature > 0 && temperature < Infinity, "a finite number above 0");
  requireWhole("sample", "topK", topK, 1);
  require("topP", topP, topP > 0 && topP <= 1, "a number above 0 and up to 1");
  require("minP", minP, minP >= 0 && minP <= 1, "a number from 0 to 1");
  if (!(random instanceof Uint32Array)) throw new TypeError("Cannot run sample: random must be a Uint32Array");
  require("random", random.length, random.length === rows, `${rows}, one per row`);
  return [rows, classes];
}
