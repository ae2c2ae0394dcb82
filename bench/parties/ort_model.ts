/** onnxruntime-web on the whole model, with a KV cache: the graph is written here, out of the GGUF's own weights. */
import process from "node:process";
import { openCheckpoint } from "../../src/formats/checkpoint.ts";
import { type StoredTensor, toFloat32 } from "../../src/formats/dtype.ts";
import { readJson } from "../../src/formats/json_file.ts";
import { file } from "../../src/fs/mod.ts";
import { readLlamaConfig } from "../../src/models/llama_config.ts";
import { ggufFolder } from "../../src/models/mod.ts";
import { attempt, engineName, openStopwatch, readJob, report } from "../child.ts";
import { modelIn } from "../model_files.ts";
import { DECODE_PROMPT, decodeTokens, PREFILL_FLOP, PREFILL_TOKENS, prefillPrompt } from "../model_work.ts";
import { LlamaGraph } from "../onnx/llama.ts";
import type { OnnxFormat } from "../onnx/products.ts";
import { openOrt, type OrtTensor } from "../onnx/runtime.ts";
import { wants } from "../shapes.ts";

const job = readJob();
const ort = await openOrt(job);
report({ kind: "engine", engine: engineName(), version: ort.env.versions.web ?? ort.env.versions.common });
const folder = await ggufFolder(file(await modelIn(job.home, "q4_1")));
const config = readLlamaConfig(await readJson(folder.open("config.json"), { maxBytes: 1e6 }), "config.json");
const checkpoint = await openCheckpoint(folder);
const stored = new Map<string, StoredTensor>();
for (const name of checkpoint.tensors.keys()) stored.set(name, await checkpoint.read(name));
const tensors = { config, tensor: (name: string) => toFloat32(stored.get(name)!) };
const model = new LlamaGraph(tensors, job.variant as OnnxFormat).build();
stored.clear();
const stopwatch = await openStopwatch(job);
const session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });

type Caches = Readonly<Record<string, OrtTensor>>;

function noCaches(): Caches {
  const { kvHeads, headDim, layers } = config;
  const empty = () => new ort.Tensor("float32", new Float32Array(), [1, kvHeads, 0, headDim]);
  const names = Array.from({ length: layers }, (_, layer) => [`keys.${layer}`, `values.${layer}`]).flat();
  return Object.fromEntries(names.map((name) => [name, empty()]));
}

/** One step; the logits of its last position choose the next id. */
async function step(ids: readonly number[], past: number, caches: Caches): Promise<{ id: number; caches: Caches }> {
  const positions = past + ids.length;
  const { logits, ...present } = await session.run({
    ids: new ort.Tensor("int64", BigInt64Array.from(ids, BigInt), [1, ids.length]),
    lastPosition: new ort.Tensor("int32", Int32Array.of(positions - 1), [1]),
    positions: new ort.Tensor("int32", Int32Array.of(positions), [1]),
    ...caches,
  });
  const values = logits!.data;
  let id = 0;
  for (let index = 1; index < values.length; index++) if (values[index]! > values[id]!) id = index;
  const named = Object.entries(present).map(([name, cache]) => [name.replace("new.", ""), cache]);
  return { id, caches: Object.fromEntries(named) };
}

/** Greedy ids after a prompt, and the ms from the first one on. */
async function decode(prompt: readonly number[], tokens: number): Promise<{ ids: number[]; ms: number }> {
  let { id, caches } = await step(prompt, 0, noCaches());
  const ids = [id];
  const start = performance.now();
  while (ids.length <= tokens) {
    ({ id, caches } = await step([id], prompt.length + ids.length - 1, caches));
    ids.push(id);
  }
  return { ids, ms: performance.now() - start };
}

if (process.env.BENCH_SHOW_IDS) process.stdout.write(`${(await decode(DECODE_PROMPT, 16)).ids}\n`);
if (wants(job, "decode")) {
  await attempt("decode", job.variant, async () => {
    const tokens = decodeTokens(job);
    const body = { run: async () => (await decode(DECODE_PROMPT, tokens)).ms };
    const timed = await stopwatch.timeAgainst("read", tokens * model.length, body);
    report({
      kind: "figure",
      topic: "decode",
      name: "SmolLM2-135M",
      variant: job.variant,
      work: { tokens },
      ...timed,
    });
  });
}
if (wants(job, "prefill")) {
  await attempt("prefill", job.variant, async () => {
    const prompt = prefillPrompt();
    const body = { run: async () => void await step(prompt, 0, noCaches()) };
    const timed = await stopwatch.timeAgainst("fma", PREFILL_FLOP, body);
    const work = { tokens: PREFILL_TOKENS };
    report({ kind: "figure", topic: "prefill", name: "SmolLM2-135M", variant: job.variant, work, ...timed });
  });
}
process.exit(0); // its threads would keep the process
