/** What a number format costs in meaning: perplexity and choices on text, against the same model in f32. */
import { readFileSync } from "node:fs";
import type { WeightDtype } from "../../src/backend.ts";
import { file } from "../../src/fs/mod.ts";
import { loadModel } from "../../src/models/mod.ts";
import { attempt, engineName, readJob, report } from "../child.ts";
import { modelIn } from "../model_files.ts";

const TEXTS = new URL("../../examples/models/tiny/texts.json", import.meta.url);
const MOST_TOKENS = 48;

interface Reading {
  /** Mean of -log p(next token). */
  readonly loss: number;
  /** The likeliest token after each position. */
  readonly choices: readonly number[];
}

const job = readJob();
report({ kind: "engine", engine: engineName() });
const path = await modelIn(job.home, "q4_1");
const lines = Object.values(JSON.parse(readFileSync(TEXTS, "utf8")) as Record<string, string[]>)
  .flatMap((texts) => texts.slice(0, job.quick ? 3 : 50));

/** Reads all lines with one model. */
async function read(variant: string): Promise<Reading> {
  const dtype = variant === "q4_1" ? "auto" : variant as WeightDtype; // "q4_1" is the file as it stands
  const model = await loadModel(file(path), { dtype });
  const choices: number[] = [];
  let loss = 0;
  for (const line of lines) {
    const ids = model.tokenizer!.encode(line).slice(0, MOST_TOKENS);
    const { shape: [, length, classes], values } = await model.forward([ids]);
    for (let at = 0; at < length - 1; at++) {
      const logits = values.subarray(at * classes, (at + 1) * classes);
      const most = logits.reduce((best, value, id) => value > logits[best]! ? id : best, 0);
      choices.push(most);
      const sum = logits.reduce((total, value) => total + Math.exp(value - logits[most]!), 0);
      loss += Math.log(sum) + logits[most]! - logits[ids[at + 1]!]!;
    }
  }
  model.dispose();
  return { loss: loss / choices.length, choices };
}

const exact = await read("f32");
for (const variant of ["q4_1", "bf16", "int8", "int4", "nf4"]) {
  await attempt("accuracy", variant, async () => {
    const { loss, choices } = await read(variant);
    const same = choices.filter((choice, index) => choice === exact.choices[index]).length / choices.length;
    const values = {
      lines: lines.length,
      positions: choices.length,
      perplexity: Math.exp(loss),
      exactPerplexity: Math.exp(exact.loss),
      change: Math.exp(loss - exact.loss) - 1,
      sameChoice: same,
    };
    report({ kind: "fact", topic: "accuracy", name: "SmolLM2-135M", variant, values });
  });
}
