/** Models of a single product, to measure ONNX Runtime's kernels. */
import { sampleValues } from "../../src/cli/bench_cases.ts";
import { flopOf, type Shape } from "../shapes.ts";
import { GraphBuilder } from "./model.ts";
import type { Bytes } from "./protobuf.ts";

const BLOCK = 32;

/** y = x Wᵀ as one Gemm; with a rank, plus (x Aᵀ) Bᵀ as two more that add to it. */
export function gemmModel({ rows, inputs, outputs }: Shape, rank = 0): Bytes {
  const graph = new GraphBuilder();
  const x = graph.input("x", "f32", [rows, inputs]);
  graph.output("y", "f32", [rows, outputs]);
  const weight = (n: number, k: number) => graph.weight("f32", [n, k], sampleValues(n * k));
  const base = [x, weight(outputs, inputs)];
  if (rank === 0) {
    graph.node("Gemm", base, { transB: 1 }, { outputs: ["y"] });
    return graph.build();
  }
  const y = graph.node("Gemm", base, { transB: 1 });
  const h = graph.node("Gemm", [x, weight(rank, inputs)], { transB: 1 });
  graph.node("Gemm", [h, weight(outputs, rank), y], { transB: 1, alpha: { f: 1 / 64 } }, { outputs: ["y"] });
  return graph.build();
}

/** y = x Wᵀ with int4 blocks of 32; accuracy level 4 computes with int8 activations. */
export function int4Model({ rows, inputs, outputs }: Shape, accuracy: 0 | 4): Bytes {
  const graph = new GraphBuilder();
  const x = graph.input("x", "f32", [rows, inputs]);
  graph.output("y", "f32", [rows, outputs]);
  const blocks = inputs / BLOCK;
  const nibbles = new Uint8Array(outputs * inputs / 2).map((_, index) => Math.imul(index, 2_654_435_761) >>> 24);
  const packed = graph.weight("u8", [outputs, blocks, BLOCK / 2], nibbles);
  const scales = graph.weight("f32", [outputs * blocks], new Float32Array(outputs * blocks).fill(1 / 16));
  const attributes = { K: inputs, N: outputs, bits: 4, block_size: BLOCK, accuracy_level: accuracy };
  graph.contrib("MatMulNBits", [x, packed, scales], attributes, ["y"]);
  return graph.build();
}

/** Bytes of an int4 weight with its f32 scales. */
export function int4Bytes(shape: Shape): number {
  return flopOf({ ...shape, rows: 1 }) / 2 * (0.5 + 4 / BLOCK);
}
