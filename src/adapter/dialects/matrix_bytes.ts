import { bitsPerElement, type StoredTensor } from "../../formats/dtype.ts";

/**
 * Transposes a stored matrix, bits as they are.
 *
 * @param tensor A matrix (rows, columns) of whole bytes per element.
 * @returns The matrix (columns, rows).
 */
export function transposeStored({ dtype, shape, bytes }: StoredTensor): StoredTensor {
  const [rows = 0, columns = 0] = shape;
  const width = bitsPerElement(dtype) / 8;
  const transposed = new Uint8Array(bytes.length);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) {
      const from = (row * columns + column) * width;
      const to = (column * rows + row) * width;
      for (let i = 0; i < width; i++) transposed[to + i] = bytes[from + i]!;
    }
  }
  return { dtype, shape: [columns, rows], bytes: transposed };
}

/**
 * Brings B of experts into PEFT's order: (E, out, r) becomes (out, r E), where column j E + e is that of rank j and expert e.
 *
 * @param tensor B of all experts, of whole bytes per element.
 * @returns The matrix, bits as they are.
 */
export function rankMajor({ dtype, shape, bytes }: StoredTensor): StoredTensor {
  const [experts = 0, rows = 0, rank = 0] = shape;
  const flat = transposeStored({ dtype, shape: [experts, rows * rank], bytes });
  return { dtype, shape: [rows, rank * experts], bytes: flat.bytes };
}

/**
 * The inverse of {@linkcode rankMajor}.
 *
 * @param tensor B (out, r E).
 * @param experts E.
 * @returns B (E, out, r).
 */
export function expertMajor({ dtype, shape, bytes }: StoredTensor, experts: number): StoredTensor {
  const [rows = 0, columns = 0] = shape;
  const rank = columns / experts;
  const flat = transposeStored({ dtype, shape: [rows * rank, experts], bytes });
  return { dtype, shape: [experts, rows, rank], bytes: flat.bytes };
}

/** Which way {@linkcode reorderHeads} goes. */
export type RowOrder = "halves" | "pairs";

/**
 * Reorders the rows of every attention head: between Hugging Face's halves (2, d/2) and the pairs (d/2, 2) of Llama's
 * original code, which GGUF files of that architecture have.
 *
 * @param tensor A matrix whose rows are a multiple of 2 heads.
 * @param heads Number of heads.
 * @param to The order wanted.
 * @returns The matrix.
 */
export function reorderHeads({ dtype, shape, bytes }: StoredTensor, heads: number, to: RowOrder): StoredTensor {
  const rows = shape[0] ?? 0;
  const width = bytes.length / rows;
  const size = rows / heads;
  const half = size / 2;
  const reordered = new Uint8Array(bytes.length);
  for (let row = 0; row < rows; row++) {
    const head = Math.floor(row / size);
    const within = row % size;
    const pair = head * size + 2 * (within % half) + Math.floor(within / half);
    const [source, target] = to === "pairs" ? [row, pair] : [pair, row];
    reordered.set(bytes.subarray(source * width, (source + 1) * width), target * width);
  }
  return { dtype, shape, bytes: reordered };
}
