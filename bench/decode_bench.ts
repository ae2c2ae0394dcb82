/**
 * Decoding of a real model against the read bandwidth of the same run: every weight is read once per token, so no
 * engine on this thread can be faster than bytes per token / bandwidth. Prints the share that is reached.
 *
 *   deno run -A bench/decode_bench.ts MODEL [f32|bf16]
 */
import process from "node:process";
import { openPeaks } from "../src/cli/peak.ts";
import { file, folder } from "../src/fs/mod.ts";
import { loadModel } from "../src/models/mod.ts";
import { openBackend } from "../src/open.ts";

const PROMPT = [1, 2, 3, 4, 5, 6, 7, 8];
const TOKENS = 40;
const ROUNDS = 7;

const [path = "", dtype = "bf16"] = process.argv.slice(2);
const backend = await openBackend({ prefer: "wasm" });
const model = await loadModel(path.endsWith(".gguf") ? file(path) : folder(path), {
  backend,
  dtype: dtype === "f32" ? "f32" : "bf16",
});
const bytes = backend.bytes;
const peaks = await openPeaks();
const decode: number[] = [];
const read: number[] = [];
for (let round = 0; round <= ROUNDS; round++) {
  let start = performance.now();
  for (let i = 0; i < 4; i++) peaks.read();
  const gbs = 4 * peaks.readBytes / (performance.now() - start) / 1e6;
  const times: number[] = [];
  start = performance.now();
  const options = { maxNewTokens: TOKENS, onToken: () => void times.push(performance.now()) };
  for await (const _ of model.generate(PROMPT, options));
  const perToken = (times.at(-1)! - times[0]!) / (times.length - 1);
  if (round === 0) continue; // the engine was still compiling
  read.push(gbs);
  decode.push(1000 / perToken);
}
const median = (values: number[]) => values.toSorted((a, b) => a - b)[values.length >> 1]!;
const line = (name: string, values: number[]) =>
  `${name.padEnd(16)} median ${median(values).toFixed(1)}, best ${Math.max(...values).toFixed(1)}`;
console.log(
  `${(bytes / 1e6).toFixed(1)} MB of weights, each read once per token (${backend.info.variant}, one thread)`,
);
console.log(line("read GB/s", read));
console.log(line("tokens/s", decode));
const share = (gbs: number, rate: number) => `${(100 * rate * bytes / 1e9 / gbs).toFixed(1)} %`;
console.log(
  `of what reading allows: ${share(median(read), median(decode))} by medians, ${
    share(Math.max(...read), Math.max(...decode))
  } by the best`,
);
model.dispose();
backend.dispose();
