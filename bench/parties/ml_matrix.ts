/** ml-matrix: plain JavaScript in 64-bit floats. */
import { sampleValues } from "../../src/cli/bench_cases.ts";
import { importPeer, peerVersion } from "../child.ts";
import { measurePlain } from "./plain_kernels.ts";

interface Matrix {
  mmul(other: Matrix): Matrix;
}

const FOLDER = "ml-matrix/node_modules/ml-matrix";
/** Larger ones take it minutes. */
const MOST_FLOP = 3e8;

await measurePlain(async (job) => {
  const { Matrix } = await importPeer<{ Matrix: { from1DArray(m: number, n: number, values: Float32Array): Matrix } }>(
    job,
    `${FOLDER}/matrix.mjs`,
  );
  return {
    version: peerVersion(job, FOLDER),
    forms: {
      f64: ({ rows, inputs, outputs }) => {
        if (2 * rows * inputs * outputs > MOST_FLOP) throw new Error("left out: it would take minutes");
        const x = Matrix.from1DArray(rows, inputs, sampleValues(rows * inputs));
        const w = Matrix.from1DArray(inputs, outputs, sampleValues(inputs * outputs));
        return { body: { run: () => void x.mmul(w) } };
      },
    },
  };
});
