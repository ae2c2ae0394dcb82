import { parseArgs } from "node:util";
import { resizeAdapter } from "../adapter/combine.ts";
import { loadArgument, oneAdapter } from "./arguments.ts";
import { type Command, UsageError } from "./command.ts";
import { dtypeOption, numberOption, requiredOption } from "./options.ts";
import { claimedFolder, refuseOverwrite } from "./overwrite.ts";
import { writeResult } from "./written_adapter.ts";

const HELP = `Lower the rank of an adapter: the best approximation of every module, with its error.

Usage: lora resize ADAPTER --out OUT (--rank R | --energy E) [--dtype f32|bf16|f16] [--json]

  ADAPTER               PEFT folder or URL
  --out OUT             folder to write, which PEFT and lora load
  --rank R              rank of every module; smaller ones stay as they are
  --energy E            instead: the share of the squared singular values that each module keeps, such as 0.99
  --dtype f32|bf16|f16  type of the values written (f32)
  --json                { out, sha256, bytes, parameters, modules, report: [{ module, what, why, error }] }
`;

const OPTIONS = {
  out: { type: "string" },
  rank: { type: "string" },
  energy: { type: "string" },
  dtype: { type: "string" },
  json: { type: "boolean", default: false },
} as const;

/** `lora resize` */
export const resize: Command = {
  help: HELP,
  async run(args, signal) {
    const { values, positionals } = parseArgs({ args, allowPositionals: true, options: OPTIONS });
    const argument = oneAdapter(positionals, "resize");
    const out = requiredOption(values.out, "out");
    const rank = numberOption(values.rank, "rank", { min: 1, whole: true });
    const energy = numberOption(values.energy, "energy", { above: 0, max: 1 });
    const dtype = dtypeOption(values.dtype);
    if ((rank === undefined) === (energy === undefined)) {
      throw new UsageError(
        `Cannot resize with ${rank === undefined ? "no size" : "two sizes"}: either --rank or --energy is wanted`,
      );
    }
    await refuseOverwrite(claimedFolder(out), [argument.path]);
    const adapter = await loadArgument(argument, { signal });
    const size = rank === undefined ? { energy: energy! } : { rank };
    const resized = await resizeAdapter(adapter, { ...size, signal, ...(dtype && { dtype }) });
    await writeResult(resized, out, { json: values.json, signal });
  },
};
