/**
 * Merging adapters into a GGUF file, as a stream. Names and the order of rows are those of the file: factors are turned
 * to it.
 *
 * @module
 */

import { Adapter, type LoraModule } from "../adapter/adapter.ts";
import { GGUF_ARCHITECTURES, ggufTensorName, hasPairedRows, modulePath } from "../adapter/dialects/gguf_names.ts";
import { moduleOf } from "../adapter/paths.ts";
import { reorderHeads } from "../adapter/dialects/matrix_bytes.ts";
import { checkWeighted, type WeightedAdapter } from "../adapter/weighted_adapter.ts";
import type { Backend } from "../backend.ts";
import { MismatchError } from "../errors.ts";
import { checkOptionTypes } from "../formats/check_options.ts";
import { checkReadable, checkWritable } from "../formats/check_place.ts";
import type { Checkpoint, CheckpointTensor } from "../formats/checkpoint.ts";
import type { StoredTensor } from "../formats/dtype.ts";
import { type Gguf, readGguf, readGgufTensor } from "../formats/gguf.ts";
import { quote } from "../formats/quote.ts";
import type { Folder, Sink, Source } from "../formats/source.ts";
import { settleBaseChanges } from "./base_changes.ts";
import { GGUF_OUT_TYPES, type GgufOutType, planGguf } from "./gguf_output.ts";
import { identify } from "./identity.ts";
import { checkOptions, type MergeOptions, type MergeReport } from "./merge_options.ts";
import type { MergePlan, MergeTarget } from "./merge_plan.ts";
import { planMerge } from "./plan.ts";
import { writeMerge } from "./write_merge.ts";

/** Options of {@linkcode mergeGguf}. */
export interface GgufMergeOptions extends Omit<MergeOptions, "dtype" | "expandGroups"> {
  /** Name of the file written; that of the base if absent. */
  readonly file?: string;
  /**
   * Type of all matrices; vectors keep theirs, and rows that are no multiple of 32 become f16 in place of q8_0. If absent
   * every tensor keeps its type, but those that change and are coarser than Q8_0 become Q8_0.
   */
  readonly outType?: GgufOutType;
}

/**
 * Writes a GGUF file with W' = W + Σ weight · s · B A for every adapted weight; metadata and tokenizer, and tensors that
 * keep their type, bit for bit. What was quantised is dequantised, added to and, for Q8_0, quantised again: what is
 * added is rounded to steps of a 127th of the largest value among 32.
 *
 * @param base The file.
 * @param adapters The adapters with their weights; linear layers and the embedding.
 * @param sink Where the merged file goes.
 * @param options File name, type, backend, progress and a signal.
 * @returns What was written.
 * @throws {MismatchError} If an adapter does not fit the file, or would need tensors that it has not.
 * @throws {FormatError} If the file is malformed.
 * @throws {NumericError} If a merged or converted value is not finite.
 * @throws {IntegrityError} If the file changes meanwhile.
 */
export async function mergeGguf(
  base: Source,
  adapters: readonly WeightedAdapter[],
  sink: Sink,
  options: GgufMergeOptions = {},
): Promise<MergeReport> {
  checkOptions(options);
  checkOptionTypes("merge", options, { file: "string", outType: GGUF_OUT_TYPES });
  checkReadable("merge into a GGUF file", base, 'file("….gguf")');
  checkWritable("write a merged GGUF file", sink);
  checkWeighted("merge", adapters);
  options.signal?.throwIfAborted();
  const { file = base.name, outType, strict = true } = options;
  const gguf = await readGguf(base, options);
  const architecture = readArchitecture(gguf, base.name);
  const tied = !gguf.tensors.has("output.weight");
  const config = { tied, vocabSize: null, architectures: ["ForCausalLM"] };
  const view = viewOf(base, gguf, architecture);
  // Rows of weights are in the file's order, and what they tell of an adapter goes by its rows.
  const own = adapters.map((weighted) => inFileOrder(weighted, gguf, architecture));
  const settled = await settleBaseChanges(view, own, options);
  const plan = planMerge(view, settled.adapters, config, { strict });
  const targets = inFileNames(plan, gguf, { architecture, file: base.name });
  const parts = { source: base, gguf, file, changed: new Set(targets.keys()), outType };
  const layout = await planGguf(parts, options);
  const place: Folder = { name: base.name, has: (name) => Promise.resolve(name === base.name), open: () => base };
  const identity = (backend: Backend) => identify({ base: place, files: [base.name], adapters, options, backend });
  const merge = { tensors: gguf.tensors.size, files: [layout.plan], companions: new Map(), sink, identity };
  return await writeMerge({
    ...merge,
    plan: { targets, report: [...settled.report, ...plan.report, ...layout.report] },
  }, options);
}

function readArchitecture({ metadata }: Gguf, file: string): string {
  const found = metadata.get("general.architecture");
  if (typeof found === "string" && GGUF_ARCHITECTURES.includes(found)) return found;
  const message = `Cannot merge into ${quote(file)} of architecture ${quote(String(found ?? "nothing"))}`;
  throw new MismatchError(`${message}: expected one of ${GGUF_ARCHITECTURES.join(", ")}`, {
    code: "architecture",
    file,
    field: "general.architecture",
    found,
    expected: GGUF_ARCHITECTURES,
  });
}

/** The file's matrices under Hugging Face's names. */
function viewOf(source: Source, gguf: Gguf, architecture: string): Checkpoint {
  const tensors = new Map<string, CheckpointTensor>();
  for (const { name, type, shape, offset, length } of gguf.tensors.values()) {
    const path = modulePath(name, architecture);
    if (path === undefined) continue;
    const dtype = type === "F16" || type === "BF16" ? type : "F32";
    tensors.set(`${path}.weight`, { name: `${path}.weight`, dtype, shape, offset, length, file: source.name });
  }
  const read = (name: string) => {
    return readGgufTensor(source, gguf.tensors.get(ggufTensorName(moduleOf(name), architecture)!)!);
  };
  return { name: source.name, files: [source.name], tensors, metadata: new Map(), index: null, read };
}

/** The adapter with the rows of B, and all that goes by them, in the order that the file has. */
function inFileOrder(weighted: WeightedAdapter, gguf: Gguf, architecture: string): WeightedAdapter {
  if (!hasPairedRows(architecture)) return weighted;
  const { adapter } = weighted;
  const modules = new Map<string, LoraModule>();
  for (const [name, module] of adapter.modules) {
    const which = /\.self_attn\.([qk])_proj$/.exec(name)?.[1];
    const key = `${architecture}.attention.head_count`;
    const heads = gguf.metadata.get(which === "k" && gguf.metadata.has(`${key}_kv`) ? `${key}_kv` : key);
    modules.set(name, which ? inPairs(module, heads) : module);
  }
  return { ...weighted, adapter: new Adapter({ ...adapter, modules }) };
}

function inPairs(module: LoraModule, heads: unknown): LoraModule {
  if (typeof heads !== "number" || heads < 1 || module.outFeatures % (2 * heads) !== 0) {
    const message = `Cannot order the ${module.outFeatures} rows of ${quote(module.name)} by ${heads} heads`;
    throw new MismatchError(`${message}: expected an even number of rows for each`, {
      code: "heads",
      tensor: module.name,
      found: module.outFeatures,
      expected: heads,
    });
  }
  const order = (tensor: StoredTensor) => reorderHeads(tensor, heads, "pairs");
  const { loraB, loraBias, magnitude } = module;
  return {
    ...module,
    loraB: order(loraB),
    ...(loraBias && { loraBias: order(loraBias) }),
    ...(magnitude && { magnitude: order(magnitude) }),
  };
}

/** The targets under the file's names; a tensor more or less is refused. */
function inFileNames(
  { targets, omitted, config }: MergePlan,
  gguf: Gguf,
  { architecture, file }: { readonly architecture: string; readonly file: string },
): Map<string, MergeTarget> {
  const renamed = new Map<string, MergeTarget>();
  for (const [name, target] of targets) {
    const tensor = ggufTensorName(moduleOf(name), architecture);
    const info = gguf.tensors.get(tensor ?? "");
    const isPlain = target.values === null && target.groups === 1 && target.shape.join() === info?.shape.join();
    if (tensor === undefined || !isPlain || omitted.size > 0 || Object.keys(config).length > 0) {
      const message =
        `Cannot merge into ${quote(file)} an adapter that changes ${quote(name)}: a GGUF file takes the ` +
        "tensors that it has; merge into the Hugging Face model and convert that";
      throw new MismatchError(message, { code: "unsupported", file, tensor: name });
    }
    renamed.set(tensor, target);
  }
  return renamed;
}
