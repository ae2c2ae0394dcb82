import { basename, dirname, resolve } from "node:path";
import { parseArgs } from "node:util";
import { type AdapterComparison, compareAdapters, type Similarity } from "../adapter/compare.ts";
import { writeFiles } from "../formats/write_files.ts";
import { folder } from "../fs/mod.ts";
import { adapterArguments, loadArgument } from "./arguments.ts";
import { type Command, UsageError } from "./command.ts";
import { formatHeatMaps } from "./heat_map.ts";
import { choiceOption } from "./options.ts";
import { refuseOverwrite } from "./overwrite.ts";
import { formatTable } from "./table.ts";
import { dimTitles, formatCount, oneLine, print, printJson, tableWidth } from "./terminal.ts";

const HELP =
  `How alike two adapters of one base are: norms, angle, and the subspace similarity φ of the LoRA paper (§7.2).

Usage: lora compare FIRST SECOND [--of factors|delta] [--svg FILE] [--json]

  FIRST, SECOND       PEFT folders or URLs
  --of factors|delta  directions of A and of B, as the paper takes them (default), or of the whole update
  --svg FILE          writes heat maps of φ(i, j) for every module, its inputs and its outputs
  --json              { norms, cosine, onlyFirst, onlySecond,
                        modules: [{ module, ranks, norms, cosine, input, output }] }

φ(i, j) is 1 where the first i directions of one adapter and the first j of the other span the same, 0 where they are
orthogonal. The table has φ₁ = φ(1, 1) and φ of all directions, of the inputs and of the outputs.
`;

const OPTIONS = {
  of: { type: "string" },
  svg: { type: "string" },
  json: { type: "boolean", default: false },
} as const;

function formatNumber(value: number): string {
  return String(Number(value.toPrecision(3)));
}

function formatSimilarity(table: Similarity): readonly [string, string] {
  const [first, all] = [table[0]?.[0], table.at(-1)?.at(-1)];
  return [first, all].map((phi) => phi === undefined ? "-" : phi.toFixed(3)) as [string, string];
}

function formatComparison(comparison: AdapterComparison, names: readonly string[]): string {
  const titles = ["ranks", "norms", "", "cosine", "in φ₁", "all", "out φ₁", "all"];
  const columns = [{ title: "module" }, ...titles.map((title) => ({ title, align: "right" as const }))];
  const rows = comparison.modules.map(({ module, ranks, norms, cosine, input, output }) => [
    oneLine(module),
    ranks.join(" "),
    ...norms.map(formatNumber),
    cosine.toFixed(3),
    ...formatSimilarity(input),
    ...formatSimilarity(output),
  ]);
  const [first, second] = names.map(oneLine);
  const lines = [
    formatTable(columns, rows, dimTitles, tableWidth()),
    `${first} has the norm ${formatNumber(comparison.norms[0])}, ${second} ${formatNumber(comparison.norms[1])}; ` +
    `cosine ${comparison.cosine.toFixed(3)}`,
  ];
  const only = [[first, comparison.onlyFirst.length], [second, comparison.onlySecond.length]] as const;
  for (const [name, count] of only) {
    if (count > 0) lines.push(`${formatCount(count)} modules are in ${name} only`);
  }
  return lines.join("\n") + "\n";
}

async function writeHeatMaps(path: string, { modules }: AdapterComparison, names: readonly string[]): Promise<void> {
  const panels = modules.flatMap(({ module, input, output }) => [
    { title: `${oneLine(module)}, in`, table: input },
    { title: `${oneLine(module)}, out`, table: output },
  ]);
  const [rows, columns] = names.map((name) => `first directions of ${oneLine(name)}`) as [string, string];
  const drawn = new TextEncoder().encode(formatHeatMaps(panels, { rows, columns }));
  await writeFiles(folder(dirname(resolve(path))), new Map([[basename(path), drawn]]));
}

/** `lora compare` */
export const compare: Command = {
  help: HELP,
  async run(args, signal) {
    const { values, positionals } = parseArgs({ args, allowPositionals: true, options: OPTIONS });
    const [first, second] = adapterArguments(positionals, false);
    if (!first || !second || positionals.length > 2) {
      throw new UsageError(`Cannot compare ${positionals.length} adapters: two are wanted`);
    }
    const of = choiceOption(values.of, "of", ["factors", "delta"]);
    if (values.svg !== undefined) {
      await refuseOverwrite({ path: values.svg, writes: null, option: "svg" }, [first.path, second.path]);
    }
    const a = await loadArgument(first, { signal });
    const b = await loadArgument(second, { signal });
    const comparison = await compareAdapters(a, b, { signal, ...(of && { of }) });
    const names = [first.name, second.name];
    if (values.svg !== undefined) await writeHeatMaps(values.svg, comparison, names);
    if (values.json) printJson(comparison);
    else print(formatComparison(comparison, names));
  },
};
