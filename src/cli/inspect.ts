import { parseArgs } from "node:util";
import { type Adapter, countParameters, type LoraModule } from "../adapter/adapter.ts";
import { adapterArguments, loadArgument } from "./arguments.ts";
import { type Command, UsageError } from "./command.ts";
import { formatReport } from "./report.ts";
import { formatTable } from "./table.ts";
import { dimTitles, formatBytes, formatCount, paint, print, printable, printJson, tableWidth } from "./terminal.ts";

const HELP = `What is in a PEFT adapter: the layers that it changes, with rank and scaling, and what looks wrong.

Usage: lora inspect ADAPTER [--json]

  ADAPTER   folder or URL with adapter_config.json and adapter_model.safetensors
  --json    { format, sha256, bytes, parameters, modules: [{ name, kind, rank, alpha, scaling, in, out, dtype }] }
`;

/** Modules that differ in the number of their layer only. */
interface Group {
  readonly pattern: string;
  readonly layers: number[];
  readonly first: LoraModule;
  parameters: number;
}

function groupModules(modules: Iterable<LoraModule>): Group[] {
  const groups = new Map<string, Group>();
  for (const module of modules) {
    const layer = /\.(\d+)\./.exec(module.name);
    const pattern = module.name.replace(/\.\d+\./, ".*.");
    const { rank, alpha, scaling, inFeatures, outFeatures, dtype } = module;
    const key = JSON.stringify([pattern, rank, alpha, scaling, inFeatures, outFeatures, dtype]);
    const group = groups.get(key) ?? { pattern, layers: [], first: module, parameters: 0 };
    if (layer) group.layers.push(Number(layer[1]));
    group.parameters += countParameters(module);
    groups.set(key, group);
  }
  return [...groups.values()].sort((a, b) => a.pattern.localeCompare(b.pattern));
}

/** 0-3, 5, 7-8 */
function formatRanges(numbers: readonly number[]): string {
  const ranges: [number, number][] = [];
  for (const number of numbers.toSorted((a, b) => a - b)) {
    const last = ranges.at(-1);
    if (last && number === last[1] + 1) last[1] = number;
    else ranges.push([number, number]);
  }
  return ranges.map(([first, last]) => first === last ? `${first}` : `${first}-${last}`).join(", ");
}

function formatAdapter(adapter: Adapter, name: string): string {
  const columns = [
    { title: "module" },
    { title: "layers" },
    { title: "rank", align: "right" },
    { title: "alpha", align: "right" },
    { title: "scaling", align: "right" },
    { title: "in", align: "right" },
    { title: "out", align: "right" },
    { title: "dtype" },
    { title: "parameters", align: "right" },
  ] as const;
  const rows = groupModules(adapter.modules.values()).map(({ pattern, layers, first, parameters }) => [
    printable(pattern),
    formatRanges(layers),
    String(first.rank),
    String(first.alpha),
    String(Number(first.scaling.toPrecision(6))),
    String(first.inFeatures),
    String(first.outFeatures),
    first.dtype,
    formatCount(parameters),
  ]);
  const base = adapter.config.baseModel;
  const head = [
    `${paint("bold", printable(name))}  ${adapter.format}, ${formatCount(adapter.modules.size)} modules, ` +
    `${formatCount(adapter.parameters)} parameters, ${formatBytes(adapter.bytes)}`,
    ...(base ? [`base    ${printable(base)}`] : []),
    `sha256  ${adapter.sha256}`,
  ];
  const table = formatTable(columns, rows, dimTitles, tableWidth());
  const report = formatReport(adapter.report, "stdout");
  return `${head.join("\n")}\n\n${table}${report && "\n"}${report}`;
}

function describeAdapter(adapter: Adapter): unknown {
  const { format, sha256, bytes, parameters, modules } = adapter;
  return {
    format,
    sha256,
    bytes,
    parameters,
    modules: Array.from(modules.values(), ({ name, kind, rank, alpha, scaling, inFeatures, outFeatures, dtype }) => ({
      name,
      kind,
      rank,
      alpha,
      scaling,
      in: inFeatures,
      out: outFeatures,
      dtype,
    })),
  };
}

/** `lora inspect` */
export const inspect: Command = {
  help: HELP,
  async run(args, signal) {
    const { values, positionals } = parseArgs({
      args,
      allowPositionals: true,
      options: { json: { type: "boolean", default: false } },
    });
    const [argument] = adapterArguments(positionals, false);
    if (!argument || positionals.length > 1) {
      throw new UsageError(`Cannot inspect ${positionals.length} adapters: one is wanted`);
    }
    const adapter = await loadArgument(argument, { signal });
    if (values.json) printJson(describeAdapter(adapter));
    else print(formatAdapter(adapter, argument.name));
  },
};
