/**
 * One thread against several, in turns in one process: a GEMM of 1024³, and prefill and decoding of a real model. Prints
 * least and median times of both and their ratios.
 *
 *   deno run -A bench/threads_bench.ts [MODEL] [THREADS] [f32|bf16] [ROUNDS]
 *
 * On a busy machine no thread gets a core of its own and the ratios mean nothing; as root,
 * `chrt -f 10 deno run …` takes the cores for the time of the run.
 */
import { homedir } from "node:os";
import { join } from "node:path";
import process from "node:process";
import { median } from "../src/cli/bench_timing.ts";
import { file, folder } from "../src/fs/mod.ts";
import { type LanguageModel, loadModel } from "../src/models/mod.ts";
import { openBackend } from "../src/open.ts";

const CACHED = join(homedir(), ".cache/lowrank/models/SmolLM2-135M-Instruct.gguf");
const PROMPT = Array.from({ length: 512 }, (_, i) => 100 + (i * 37) % 2000);
const TOKENS = 24;
const SIZE = 1024;

const [path = CACHED, threads = "2", dtype = "bf16", rounds = "7"] = process.argv.slice(2);
const many = await openBackend({ prefer: "wasm", threads: Number(threads) });
const backends = [await openBackend({ prefer: "wasm" }), many];

/** Milliseconds of one run of each measured thing. */
interface Bodies {
  readonly name: string;
  readonly unit: string;
  /** Units of one run. */
  readonly work: number;
  readonly run: (index: number) => Promise<number>;
}

function values(seed: number): Float32Array {
  return Float32Array.from({ length: SIZE * SIZE }, (_, i) => Math.sin(i + seed));
}

function gemm(): Bodies {
  const operands = backends.map((backend) => {
    const bytes = new Uint8Array(values(1).buffer);
    const weight = backend.weight({ shape: [SIZE, SIZE], dtype: "f32", bytes });
    return { backend, weight, x: backend.tensor([SIZE, SIZE], values(2)) };
  });
  const run = (index: number) => {
    const { backend, weight, x } = operands[index]!;
    const start = performance.now();
    const y = backend.linear(x, weight);
    const elapsed = performance.now() - start;
    y.dispose();
    return Promise.resolve(elapsed);
  };
  return { name: `GEMM f32 ${SIZE}³`, unit: "GFLOP/s", work: 2 * SIZE ** 3 / 1e9, run };
}

/** Milliseconds from the start to the first token, and from there to the last. */
async function generate(model: LanguageModel, prompt: readonly number[], tokens: number): Promise<[number, number]> {
  const times = [performance.now()];
  const options = { maxNewTokens: tokens, onToken: () => void times.push(performance.now()) };
  for await (const _ of model.generate(prompt, options));
  return [times[1]! - times[0]!, times.at(-1)! - times[1]!];
}

async function models(): Promise<Bodies[]> {
  const source = path.endsWith(".gguf") ? file(path) : folder(path);
  const loaded: LanguageModel[] = [];
  for (const backend of backends) {
    loaded.push(await loadModel(source, { backend, dtype: dtype === "f32" ? "f32" : "bf16" }));
  }
  const prefill = async (index: number) => (await generate(loaded[index]!, PROMPT, 1))[0];
  const decode = async (index: number) => (await generate(loaded[index]!, PROMPT.slice(0, 8), TOKENS + 1))[1];
  return [
    { name: `prefill of ${PROMPT.length}, ${dtype}`, unit: "tokens/s", work: PROMPT.length, run: prefill },
    { name: `decode of ${TOKENS}, ${dtype}`, unit: "tokens/s", work: TOKENS, run: decode },
  ];
}

async function measure({ name, unit, work, run }: Bodies): Promise<void> {
  const times: number[][] = backends.map(() => []);
  for (let round = -2; round < Number(rounds); round++) {
    for (const index of round % 2 === 0 ? [0, 1] : [1, 0]) {
      const ms = await run(index);
      if (round >= 0) times[index]!.push(ms); // before, engines compile and workers start
    }
  }
  const [least, middle] = [times.map((list) => Math.min(...list)), times.map(median)];
  const row = (label: string, [one = 0, more = 0]: readonly number[]) => {
    const rate = (ms: number) => (work / ms * 1000).toFixed(1).padStart(8);
    console.log(`  ${label.padEnd(7)} ${rate(one)} ${rate(more)} ${unit}   ${(one / more).toFixed(2)}x`);
  };
  console.log(`${name}: 1 thread, ${many.info.threads} threads`);
  row("best", least);
  row("median", middle);
}

await measure(gemm());
for (const bodies of await models()) await measure(bodies);
console.log(`${many.info.variant}; ${many.info.reason}`);
for (const backend of backends) backend.dispose();
process.exit(many.info.threads === Number(threads) ? 0 : 1);
