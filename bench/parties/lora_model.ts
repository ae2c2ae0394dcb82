/** This package: decoding, prefill and an unmerged adapter, decoding in turns with reading memory. */
import type { Body } from "../../src/cli/bench_timing.ts";
import { file, folder } from "../../src/fs/mod.ts";
import { type LanguageModel, loadModel } from "../../src/models/mod.ts";
import { attempt, engineName, openStopwatch, readJob, report } from "../child.ts";
import { ADAPTER, modelIn, ownDtype } from "../model_files.ts";
import { DECODE_PROMPT, decodeTokens, PREFILL_FLOP, PREFILL_TOKENS, prefillPrompt } from "../model_work.ts";
import { openReader } from "../read_bandwidth.ts";
import { wants } from "../shapes.ts";
import { openThreads } from "../threads.ts";

const NAME = "SmolLM2-135M";

const job = readJob();
report({ kind: "engine", engine: engineName() });
const path = await modelIn(job.home, "q4_1");
const backend = await openThreads(job.threads);
const model = await loadModel(file(path), { backend, dtype: ownDtype(job.variant) });
const weightBytes = backend.bytes;
await model.loadAdapter("adapter", folder(ADAPTER));
const reader = await openReader(job.threads);
const stopwatch = await openStopwatch(job);

/** Ms between the first token, which comes with the prompt, and the last; of all when only one is wanted. */
async function generate(model: LanguageModel, adapter: string | null, prompt: readonly number[], tokens: number) {
  const times = [performance.now()];
  const options = { adapter, maxNewTokens: tokens + 1, onToken: () => void times.push(performance.now()) };
  for await (const _ of model.generate(prompt, options));
  if (times.length < tokens + 2) throw new Error(`the answer ended after ${times.length - 1} tokens`);
  return times.at(-1)! - times[tokens === 0 ? 0 : 1]!;
}

function body(adapter: string | null, prompt: readonly number[], tokens: number): Body {
  return { run: () => generate(model, adapter, prompt, tokens) };
}

if (wants(job, "decode")) {
  await attempt("decode", job.variant, async () => {
    const tokens = decodeTokens(job);
    const bodies = [reader.body, body(null, DECODE_PROMPT, tokens), body("adapter", DECODE_PROMPT, tokens)];
    const [read, times, adapted] = await stopwatch.time(bodies);
    const limit = { kind: "read", work: tokens * weightBytes, per: reader.work, times: read! } as const;
    const common = { kind: "figure", topic: "decode", name: NAME, work: { tokens } } as const;
    report({ ...common, variant: job.variant, times: times!, limits: [limit] });
    report({ ...common, variant: `${job.variant} + LoRA`, times: adapted!, base: times! });
  });
}
if (wants(job, "prefill")) {
  await attempt("prefill", job.variant, async () => {
    const prompt = prefillPrompt();
    const bodies = [body("adapter", prompt, 0), body(null, prompt, 0)] as const;
    const { times, base, limits } = await stopwatch.timeAgainst("fma", PREFILL_FLOP, ...bodies);
    const common = { kind: "figure", topic: "prefill", name: NAME, work: { tokens: PREFILL_TOKENS } } as const;
    report({ ...common, variant: job.variant, times: base!, ...(limits && { limits }) });
    report({ ...common, variant: `${job.variant} + LoRA`, times, base: base! });
  });
}
await reader.close();
model.dispose();
backend.dispose();
