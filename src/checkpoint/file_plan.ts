import type { Dtype } from "../formats/dtype.ts";
import type { HeldSource, ReadOptions } from "../formats/source.ts";

/** A tensor of the output: where it is read, and what becomes of its elements. */
export interface TensorPlan {
  /** Its name in the output. */
  readonly name: string;
  /** What it is made of where that is not in the base's file: `offset` counts in it. */
  readonly values?: Uint8Array;
  /** First byte in the base's file. */
  readonly offset: number;
  /** Bytes there. */
  readonly length: number;
  /** Row-major shape of what is read. */
  readonly shape: readonly number[];
  /** Element type there; that of the decoded elements where there is a `decode`. */
  readonly from: Dtype;
  /** Element type in the output; that of the elements before `encode` where there is one. */
  readonly to: Dtype;
  /** Turns whole rows of quantised blocks into elements. */
  readonly decode?: (blocks: Uint8Array) => Uint8Array;
  /** Turns whole rows of elements into quantised blocks. */
  readonly encode?: (elements: Uint8Array) => Uint8Array;
  /** Zeros that follow it in the output. */
  readonly padding?: number;
}

/** A file of the output, laid out before anything is written. */
export interface FilePlan {
  /** Its name. */
  readonly name: string;
  /** Everything before its tensors. */
  readonly header: Uint8Array;
  /** The tensors in the order of their data. */
  readonly tensors: readonly TensorPlan[];
  /** Its length. */
  readonly bytes: number;
  /** Opens the file of the base, which must be the one that was planned with. */
  open(options: ReadOptions): Promise<HeldSource>;
}
