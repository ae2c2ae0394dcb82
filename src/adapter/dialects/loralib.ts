/**
 * microsoft/LoRA's loralib: a torch file with `<path>.lora_A` (r, in) and `.lora_B` (out, r). The alpha is in the code
 * that made the model, not in the file; files of this package tell it in their metadata, which torch passes over.
 *
 * @module
 */

import { FormatError, LimitError, MismatchError, NumericError } from "../../errors.ts";
import type { StoredTensor } from "../../formats/dtype.ts";
import { quote } from "../../formats/quote.ts";
import { encodeSafetensors } from "../../formats/safetensors_writer.ts";
import type { Sink, Source } from "../../formats/source.ts";
import { encodeTorch } from "../../formats/torch_writer.ts";
import { writeFiles } from "../../formats/write_files.ts";
import type { Adapter, LoraModule, ReportLine } from "../adapter.ts";
import { DEFAULT_LIMITS } from "../limits.ts";
import { assembleAdapter, reportTrainingState } from "./assemble.ts";
import { carryTexts, CONFIG_KEY, readCarried } from "./carried.ts";
import { type ConvFactors, fromLoralibConv, kernelOf, type LayerBounds, toLoralibConv } from "./conv_kernel.ts";
import { FactorPairs } from "./factor_pairs.ts";
import { foldScales } from "./fold.ts";
import { carriedLayers, carryLayers, type LoralibLayers } from "./loralib_layers.ts";
import { requireHeld } from "./losses.ts";
import { gatherSlices, type MergedLayer, mergedLayer, slicesOf, spreadSlices } from "./merged_linear.ts";
import type { ReadDialectOptions, WriteDialectOptions } from "./options.ts";
import { isConvolution, refuseForeign } from "./refusals.ts";
import { readTensorFile, type TensorFile } from "./tensor_file.ts";

/** Default name of the file. */
const LORALIB_FILE = "lora.pt";
/** How many bytes layers may take that are made of one of the file, and what they may take beyond that. */
const GROWTH = 64;
const HEAD_ROOM = 2 ** 26;
/** Key of the alpha in the metadata. */
const ALPHA_KEY = "lora_alpha";
const EXPECTED = '"<path>.lora_A" or "<path>.lora_B"';

/**
 * Reads what `lora_state_dict()` gave, saved by `torch.save` or as safetensors.
 *
 * A `MergedLinear` of rank r with n enabled slices becomes one module of rank r·n and alpha·n, and a `Conv2d` one of rank
 * r·k² and alpha·k²; both are exact. Layers are told from embeddings by their names.
 *
 * @param source The file.
 * @param options `alpha`, which files of other tools require; `merged` and `kernels` where these have such layers;
 * `modules`, caps and a signal.
 * @returns The adapter.
 * @throws {FormatError} If a tensor is no factor, or one of a convolution whose kernel is not given.
 * @throws {MismatchError} If the alpha is missing, a factor lacks its partner, or it is one of a MergedLinear whose
 * enabled slices are not given.
 * @throws {LimitError} If a cap is passed.
 * @throws {NumericError} If a factor or the alpha is not finite.
 */
export async function readLoralib(source: Source, options: ReadDialectOptions = {}): Promise<Adapter> {
  const { limits, modules } = options;
  const file = await readTensorFile(source, options);
  const alpha = options.alpha ?? carriedAlpha(file);
  requireAlpha(alpha, file.name);
  const layers = new Map<string, Partial<ConvFactors>>();
  for (const [tensor, stored] of file.tensors) {
    const [, path, part] = /^(.+)\.lora_([AB])$/.exec(tensor) ?? [];
    if (path === undefined) throw refuseForeign(tensor, file.name, EXPECTED);
    layers.set(path, { ...layers.get(path), [part === "A" ? "a" : "b"]: stored });
  }
  const hints = { ...hintsOf(file, options), ...boundsOf(file, options) };
  const pairs = new FactorPairs(file.name, { modules, limits, kinds: { embedding: true, conv: "any name" } });
  const times = new Map<string, number>();
  for (const [path, factors] of layers) {
    const plain = plainFactors(path, factors, hints);
    if (plain.a) pairs.add(path, "a", `${path}.lora_A`, plain.a);
    if (plain.b) pairs.add(path, "b", `${path}.lora_B`, plain.b);
    times.set(path, plain.times);
  }
  const scaled = pairs.complete().map((pair) => ({ ...pair, alpha: alpha * times.get(pair.name)! }));
  const { name, metadata } = file;
  const carried = readCarried(metadata.get(CONFIG_KEY), { file: name, metadata, limits });
  return await assembleAdapter({ name: source.name, file: name, pairs: scaled, carried, limits });
}

function hintsOf(file: TensorFile, { merged = {}, kernels = {} }: ReadDialectOptions): LoralibLayers {
  const carried = carriedLayers(file);
  return { merged: { ...carried.merged, ...merged }, kernels: { ...carried.kernels, ...kernels } };
}

/** Layers of MergedLinear and Conv2d take more as PEFT has them, and a few bytes say how much. */
function boundsOf({ name, tensors }: TensorFile, { limits }: ReadDialectOptions): LayerBounds {
  const { rank, fileBytes } = { ...DEFAULT_LIMITS, ...limits };
  const size = [...tensors.values()].reduce((sum, { bytes }) => sum + bytes.length, 0);
  const limit = Math.min(fileBytes, GROWTH * size + HEAD_ROOM);
  let value = 0;
  return {
    file: name,
    maxRank: rank,
    spend(tensor, bytes) {
      value += bytes;
      if (value <= limit) return;
      const message = `Cannot place tensor ${quote(tensor)} of ${quote(name)} with layers of ${value} bytes`;
      const details = { file: name, tensor, field: "size", limit, value };
      throw new LimitError(`${message}: expected at most ${limit}`, details);
    },
  };
}

/** PEFT's factors of a layer, and by how much their rank, and so their alpha, is larger. */
function plainFactors(
  path: string,
  factors: Partial<ConvFactors>,
  { merged, kernels, ...bounds }: LoralibLayers & LayerBounds,
): Partial<ConvFactors> & { readonly times: number } {
  const { a, b } = factors;
  const { file } = bounds;
  const kernel = kernelOf(path, kernels);
  if (!kernel && isConvolution(path)) throw refuseKernel(path, file);
  if (!a || !b) return { ...factors, times: 1 };
  if (kernel) {
    const plain = fromLoralibConv({ a, b }, kernel, { path, ...bounds });
    return { ...plain, times: plain.a.shape[0]! * kernel[0]! / a.shape[0]! };
  }
  const layer = mergedLayer({ path, a, b, file }, merged);
  if (!layer) return { a, b, times: 1 };
  bounds.spend(`${path}.lora_B`, b.bytes.length * layer.slices.length);
  return { a, b: spreadSlices(b, layer), times: layer.enabled };
}

function refuseKernel(path: string, file: string): FormatError {
  const message = `Cannot read tensor ${quote(`${path}.lora_A`)} of ${quote(file)}, a factor of a convolution`;
  const expected = "--kernel (kernels) with its kernel_size, which the shapes do not tell";
  const details = { code: "kernel", file, tensor: `${path}.lora_A`, field: "kernels", expected };
  return new FormatError(`${message}: expected ${expected}`, details);
}

function carriedAlpha({ name, metadata }: TensorFile): number | undefined {
  const text = metadata.get(ALPHA_KEY);
  if (text === undefined || /^-?\d+(?:\.\d+)?(?:e[+-]?\d+)?$/.test(text)) {
    return text === undefined ? text : Number(text);
  }
  const message = `Cannot read ${quote(ALPHA_KEY)} of ${quote(name)} with value ${quote(text)}: expected a number`;
  throw new FormatError(message, { file: name, field: ALPHA_KEY, found: text, expected: "a number" });
}

function requireAlpha(alpha: number | undefined, file: string): asserts alpha is number {
  if (alpha === undefined) {
    const message = `Cannot read ${quote(file)} of loralib without an alpha, which its files do not hold`;
    const details = { code: "alpha", file, field: "alpha", expected: "lora_alpha of the layers" };
    throw new MismatchError(`${message}: expected --alpha (alpha), the lora_alpha of its layers`, details);
  }
  if (Number.isFinite(Math.fround(alpha))) return;
  const message = `Cannot read ${quote(file)} with alpha ${alpha}: expected a finite 32-bit float`;
  throw new NumericError(message, { file, field: "alpha", found: alpha });
}

/**
 * Writes a file for `load_state_dict(..., strict=False)` of a model with loralib's layers. Modules whose scale is
 * not alpha / r have the difference in B: exact for powers of two, else rounded once to F32 and reported. The alpha, and
 * what the rounding took, are in the metadata, so that {@linkcode readLoralib} gives every bit and scale again.
 *
 * @param adapter Plain LoRA of linear layers, embeddings and convolutions.
 * @param sink Where the file goes.
 * @param options `alpha`; that of the config if absent. `file`, which is written as safetensors if its name ends so, else
 * as `torch.save` does; `merged`, the layers that are to be of `MergedLinear`; `allowLoss`.
 * @returns What was changed, and the alpha.
 * @throws {MismatchError} If the adapter is more than that, and the loss is not allowed.
 */
export async function writeLoralib(
  adapter: Adapter,
  sink: Sink,
  options: WriteDialectOptions = {},
): Promise<readonly ReportLine[]> {
  const { file = LORALIB_FILE } = options;
  const held = requireHeld(adapter, { dialect: "loralib", kinds: ["linear", "embedding", "conv"] }, options);
  // An alpha of 0 says nothing but s = 0.
  const alpha = (options.alpha ?? adapter.config.loraAlpha) || 1;
  requireAlpha(alpha, file);
  const why = `loralib makes its layers with one alpha, ${alpha}, and s = alpha / r`;
  const forms = new Map(held.modules.map((module) => [module.name, formOf(module, options)]));
  const folded = foldScales(held.modules, ({ name, rank }) => alpha * forms.get(name)!.times / rank, { file, why });
  const tensors = new Map<string, StoredTensor>();
  for (const module of folded.modules) {
    const { a, b } = forms.get(module.name)!.factorsOf(module);
    tensors.set(`${module.name}.lora_A`, a).set(`${module.name}.lora_B`, b);
  }
  const layers = carryLayers(layersOf(held.modules, options));
  const metadata = new Map([...await carryTexts(held.config, folded), ...layers, [ALPHA_KEY, String(alpha)]]);
  const encode = file.endsWith(".safetensors") ? encodeSafetensors : encodeTorch;
  await writeFiles(sink, new Map([[file, encode(tensors, metadata)]]), options);
  const what = `the layers have to be made with lora_alpha = ${alpha}`;
  const note: ReportLine = { module: file, what, why: "loralib does not read it from the file" };
  return [...reportTrainingState(adapter), ...held.report, ...folded.report, note];
}

/** How a module stands in the file. */
interface LoralibForm {
  /** By how much the module's rank is larger than loralib's, and so its alpha. */
  readonly times: number;
  /** Its factors, which are those of the module after folding. */
  factorsOf(module: LoraModule): ConvFactors;
}

function formOf({ name, kind, rank, loraA, loraB }: LoraModule, { merged = {} }: WriteDialectOptions): LoralibForm {
  if (kind === "conv") {
    const factorsOf = ({ loraA, loraB }: LoraModule) => toLoralibConv({ a: loraA, b: loraB }, name);
    return { times: rank / toLoralibConv({ a: loraA, b: loraB }, name).rank, factorsOf };
  }
  const slices = slicesOf(name, merged);
  if (!slices) return { times: 1, factorsOf: ({ loraA, loraB }) => ({ a: loraA, b: loraB }) };
  const layer: MergedLayer = { slices, enabled: slices.filter(Boolean).length };
  const factorsOf = ({ loraA, loraB }: LoraModule) => ({ a: loraA, b: gatherSlices(loraB, layer, name) });
  return { times: layer.enabled, factorsOf };
}

/** What the file carries of its layers. */
function layersOf(modules: readonly LoraModule[], { merged = {} }: WriteDialectOptions): LoralibLayers {
  const slices = modules.flatMap(({ name }): [string, readonly boolean[]][] => {
    const own = slicesOf(name, merged);
    return own ? [[name, own]] : [];
  });
  const convs = modules.filter(({ kind }) => kind === "conv");
  const kernels = convs.map(({ name, loraA }): [string, readonly number[]] => [name, loraA.shape.slice(2)]);
  return { merged: Object.fromEntries(slices), kernels: Object.fromEntries(kernels) };
}
