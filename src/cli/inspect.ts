import { parseArgs } from "node:util";
import { type Adapter, countParameters, type LoraModule } from "../adapter/adapter.ts";
import { deltaNorm } from "../adapter/compare.ts";
import { adapterCosts, moduleCosts } from "../adapter/costs.ts";
import { loadArgument, oneAdapter } from "./arguments.ts";
import type { Command } from "./command.ts";
import { formatReport } from "./report.ts";
import { formatTable } from "./table.ts";
import { dimTitles, formatBytes, formatCount, oneLine, paint, print, printJson, tableWidth } from "./terminal.ts";

const HELP = `What is in a PEFT adapter: the layers that it changes, with rank and scaling, and what looks wrong.

Usage: lora inspect ADAPTER [--json]

  ADAPTER   folder or URL with adapter_config.json and adapter_model.safetensors
  --json    { format, sha256, bytes, parameters, modules: [{ name, kind, rank, alpha, scaling, in, out, dtype, parts,
              norm, flops }], costs: { parameters, baseFlops, branchFlops, baseBackwardFlops, branchBackwardFlops,
              optimizerValues }, replacements: [{ name, shape, dtype }], tokenRows: [{ name, indices }],
              trainingState: [name], invocationTokens, baseChange }; parts are "dora", "bias" and "diagonal"

‖ΔW‖ is the size of the update, its Frobenius norm before a magnitude of DoRA acts; of modules in one row the mean.
FLOPs are multiplications and additions per token, or per place of a convolution; those of fused experts are of all
experts, though a token visits a few.
`;

/** Modules that differ in the number of their layer only. */
interface Group {
  readonly pattern: string;
  readonly layers: number[];
  readonly first: LoraModule;
  readonly norms: number[];
  parameters: number;
  flops: number;
}

function groupModules(modules: Iterable<LoraModule>): Group[] {
  const groups = new Map<string, Group>();
  for (const module of modules) {
    const layer = /\.(\d+)\./.exec(module.name);
    const pattern = module.name.replace(/\.\d+\./, ".*.");
    const { rank, alpha, scaling, inFeatures, outFeatures, dtype } = module;
    const key = JSON.stringify([pattern, kindOf(module), rank, alpha, scaling, inFeatures, outFeatures, dtype]);
    const group = groups.get(key) ?? { pattern, layers: [], first: module, norms: [], parameters: 0, flops: 0 };
    if (layer) group.layers.push(Number(layer[1]));
    const norm = normOf(module);
    if (norm !== null) group.norms.push(norm);
    group.parameters += countParameters(module);
    group.flops += moduleCosts(module).branchFlops;
    groups.set(key, group);
  }
  return [...groups.values()].sort((a, b) => a.pattern.localeCompare(b.pattern));
}

/** ‖ΔW‖ where the factors are two matrices; experts and groups are several products. */
function normOf(module: LoraModule): number | null {
  const isOne = module.kind !== "experts" && (module.kind !== "conv" || module.loraB.shape[1] === module.rank);
  return isOne && !module.diagonal ? deltaNorm(module) : null;
}

function formatNorm(norms: readonly number[]): string {
  if (norms.length === 0) return "-";
  return String(Number((norms.reduce((sum, norm) => sum + norm, 0) / norms.length).toPrecision(3)));
}

/** The counts of the paper: what the branches cost beside the layers that they are on. */
function describeCosts(adapter: Adapter): string[] {
  const { baseFlops, branchFlops, branchBackwardFlops, optimizerValues, parameters } = adapterCosts(adapter);
  const share = baseFlops > 0
    ? `, ${Number((100 * branchFlops / baseFlops).toPrecision(2))}% of the adapted layers`
    : "";
  return [
    `size    ${formatBytes(4 * parameters)} in 32 bits, ${formatBytes(2 * parameters)} in 16`,
    `token   ${formatCount(branchFlops)} FLOPs more${share}; none once merged`,
    `train   ${formatCount(branchBackwardFlops)} FLOPs back through the branches, ${
      formatCount(optimizerValues)
    } moments`,
  ];
}

/** What a module has beside its factors. */
function partsOf({ magnitude, loraBias, diagonal }: LoraModule): string[] {
  return [...magnitude ? ["dora"] : [], ...loraBias ? ["bias"] : [], ...diagonal ? ["diagonal"] : []];
}

function kindOf(module: LoraModule): string {
  const kind = module.experts === undefined ? module.kind : `${module.experts} ${module.kind}`;
  return [kind, ...partsOf(module)].join(" + ");
}

/** What an adapter holds beside its modules, a line each. */
function describeOthers({ replacements, tokenRows, trainingState, invocationTokens, baseChange }: Adapter): string[] {
  const lines = Array.from(replacements, ([name, { shape, dtype }]) => {
    return `full    ${oneLine(name)}  ${dtype} [${shape.join(", ")}]`;
  });
  for (const [name, { indices }] of tokenRows) {
    lines.push(`rows    ${oneLine(name)}  ${indices.length} new rows: ${formatRanges(indices)}`);
  }
  for (const name of trainingState.keys()) lines.push(`state   ${oneLine(name)}  of training only`);
  if (invocationTokens) lines.push(`aLoRA   acts from tokens ${invocationTokens.join(" ")} on`);
  if (baseChange) lines.push(`base    changed by ${baseChange} before training`);
  return lines;
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

function formatModules(adapter: Adapter): string {
  const hasKinds = [...adapter.modules.values()].some((module) => kindOf(module) !== "linear");
  const columns = [
    { title: "module" },
    ...hasKinds ? [{ title: "kind" }] : [],
    { title: "layers" },
    { title: "rank", align: "right" },
    { title: "alpha", align: "right" },
    { title: "scaling", align: "right" },
    { title: "in", align: "right" },
    { title: "out", align: "right" },
    { title: "dtype" },
    { title: "‖ΔW‖", align: "right" },
    { title: "parameters", align: "right" },
    { title: "FLOPs", align: "right" },
  ] as const;
  const rows = groupModules(adapter.modules.values()).map(({ pattern, layers, first, norms, parameters, flops }) => [
    oneLine(pattern),
    ...hasKinds ? [kindOf(first)] : [],
    formatRanges(layers),
    String(first.rank),
    String(first.alpha),
    String(Number(first.scaling.toPrecision(6))),
    String(first.inFeatures),
    String(first.outFeatures),
    first.dtype,
    formatNorm(norms),
    formatCount(parameters),
    formatCount(flops),
  ]);
  return formatTable(columns, rows, dimTitles, tableWidth());
}

function formatAdapter(adapter: Adapter, name: string): string {
  const base = adapter.config.baseModel;
  const head = [
    `${paint("bold", oneLine(name))}  ${adapter.format}, ${formatCount(adapter.modules.size)} modules, ` +
    `${formatCount(adapter.parameters)} parameters, ${formatBytes(adapter.bytes)}`,
    ...(base ? [`base    ${oneLine(base)}`] : []),
    ...describeCosts(adapter),
    `sha256  ${adapter.sha256}`,
  ];
  const others = describeOthers(adapter).map((line) => `${line}\n`).join("");
  const report = formatReport(adapter.report, "stdout");
  return `${head.join("\n")}\n\n${formatModules(adapter)}${others && "\n"}${others}${report && "\n"}${report}`;
}

function describeAdapter(adapter: Adapter): unknown {
  const { format, sha256, bytes, parameters, trainingState, invocationTokens, baseChange } = adapter;
  return {
    format,
    sha256,
    bytes,
    parameters,
    modules: Array.from(adapter.modules.values(), (module) => {
      const { name, kind, rank, alpha, scaling, inFeatures, outFeatures, dtype } = module;
      const parts = partsOf(module);
      return {
        name,
        kind,
        rank,
        alpha,
        scaling,
        in: inFeatures,
        out: outFeatures,
        dtype,
        parts,
        norm: normOf(module),
        flops: moduleCosts(module).branchFlops,
      };
    }),
    costs: adapterCosts(adapter),
    replacements: Array.from(adapter.replacements, ([name, { shape, dtype }]) => ({ name, shape, dtype })),
    tokenRows: Array.from(adapter.tokenRows, ([name, { indices }]) => ({ name, indices })),
    trainingState: [...trainingState.keys()],
    invocationTokens,
    baseChange,
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
    const argument = oneAdapter(positionals, "inspect");
    const adapter = await loadArgument(argument, { signal });
    if (values.json) printJson(describeAdapter(adapter));
    else print(formatAdapter(adapter, argument.name));
  },
};
