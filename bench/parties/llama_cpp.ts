/** node-llama-cpp: llama.cpp's native binary, the ceiling for whole models. */
import { statSync } from "node:fs";
import process from "node:process";
import type { Body } from "../../src/cli/bench_timing.ts";
import { attempt, engineName, importPeer, openStopwatch, peerVersion, readJob, report } from "../child.ts";
import { adapterGguf, modelIn } from "../model_files.ts";
import { DECODE_PROMPT, decodeTokens, PREFILL_FLOP, PREFILL_TOKENS, prefillPrompt } from "../model_work.ts";
import { wants } from "../shapes.ts";
import type { Topic } from "../types.ts";

interface Sequence {
  clearHistory(): Promise<void>;
  evaluateWithoutGeneratingNewTokens(tokens: readonly number[]): Promise<void>;
  evaluate(tokens: readonly number[], options: object): AsyncIterable<number>;
}

interface Llama {
  loadModel(options: object): Promise<{
    createContext(options: object): Promise<{ getSequence(): Sequence; dispose(): Promise<void> }>;
  }>;
}

interface Library {
  getLlama(options: object): Promise<Llama>;
  readonly LlamaLogLevel: { readonly error: string };
}

const MODULE = "node-llama-cpp/node_modules/node-llama-cpp";

const job = readJob();
const { threads, home, variant } = job;
const { getLlama, LlamaLogLevel } = await importPeer<Library>(job, `${MODULE}/dist/index.js`);
const llama = await getLlama({ gpu: false, build: "never", maxThreads: threads, logLevel: LlamaLogLevel.error });
report({ kind: "engine", engine: `${engineName()}, native`, version: peerVersion(job, MODULE) });
const path = await modelIn(home, variant);
const model = await llama.loadModel({ modelPath: path });
const stopwatch = await openStopwatch(job);

async function open(lora?: string) {
  const options = { contextSize: 1024, batchSize: PREFILL_TOKENS, threads, ...(lora && { lora }) };
  const context = await model.createContext(options);
  return { sequence: context.getSequence(), dispose: async () => await context.dispose() };
}

/** Its first token, which comes with the prompt, is not counted. */
async function decode(sequence: Sequence): Promise<number> {
  await sequence.clearHistory();
  let count = -1;
  let start = 0;
  const answer = sequence.evaluate(DECODE_PROMPT, { temperature: 0, yieldEogToken: true });
  for await (const _ of answer) {
    if (++count === 0) start = performance.now();
    if (count === decodeTokens(job)) break;
  }
  return performance.now() - start;
}

async function prefill(sequence: Sequence): Promise<number> {
  await sequence.clearHistory();
  const start = performance.now();
  await sequence.evaluateWithoutGeneratingNewTokens(prefillPrompt());
  return performance.now() - start;
}

const plain = await open();
const adapted = variant === "q4_1" ? await open(await adapterGguf(home)) : undefined;
for (const topic of ["decode", "prefill"] as const satisfies Topic[]) {
  if (!wants(job, topic)) continue;
  await attempt(topic, variant, async () => {
    const run = topic === "decode" ? decode : prefill;
    const [body, base] = [plain, ...(adapted ? [adapted] : [])].map((one): Body => ({ run: () => run(one.sequence) }));
    const tokens = topic === "decode" ? decodeTokens(job) : PREFILL_TOKENS;
    const { times, limits, base: adaptedTimes } = topic === "decode"
      ? await stopwatch.timeAgainst("read", tokens * statSync(path).size, body!, base)
      : await stopwatch.timeAgainst("fma", PREFILL_FLOP, body!, base);
    const common = { kind: "figure", topic, name: "SmolLM2-135M", work: { tokens } } as const;
    report({ ...common, variant, times, ...(limits && { limits }) });
    if (adaptedTimes) report({ ...common, variant: `${variant} + LoRA`, times: adaptedTimes, base: times });
  });
}
process.exit(0);
