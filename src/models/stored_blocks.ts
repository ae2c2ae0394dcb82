/**
 * Matrices in the blocks of a file.
 *
 * @module
 */

import type { BlockDtype, MatrixValues } from "../backend.ts";
import type { ReadOptions } from "../formats/source.ts";

/** A matrix in the blocks of a file. */
export interface StoredBlocks {
  /** Their type. */
  readonly dtype: BlockDtype;
  /** Reads them, with the rows in Hugging Face's order. */
  read(options?: ReadOptions): Promise<MatrixValues>;
}
