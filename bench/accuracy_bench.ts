/**
 * What quantized weights and rounded activations cost in accuracy: perplexity, and how often the likeliest next token is
 * the one that the same file gives in f32, over 200 lines of text, twelve at a time.
 *
 *   node bench/accuracy_bench.ts MODEL.gguf [DTYPE,…] [LINES]
 */
import process from "node:process";
import { file } from "../src/fs/mod.ts";
import { loadModel, type ModelDtype } from "../src/models/mod.ts";
import { compareAnswers, readAnswers } from "../tests/answers.ts";

const [path = "", dtypes = "auto,int8,int4,nf4,f8,bf16", lines = "200"] = process.argv.slice(2);

async function measure(dtype: ModelDtype) {
  const model = await loadModel(file(path), { dtype });
  try {
    return await readAnswers(model, Number(lines));
  } finally {
    model.dispose();
  }
}

const truth = await measure("f32");
console.log(`f32: perplexity ${Math.exp(truth.loss).toFixed(3)} over ${truth.likeliest.length} tokens`);
for (const dtype of dtypes.split(",") as ModelDtype[]) {
  const { perplexity, same } = compareAnswers(await measure(dtype), truth);
  const rise = `perplexity ${perplexity < 0 ? "" : "+"}${(100 * perplexity).toFixed(2)} %`;
  console.log(`${dtype}: ${rise}, the same likeliest token at ${(100 * same).toFixed(2)} % of positions`);
}
