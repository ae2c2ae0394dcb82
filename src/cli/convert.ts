import { stat } from "node:fs/promises";
import { basename, dirname, extname } from "node:path";
import { parseArgs } from "node:util";
import type { Adapter, ReportLine } from "../adapter/adapter.ts";
import { readBaseFacts } from "../adapter/dialects/base_facts.ts";
import { DIALECTS, readAdapter, writeAdapter } from "../adapter/dialects/convert.ts";
import { joinFused, splitFused } from "../adapter/dialects/fused.ts";
import type { BaseFacts, Dialect } from "../adapter/dialects/options.ts";
import type { ReadOptions, Sink, SinkFile } from "../formats/source.ts";
import { folder } from "../fs/mod.ts";
import { ggufFolder } from "../models/mod.ts";
import { modelArgument } from "./arguments.ts";
import { type Command, UsageError } from "./command.ts";
import { choiceOption, numberOption, requiredOption } from "./options.ts";
import { claimedFolder, refuseOverwrite, type WrittenPlace } from "./overwrite.ts";
import { asPlain } from "./plain_adapter.ts";
import { layerOptions } from "./fused_layers.ts";
import { formatReport } from "./report.ts";
import { formatBytes, formatCount, print, printJson } from "./terminal.ts";

const HELP =
  `Bring an adapter into the form that another tool reads. What that form cannot say is folded into B, and told; the file
carries what it takes to come back with every bit and scale, where that tool passes over it.

Usage: lora convert ADAPTER --to DIALECT --out OUT [--base MODEL] [--alpha N] [--component NAME]
                    [--rank R] [--merged NAME=1,0,1]… [--kernel NAME=3]… [--split LAYERS]… [--join LAYERS]…
                    [--plain] [--initial ADAPTER] [--allow-loss] [--json]

  ADAPTER           folder of PEFT or mlx-lm, or the file of any other dialect, or its URL; what it holds tells which
                    one it is
  --to DIALECT      peft, kohya, diffusers, gguf, mlx or loralib
  --out OUT         folder to write; or, for a dialect that is one file, its name, ending in .safetensors, .gguf or .pt
  --base MODEL      the base model, a Hugging Face folder, a .safetensors or a .gguf file, or its URL: gguf needs its
                    architecture and heads, gguf and mlx want to know whether its head is tied, and kohya's names are
                    looked up in its list of layers; no weights are read
  --alpha N         lora_alpha of loralib's layers, which only files from here hold: needed to read all others
  --component NAME  part of a pipeline: unet, transformer, text_encoder (diffusers), lora_unet, lora_te1 (kohya)
  --rank R          most rank that LyCORIS modules get as LoRA (256); what is above is cut off, and told
  --plain           an adapter of PiSSA, OLoRA or KaSA, whose training began with a changed base, as plain LoRA of twice
                    the rank: reads the weights of --base
  --initial ADAPTER the same for any such initialisation, by the adapter as it was before training
  --merged NAME=…   layers of loralib's MergedLinear, by the end of their paths: which of their slices are adapted
  --kernel NAME=K   kernel_size of loralib's convolutions, by the end of their paths; --base tells it too
  --split LAYERS    takes fused layers apart: "flux", or such as "*.qkv_proj=*.q_proj,*.k_proj,*.v_proj"; by the heads
                    of --base, or in equal parts
  --join LAYERS     puts parts together, the other way round
  --allow-loss      leaves out what the dialect has no place for, and says so: DoRA, biases, embeddings, full tensors
  --json            { from, to, out, files, bytes, modules, parameters, report: [{ module, what, why, error }] }
`;

const OPTIONS = {
  to: { type: "string" },
  out: { type: "string" },
  base: { type: "string" },
  alpha: { type: "string" },
  component: { type: "string" },
  rank: { type: "string" },
  plain: { type: "boolean", default: false },
  initial: { type: "string" },
  merged: { type: "string", multiple: true, default: [] as string[] },
  kernel: { type: "string", multiple: true, default: [] as string[] },
  split: { type: "string", multiple: true, default: [] as string[] },
  join: { type: "string", multiple: true, default: [] as string[] },
  "allow-loss": { type: "boolean", default: false },
  json: { type: "boolean", default: false },
} as const;

/** Endings of the dialects that are one file. */
const ENDINGS: Readonly<Partial<Record<Dialect, readonly string[]>>> = {
  kohya: [".safetensors"],
  diffusers: [".safetensors"],
  gguf: [".gguf"],
  loralib: [".pt", ".pth", ".bin", ".safetensors"],
};

/** Where files go, and what has gone there. */
interface Output {
  readonly sink: Sink;
  readonly file?: string;
  readonly written: { readonly name: string; bytes: number }[];
}

/** What the base tells, and what the command line does. */
async function readFacts(
  path: string | undefined,
  layers: Required<Pick<BaseFacts, "merged" | "kernels">>,
  options: ReadOptions,
): Promise<BaseFacts> {
  if (path === undefined) return layers;
  const base = await modelArgument(path);
  const isGguf = !("open" in base) && path.endsWith(".gguf");
  const facts = await readBaseFacts(isGguf ? await ggufFolder(base, options) : base, options);
  return { ...facts, ...layers, kernels: { ...facts.kernels, ...layers.kernels } };
}

function openOutput(path: string, to: Dialect): Output {
  const written: Output["written"] = [];
  const ending = ENDINGS[to]?.find((ending) => extname(path) === ending);
  const place = folder(ending === undefined ? path : dirname(path));
  const create = async (name: string): Promise<SinkFile> => {
    const file = await place.create(name);
    const count = { name, bytes: 0 };
    written.push(count);
    return {
      write: async (bytes) => {
        await file.write(bytes);
        count.bytes += bytes.length;
      },
      commit: () => file.commit(),
      abort: () => file.abort(),
    };
  };
  const sink: Sink = { name: place.name, create };
  return { sink, written, ...(ending !== undefined && { file: basename(path) }) };
}

/** The folder of a dialect that is one file gets that file alone, under the dialect's name. */
function placeOf(path: string, to: Dialect): WrittenPlace {
  const endings = ENDINGS[to];
  if (endings?.includes(extname(path))) return { path, writes: null };
  return endings ? { path, writes: (name) => endings.includes(extname(name)) } : claimedFolder(path);
}

/** A folder of another kind in place of a file is a slip of the pen, found before anything is read. */
async function checkOutput(path: string, to: Dialect): Promise<void> {
  const entry = await stat(path).catch(() => undefined);
  const isFile = ENDINGS[to]?.includes(extname(path)) ?? false;
  const isOfOther = !isFile && Object.values(ENDINGS).some((endings) => endings.includes(extname(path)));
  if (entry === undefined && isOfOther) {
    const wanted = ["a folder", ...ENDINGS[to] ?? []].join(", ");
    throw new UsageError(`Cannot write ${to} to "${path}", named as a file of another dialect: ${wanted} is wanted`);
  }
  if (entry === undefined || entry.isFile() === isFile) return;
  throw new UsageError(`Cannot write ${to} to "${path}": a ${isFile ? "file" : "folder"} is wanted`);
}

function formatResult(adapter: Adapter, from: Dialect, to: Dialect, out: string, { written }: Output): string {
  const bytes = written.reduce((sum, file) => sum + file.bytes, 0);
  const what = `${formatCount(adapter.modules.size)} modules, ${formatCount(adapter.parameters)} parameters`;
  return `${out}: ${from} to ${to}, ${what}, ${formatBytes(bytes)}\n`;
}

/** `lora convert` */
export const convert: Command = {
  help: HELP,
  async run(args, signal) {
    const { values, positionals } = parseArgs({ args, allowPositionals: true, options: OPTIONS });
    const [path] = positionals;
    if (path === undefined || positionals.length > 1) {
      throw new UsageError(`Cannot convert ${positionals.length} adapters: one is wanted`);
    }
    const to = choiceOption(requiredOption(values.to, "to"), "to", DIALECTS)!;
    const out = requiredOption(values.out, "out");
    const alpha = numberOption(values.alpha, "alpha", {});
    const rank = numberOption(values.rank, "rank", { min: 1, whole: true });
    const { split, join, ...layers } = layerOptions(values);
    await checkOutput(out, to);
    const read = [path, values.base, values.initial].filter((place) => place !== undefined);
    await refuseOverwrite(placeOf(out, to), read);
    const facts = await readFacts(values.base, layers, { signal });
    const { component } = values;
    // Converting is the request that a pickle needs: it is read as data, and what comes out is none.
    const options = { ...facts, signal, allowPickle: true, ...(alpha !== undefined && { alpha }) };
    const { dialect, adapter: found } = await readAdapter(await modelArgument(path), {
      ...options,
      ...(component !== undefined && { component }),
      ...(rank !== undefined && { rank }),
    });
    const plain = await asPlain(found, values, { signal });
    const parted = split.length > 0 ? await splitFused(plain, split, facts) : plain;
    const adapter = join.length > 0 ? await joinFused(parted, join) : parted;
    const output = openOutput(out, to);
    const changes = await writeAdapter(adapter, to, output.sink, {
      ...options,
      allowLoss: values["allow-loss"],
      ...(output.file !== undefined && { file: output.file }),
      ...(component !== undefined && { component }),
    });
    const report: readonly ReportLine[] = [...adapter.report, ...changes];
    if (values.json) return printJson(describe(adapter, { from: dialect, to, out, output, report }));
    print(formatReport(report), "stderr");
    print(formatResult(adapter, dialect, to, out, output));
  },
};

function describe(
  { modules, parameters }: Adapter,
  { from, to, out, output: { written }, report }: {
    readonly from: Dialect;
    readonly to: Dialect;
    readonly out: string;
    readonly output: Output;
    readonly report: readonly ReportLine[];
  },
): unknown {
  const bytes = written.reduce((sum, file) => sum + file.bytes, 0);
  const files = written.map(({ name }) => name);
  return { from, to, out, files, bytes, modules: modules.size, parameters, report };
}
