/** x Wᵀ in the forms that ONNX Runtime computes: f32, int8 with dynamic activations, int4 in blocks of 32. */
import type { GraphBuilder } from "./model.ts";

/** Number format of the matrices. */
export type OnnxFormat = "f32" | "int8" | "int4";

/** A matrix (outputs, inputs). */
export interface Matrix {
  readonly values: Float32Array;
  readonly inputs: number;
  readonly outputs: number;
}

const BLOCK = 32;

/** Writes products in one format. */
export class ProductWriter {
  readonly #graph: GraphBuilder;
  readonly #format: OnnxFormat;

  /** Adds to a graph. */
  constructor(graph: GraphBuilder, format: OnnxFormat) {
    this.#graph = graph;
    this.#format = format;
  }

  /** The product's name. */
  product(x: string, matrix: Matrix, outputs?: readonly string[]): string {
    switch (this.#format) {
      case "f32": {
        const { inputs, outputs: columns } = matrix;
        const weight = this.#graph.weight("f32", [inputs, columns], transpose(matrix));
        return this.#graph.node("MatMul", [x, weight], {}, { ...(outputs && { outputs }) });
      }
      case "int8":
        return this.#int8(x, matrix, outputs);
      case "int4":
        return this.#int4(x, matrix, outputs);
    }
  }

  /** The logits of one row; in f32 the embedding's own matrix serves as it lies. */
  head(x: string, matrix: Matrix & { readonly name: string }, output: string): void {
    if (this.#format !== "f32") this.product(x, matrix, [output]);
    else this.#graph.node("Gemm", [x, matrix.name], { transB: 1 }, { outputs: [output] });
  }

  /** One scale per column; the activations are quantised as they come. */
  #int8(x: string, matrix: Matrix, outputs?: readonly string[]): string {
    const { inputs, outputs: columns } = matrix;
    const values = transpose(matrix);
    const scales = new Float32Array(columns);
    values.forEach((value, index) =>
      scales[index % columns] = Math.max(scales[index % columns]!, Math.abs(value) / 127)
    );
    const quants = Int8Array.from(values, (value, index) => Math.round(value / (scales[index % columns] || 1)));
    const weight = this.#graph.weight("i8", [inputs, columns], quants);
    const scale = this.#graph.weight("f32", [columns], scales);
    return this.#graph.contrib("DynamicQuantizeMatMul", [x, weight, scale], {}, outputs);
  }

  /** Symmetric blocks: q in 0..15 about 8. */
  #int4(x: string, { values, inputs, outputs: columns }: Matrix, outputs?: readonly string[]): string {
    const blocks = values.length / BLOCK;
    const scales = new Float32Array(blocks);
    const packed = new Uint8Array(values.length / 2);
    for (let block = 0; block < blocks; block++) {
      const some = values.subarray(block * BLOCK, (block + 1) * BLOCK);
      const scale = some.reduce((most, value) => Math.max(most, Math.abs(value)), 0) / 7;
      scales[block] = scale;
      some.forEach((value, index) => {
        const quant = Math.round(value / (scale || 1)) + 8;
        packed[block * BLOCK / 2 + (index >> 1)]! |= quant << 4 * (index & 1);
      });
    }
    const weight = this.#graph.weight("u8", [columns, inputs / BLOCK, BLOCK / 2], packed);
    const scale = this.#graph.weight("f32", [blocks], scales);
    const attributes = { K: inputs, N: columns, bits: 4, block_size: BLOCK, accuracy_level: 4 };
    return this.#graph.contrib("MatMulNBits", [x, weight, scale], attributes, outputs);
  }
}

function transpose({ values, inputs, outputs }: Matrix): Float32Array {
  const transposed = new Float32Array(values.length);
  for (let row = 0; row < outputs; row++) {
    for (let column = 0; column < inputs; column++) transposed[column * outputs + row] = values[row * inputs + column]!;
  }
  return transposed;
}
