import { parseArgs } from "node:util";
import { combineAdapters, type CombineOptions } from "../adapter/combine.ts";
import { COMBINE_METHODS, type CombineMethod, pruningOf, truncates } from "../adapter/combine_options.ts";
import type { WeightedAdapter } from "../adapter/weighted_adapter.ts";
import { adapterArguments, loadArgument } from "./arguments.ts";
import { type Command, UsageError } from "./command.ts";
import { choiceOption, dtypeOption, numberOption, present, requiredOption } from "./options.ts";
import { claimedFolder, refuseOverwrite } from "./overwrite.ts";
import { writeResult } from "./written_adapter.ts";

const HELP = `Make one adapter of several: Σ weight · scaling · B A. What a method loses is said for every module.

Usage: lora combine --adapter ADAPTER[=WEIGHT]… --out OUT [OPTION]…

  --adapter ADAPTER     PEFT folder or URL, with its weight (1 if none is given; negative ones subtract)
  --out OUT             folder to write, which PEFT and lora load; s = 1 in every reader
  --method METHOD       exact (default; PEFT's cat): of the summed rank
                        svd: the best approximation of a rank
                        linear, ties, dare_linear, dare_ties, magnitude_prune: PEFT's, on A and B apart
                        ties_svd, dare_linear_svd, dare_ties_svd, magnitude_prune_svd: PEFT's, on the updates
  --rank R              for svd methods (the largest rank of each module)
  --energy E            instead: the share of the squared singular values that each module keeps, such as 0.99
  --svd-clamp Q         for svd methods: clip the factors at their Q-quantile, such as 0.99
  --density D           share of the values that pruning keeps, for ties, dare and magnitude_prune
  --majority-sign WAY   how ties votes: total (default) or frequency
  --seed SEED           what dare drops (0)
  --dtype f32|bf16|f16  type of the values written (f32)
  --json                { out, sha256, bytes, parameters, modules, report: [{ module, what, why, error }] }
`;

const OPTIONS = {
  adapter: { type: "string", multiple: true, default: [] as string[] },
  out: { type: "string" },
  method: { type: "string" },
  rank: { type: "string" },
  energy: { type: "string" },
  "svd-clamp": { type: "string" },
  density: { type: "string" },
  "majority-sign": { type: "string" },
  seed: { type: "string" },
  dtype: { type: "string" },
  json: { type: "boolean", default: false },
} as const;

type Values = { readonly [name in keyof typeof OPTIONS]?: string | boolean | string[] | undefined };

function combineOptions(values: Values): CombineOptions {
  const text = (name: keyof typeof OPTIONS) => values[name] as string | undefined;
  const options = {
    method: choiceOption(text("method"), "method", COMBINE_METHODS),
    rank: numberOption(text("rank"), "rank", { min: 1, whole: true }),
    energy: numberOption(text("energy"), "energy", { above: 0, max: 1 }),
    svdClamp: numberOption(text("svd-clamp"), "svd-clamp", { above: 0.5, max: 1 }),
    density: numberOption(text("density"), "density", { above: 0, max: 1 }),
    majoritySign: choiceOption(text("majority-sign"), "majority-sign", ["total", "frequency"]),
    seed: numberOption(text("seed"), "seed", { min: 0, whole: true }),
    dtype: dtypeOption(text("dtype")),
  };
  checkFit(options);
  return present(options);
}

interface Sizes {
  readonly method?: CombineMethod | undefined;
  readonly rank?: number | undefined;
  readonly energy?: number | undefined;
  readonly svdClamp?: number | undefined;
  readonly density?: number | undefined;
}

/** What {@linkcode combineAdapters} would refuse too, as wrong usage. */
function checkFit({ method = "exact", rank, energy, svdClamp, density }: Sizes): void {
  const prunes = pruningOf(method) !== undefined;
  const takesSize = truncates(method);
  if (prunes && density === undefined) {
    throw new UsageError(`Cannot combine by "${method}" without --density: the share that it keeps is wanted`);
  }
  const refuse = (flag: string) => new UsageError(`Cannot combine by "${method}" with ${flag}: none is wanted`);
  if (!prunes && density !== undefined) throw refuse("--density");
  if (!takesSize && rank !== undefined) throw refuse("--rank");
  if (!takesSize && energy !== undefined) throw refuse("--energy");
  if (!takesSize && svdClamp !== undefined) throw refuse("--svd-clamp");
  if (rank !== undefined && energy !== undefined) {
    throw new UsageError("Cannot combine with two sizes: either --rank or --energy is wanted");
  }
}

/** `lora combine` */
export const combine: Command = {
  help: HELP,
  async run(args, signal) {
    const { values } = parseArgs({ args, options: OPTIONS });
    const out = requiredOption(values.out, "out");
    const options = combineOptions(values);
    if (values.adapter.length === 0) throw new UsageError("Cannot combine without --adapter: at least one is wanted");
    const named = adapterArguments(values.adapter);
    await refuseOverwrite(claimedFolder(out), named.map(({ path }) => path));
    const adapters: WeightedAdapter[] = [];
    for (const argument of named) {
      adapters.push({ adapter: await loadArgument(argument, { signal }), weight: argument.weight });
    }
    const combined = await combineAdapters(adapters, { ...options, signal });
    await writeResult(combined, out, { json: values.json, signal });
  },
};
