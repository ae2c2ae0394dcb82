/** jax-js on its WebAssembly device. */
import process from "node:process";
import { sampleValues } from "../../src/cli/bench_cases.ts";
import { importPeer, peerVersion } from "../child.ts";
import { measurePlain } from "./plain_kernels.ts";

/** Arrays count their uses: a call takes what it is given, `ref` gives it once more. */
interface JaxArray {
  readonly ref: JaxArray;
  transpose(): JaxArray;
  reshape(shape: readonly number[]): JaxArray;
  blockUntilReady(): Promise<unknown>;
  dispose(): void;
}

interface Jax {
  init(device: string): Promise<unknown>;
  defaultDevice(device: string): unknown;
  readonly numpy: {
    array(values: Float32Array, options?: { readonly shape: readonly number[] }): JaxArray;
    matmul(a: JaxArray, b: JaxArray): JaxArray;
  };
}

const FOLDER = "jax-js-jax/node_modules/@jax-js/jax";

await measurePlain(async (job) => {
  const jax = await importPeer<Jax>(job, `${FOLDER}/dist/index.js`);
  await jax.init("wasm");
  jax.defaultDevice("wasm");
  const array = (rows: number, columns: number) =>
    jax.numpy.array(sampleValues(rows * columns)).reshape([rows, columns]);
  return {
    version: peerVersion(job, FOLDER),
    forms: {
      f32: ({ rows, inputs, outputs }) => {
        const [x, w] = [array(rows, inputs), array(outputs, inputs)];
        const run = async () => {
          const y = jax.numpy.matmul(x.ref, w.ref.transpose());
          await y.blockUntilReady();
          y.dispose();
        };
        return { body: { run }, dispose: () => [x, w].forEach((one) => one.dispose()) };
      },
    },
  };
});
process.exit(0);
