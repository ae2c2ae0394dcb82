import { parseArgs } from "node:util";
import { extractAdapter } from "../checkpoint/extract.ts";
import { modelArgument } from "./arguments.ts";
import { type Command, UsageError } from "./command.ts";
import { asFolder } from "./merge_base.ts";
import { dtypeOption, numberOption, present, requiredOption } from "./options.ts";
import { claimedFolder, refuseOverwrite } from "./overwrite.ts";
import { Progress } from "./progress.ts";
import { writeResult } from "./written_adapter.ts";

const HELP = `Make an adapter of what differs between two checkpoints of one model, with the error of every module.

Usage: lora extract --base BASE --tuned TUNED --out OUT (--rank R | --energy E) [--svd-clamp Q] [--seed SEED]
                    [--dtype f32|bf16|f16] [--json]

  --base BASE           the model before: Hugging Face folder, or a .safetensors or .gguf file, or its URL
  --tuned TUNED         the same model after
  --out OUT             folder to write, which PEFT and lora load
  --rank R              rank of every module: the largest singular values of its difference
  --energy E            instead, or within the rank: the share of the squared singular values that each module keeps
  --svd-clamp Q         clip the factors at their Q-quantile, such as 0.99 (none are)
  --seed SEED           of the random vectors that find them (0)
  --dtype f32|bf16|f16  type of the values written (f32)
  --json                { out, sha256, bytes, parameters, modules, report: [{ module, what, why, error }] }

Norms and biases that differ are stored in full, and rows of an embedding where they are fewer values than factors. What
has no place in an adapter, such as fused experts, is left out and told.
`;

const OPTIONS = {
  base: { type: "string" },
  tuned: { type: "string" },
  out: { type: "string" },
  rank: { type: "string" },
  energy: { type: "string" },
  "svd-clamp": { type: "string" },
  seed: { type: "string" },
  dtype: { type: "string" },
  json: { type: "boolean", default: false },
} as const;

/** `lora extract` */
export const extract: Command = {
  help: HELP,
  async run(args, signal) {
    const { values } = parseArgs({ args, options: OPTIONS });
    const base = requiredOption(values.base, "base");
    const tuned = requiredOption(values.tuned, "tuned");
    const out = requiredOption(values.out, "out");
    const options = {
      rank: numberOption(values.rank, "rank", { min: 1, whole: true }),
      energy: numberOption(values.energy, "energy", { above: 0, max: 1 }),
      svdClamp: numberOption(values["svd-clamp"], "svd-clamp", { above: 0.5, max: 1 }),
      seed: numberOption(values.seed, "seed", { min: 0, whole: true }),
      dtype: dtypeOption(values.dtype),
    };
    if (options.rank === undefined && options.energy === undefined) {
      throw new UsageError("Cannot extract with no size: --rank or --energy is wanted");
    }
    await refuseOverwrite(claimedFolder(out), [base, tuned]);
    const progress = new Progress("Extracting");
    const onProgress = progress.update.bind(progress);
    const before = await asFolder(await modelArgument(base), { signal });
    const after = await asFolder(await modelArgument(tuned), { signal });
    const given = { ...present(options), signal, onProgress };
    const adapter = await extractAdapter(before.folder, after.folder, given).finally(() => progress.end());
    await writeResult(adapter, out, { json: values.json, signal });
  },
};
