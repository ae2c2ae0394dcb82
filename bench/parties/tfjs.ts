/** tfjs-wasm: X W with W stored (in, out), its fast form, and X Wᵀ, which is what a linear layer's weight needs. */
import process from "node:process";
import { sampleValues } from "../../src/cli/bench_cases.ts";
import { importPeer } from "../child.ts";
import type { Shape } from "../shapes.ts";
import { measurePlain } from "./plain_kernels.ts";

interface Tensor {
  dispose(): void;
}

interface Tf {
  readonly version_core: string;
  setBackend(name: string): Promise<boolean>;
  ready(): Promise<void>;
  tensor2d(values: Float32Array, shape: readonly [number, number]): Tensor;
  matMul(a: Tensor, b: Tensor, transposeA: boolean, transposeB: boolean): Tensor;
}

const MODULES = "tensorflow-tfjs-core/node_modules/@tensorflow";
/** With transposeB it computes without SIMD. */
const MOST_FLOP = 5e9;

await measurePlain(async (job) => {
  // Its Node entries are CommonJS.
  const { default: tf } = await importPeer<{ default: Tf }>(job, `${MODULES}/tfjs-core/dist/tf-core.node.js`);
  const { default: wasm } = await importPeer<{ default: { setWasmPaths(path: string): void } }>(
    job,
    `${MODULES}/tfjs-backend-wasm/dist/tf-backend-wasm.node.js`,
  );
  wasm.setWasmPaths(`${job.home}/peers/${MODULES}/tfjs-backend-wasm/wasm-out/`);
  if (!await tf.setBackend("wasm")) throw new Error("setBackend gave false");
  await tf.ready();
  const form = (transposed: boolean) => ({ rows, inputs, outputs }: Shape) => {
    if (transposed && 2 * rows * inputs * outputs > MOST_FLOP) throw new Error("left out: a run takes many seconds");
    const x = tf.tensor2d(sampleValues(rows * inputs), [rows, inputs]);
    const w = tf.tensor2d(sampleValues(inputs * outputs), transposed ? [outputs, inputs] : [inputs, outputs]);
    return {
      body: { run: () => tf.matMul(x, w, false, transposed).dispose() },
      dispose: () => [x, w].forEach((tensor) => tensor.dispose()),
    };
  };
  return { version: tf.version_core, forms: { "f32": form(false), "f32, transposeB": form(true) } };
});
process.exit(0);
