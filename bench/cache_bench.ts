/**
 * What the type of the cache does to decoding at a long context: three generations over one model, in f32, f16 and int8,
 * take turns token by token behind a text. Prints tokens per second by least and median times, the memory of the cache,
 * and how many tokens are those of f32 before the first other one.
 *
 *   node bench/cache_bench.ts [MODEL] [CONTEXT] [TOKENS] [THREADS]
 */
import { readFileSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import type { CacheDtype } from "../src/cache.ts";
import { median } from "../src/cli/bench_timing.ts";
import { file, folder } from "../src/fs/mod.ts";
import { loadModel } from "../src/models/mod.ts";
import { openBackend } from "../src/open.ts";

const CACHED = join(homedir(), ".cache/lowrank/models/SmolLM2-135M-Instruct.gguf");
const [path = CACHED, context = "1500", tokens = "40", threads = "1"] = process.argv.slice(2);
/** Steps before the times count. */
const WARM = 3;

const backend = await openBackend({ prefer: "wasm", threads: Number(threads) });
const text = readFileSync(new URL("../CONTRIBUTING.md", import.meta.url), "utf8").repeat(10);

async function begin(cache: CacheDtype) {
  const model = await loadModel(path.endsWith(".gguf") ? file(path) : folder(path), { backend, cache });
  const held = backend.bytes;
  const prompt = model.tokenizer!.encode(text).slice(0, Number(context));
  const generation = model.generate(prompt, { maxNewTokens: Number(tokens) + WARM + 1 });
  const pieces = generation[Symbol.asyncIterator]();
  await pieces.next();
  const { layers, kvHeads, headDim } = model.config;
  const perPosition = 2 * layers * kvHeads * headDim;
  return { cache, generation, pieces, times: [] as number[], bytes: backend.bytes - held, perPosition };
}

const runs = [await begin("f32"), await begin("f16"), await begin("int8")] as const;
console.log(
  `decoding behind ${context} tokens, ${backend.info.variant}, ${threads} threads; ${runs[0].perPosition} elements`,
);
for (let step = 0; step < Number(tokens) + WARM; step++) {
  for (const { pieces, times } of runs.map((_, i) => runs[(i + step) % runs.length]!)) {
    const begin = performance.now();
    await pieces.next();
    if (step >= WARM) times.push(performance.now() - begin);
  }
}
for (const { cache, generation, times, bytes } of runs) {
  const rate = (ms: number) => (1000 / ms).toFixed(1).padStart(6);
  const same = generation.tokens.findIndex((id, i) => id !== runs[0].generation.tokens[i]);
  const agreed = same < 0 ? generation.tokens.length : same;
  const line = `best ${rate(Math.min(...times))}, median ${rate(median(times))} tokens/s`;
  console.log(`${cache.padEnd(5)} ${line}, ${(bytes / 1e6).toFixed(1)} MB, first ${agreed} tokens as in f32`);
}
backend.dispose();
