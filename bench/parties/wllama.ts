/** wllama, llama.cpp in WebAssembly, in a page of headless Chromium. It takes adapters as GGUF when a model is loaded. */
import { createReadStream, existsSync } from "node:fs";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import type { AddressInfo } from "node:net";
import process from "node:process";
import { pathToFileURL } from "node:url";
import { findBinary } from "../../scripts/engines.ts";
import { timeInTurns } from "../../src/cli/bench_timing.ts";
import { attempt, peerVersion, readJob, report, timesOf } from "../child.ts";
import { adapterGguf, modelIn } from "../model_files.ts";
import { decodeTokens, PREFILL_TOKENS, promptText } from "../model_work.ts";
import { wants } from "../shapes.ts";

interface Page {
  goto(url: string): Promise<unknown>;
  evaluate(code: string): Promise<unknown>;
}

interface Browser {
  newPage(): Promise<Page>;
  version(): string;
  close(): Promise<void>;
}

const FOLDER = "wllama-wllama/node_modules/@wllama/wllama";
const TYPES: Readonly<Record<string, string>> = { js: "text/javascript", wasm: "application/wasm" };

const job = readJob();
const { home, threads, quick } = job;
const isAdapted = job.variant.endsWith("LoRA");
const files: Readonly<Record<string, string>> = {
  "/wllama.js": `${home}/peers/${FOLDER}/esm/index.js`,
  "/wllama.wasm": `${home}/peers/${FOLDER}/esm/wasm/wllama.wasm`,
  "/model.gguf": await modelIn(home, "q4_1"),
  ...(isAdapted && { "/adapter.gguf": await adapterGguf(home) }),
};

async function serve(): Promise<string> {
  const server = createServer(({ url = "" }, response) => {
    // Only an isolated page has shared memory, and with it threads.
    response.setHeader("cross-origin-opener-policy", "same-origin");
    response.setHeader("cross-origin-embedder-policy", "require-corp");
    response.setHeader("content-type", TYPES[url.split(".")[1] ?? ""] ?? "text/html");
    if (files[url]) createReadStream(files[url]).pipe(response);
    else response.end("<!doctype html>");
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}/`;
}

async function launch(): Promise<Browser> {
  const packages = pathToFileURL(`${home}/gpu/package.json`);
  const { chromium } = createRequire(packages)("playwright-core") as {
    chromium: { launch(options: object): Promise<Browser> };
  };
  const own = ["/usr/lib/chromium/chromium", findBinary("chromium") ?? ""].find((path) => existsSync(path));
  return await chromium.launch({ executablePath: own, headless: true, args: ["--no-sandbox"] });
}

/** The model's files are called by wllama's own pattern; the second one is the adapter, which is no part of the model. */
const LOAD = `(async () => {
  const { Wllama, LoggerWithoutDebug } = await import("/wllama.js");
  const quiet = { suppressNativeLog: true, logger: LoggerWithoutDebug };
  globalThis.engine = new Wllama({ default: location.origin + "/wllama.wasm" }, quiet);
  const urls = ${JSON.stringify(["/model.gguf", ...(isAdapted ? ["/adapter.gguf"] : [])])};
  const blobs = await Promise.all(urls.map(async (url) => await (await fetch(url)).blob()));
  const adapters = ${isAdapted ? '{ lora_adapters: [{ path: "models/model-00002-of-00002.gguf" }] }' : "{}"};
  await engine.loadModel(blobs, {
    n_ctx: 1024, n_batch: 512, n_ubatch: 512, n_parallel: 1, n_threads: ${threads}, n_gpu_layers: 0, ...adapters,
  });
  return engine.getNumThreads();
})()`;

interface Timings {
  readonly prompt_n: number;
  readonly prompt_ms: number;
  readonly predicted_n: number;
  readonly predicted_ms: number;
}

function complete(page: Page, prompt: number, tokens: number): Promise<Timings> {
  const options = {
    prompt: promptText(prompt),
    max_tokens: tokens,
    temperature: 0,
    cache_prompt: false,
    ignore_eos: true,
  };
  return page.evaluate(`engine.createCompletion(${JSON.stringify(options)}).then(({ timings }) => timings)`) as Promise<
    Timings
  >;
}

/** Its own clock, per token; a run of 512 tokens takes it many seconds, so that a quick bench reads 64. */
async function measure(page: Page, topic: "decode" | "prefill"): Promise<void> {
  const tokens = topic === "decode" ? decodeTokens(job) : quick ? 64 : PREFILL_TOKENS;
  const run = async () => {
    const timings = topic === "decode" ? await complete(page, 8, tokens + 1) : await complete(page, tokens, 1);
    // It predicts the first token with the prompt, and counts it all the same.
    return topic === "decode"
      ? timings.predicted_ms / (timings.predicted_n - 1) * tokens
      : timings.prompt_ms / timings.prompt_n * tokens;
  };
  const { single } = timesOf(job);
  const [times] = await timeInTurns([{ run }], { ms: single, most: 20 * single, fewest: quick ? 1 : 3 });
  const variant = isAdapted ? "q4_1 + LoRA" : "q4_1";
  report({ kind: "figure", topic, name: "SmolLM2-135M", variant, work: { tokens }, times: times! });
}

const browser = await launch();
report({ kind: "engine", engine: `Chromium ${browser.version()}`, version: peerVersion(job, FOLDER) });
const page = await browser.newPage();
await page.goto(await serve());
const found = await page.evaluate(LOAD);
if (found !== threads) throw new Error(`it computes on ${found} threads, not on ${threads}`);
for (const topic of ["decode", "prefill"] as const) {
  if (wants(job, topic)) await attempt(topic, job.variant, async () => await measure(page, topic));
}
await browser.close();
process.exit(0);
