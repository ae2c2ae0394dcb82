/** What a number format costs in meaning: perplexity and choices on text, against the same model in f32. */
import { file } from "../../src/fs/mod.ts";
import { loadModel, type ModelDtype } from "../../src/models/mod.ts";
import { type Answers, compareAnswers, readAnswers } from "../../tests/answers.ts";
import { attempt, engineName, readJob, report } from "../child.ts";
import { modelIn, ownDtype } from "../model_files.ts";

const job = readJob();
report({ kind: "engine", engine: engineName() });
const path = await modelIn(job.home, "q4_1");
const lines = job.quick ? 12 : 200;

/** Reads all lines with one model. */
async function read(dtype: ModelDtype): Promise<Answers> {
  const model = await loadModel(file(path), { dtype });
  try {
    return await readAnswers(model, lines);
  } finally {
    model.dispose();
  }
}

const exact = await read("f32");
for (const variant of ["q4_1", "bf16", "int8", "int4", "nf4"]) {
  await attempt("accuracy", variant, async () => {
    const answers = await read(ownDtype(variant));
    const { perplexity, same } = compareAnswers(answers, exact);
    const values = {
      lines,
      positions: answers.likeliest.length,
      perplexity: Math.exp(answers.loss),
      exactPerplexity: Math.exp(exact.loss),
      change: perplexity,
      sameChoice: same,
    };
    report({ kind: "fact", topic: "accuracy", name: "SmolLM2-135M", variant, values });
  });
}
