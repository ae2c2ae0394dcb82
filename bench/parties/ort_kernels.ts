/** onnxruntime-web's WebAssembly kernels: Gemm, MatMulNBits, and Gemm with an adapter as three nodes. */
import process from "node:process";
import { sampleValues } from "../../src/cli/bench_cases.ts";
import { attempt, engineName, openStopwatch, readJob, report } from "../child.ts";
import { gemmModel, int4Bytes, int4Model } from "../onnx/kernels.ts";
import { openOrt } from "../onnx/runtime.ts";
import { flopOf, gemmShapes, gemvShapes, loraCases, type Shape, shapeName, wants } from "../shapes.ts";
import type { Topic, Work } from "../types.ts";

const LARGE = [1, 128].map((rows): Shape => ({ rows, inputs: 4096, outputs: 4096 }));

const job = readJob();
const ort = await openOrt(job);
report({ kind: "engine", engine: engineName(), version: ort.env.versions.web ?? ort.env.versions.common });
const stopwatch = await openStopwatch(job);

async function open(model: Uint8Array, { rows, inputs }: Shape) {
  const session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
  const x = new ort.Tensor("float32", sampleValues(rows * inputs), [rows, inputs]);
  return {
    body: { run: async () => void Object.values(await session.run({ x })).forEach((y) => y.dispose()) },
    dispose: async () => await session.release(),
  };
}

async function measure(topic: Topic, variant: string, shape: Shape, model: Uint8Array, work: Work): Promise<void> {
  const { body, dispose } = await open(model, shape);
  const { flop, bytes } = work;
  const timed = await stopwatch.timeAgainst(bytes === undefined ? "fma" : "read", bytes ?? flop!, body);
  await dispose();
  report({ kind: "figure", topic, name: shapeName(shape), variant, work, ...timed });
}

async function measureLora(rank: number, shape: Shape): Promise<void> {
  const [adapted, plain] = [await open(gemmModel(shape, rank), shape), await open(gemmModel(shape), shape)];
  const [times, base] = await stopwatch.time([adapted.body, plain.body]);
  await adapted.dispose();
  await plain.dispose();
  const flop = flopOf(shape) + 2 * shape.rows * rank * (shape.inputs + shape.outputs);
  const variant = `f32 r=${rank}`;
  report({
    kind: "figure",
    topic: "lora",
    name: shapeName(shape),
    variant,
    work: { flop },
    times: times!,
    base: base!,
  });
}

const plain = [...gemmShapes(job), ...gemvShapes(job)].map((shape) => {
  const work = shape.rows === 1 ? { flop: flopOf(shape), bytes: flopOf(shape) * 2 } : { flop: flopOf(shape) };
  return { topic: shape.rows === 1 ? "gemv" as const : "gemm" as const, shape, work };
});
for (const { topic, shape, work } of plain.filter(({ topic }) => wants(job, topic))) {
  await attempt(topic, "f32", async () => await measure(topic, "f32", shape, gemmModel(shape), work));
}
for (const shape of LARGE) {
  const topic = shape.rows === 1 ? "gemv" : "gemm";
  if (!wants(job, topic)) continue;
  const work = shape.rows === 1 ? { flop: flopOf(shape), bytes: int4Bytes(shape) } : { flop: flopOf(shape) };
  for (const accuracy of [0, 4] as const) {
    const variant = `int4, accuracy level ${accuracy}`;
    await attempt(topic, variant, async () => await measure(topic, variant, shape, int4Model(shape, accuracy), work));
  }
}
for (const { rank, shape } of wants(job, "lora") && job.threads === 1 ? loraCases(job) : []) {
  await attempt("lora", `f32 r=${rank}`, async () => await measureLora(rank, shape));
}
process.exit(0); // its threads would keep the process
