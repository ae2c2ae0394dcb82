/**
 * microsoft/LoRA's loralib: a torch file with `<path>.lora_A` (r, in) and `.lora_B` (out, r). The alpha is in the code
 * that made the model, not in the file; files of this package tell it in their metadata, which torch passes over.
 *
 * @module
 */

import { MismatchError, NumericError } from "../../errors.ts";
import type { StoredTensor } from "../../formats/dtype.ts";
import { quote } from "../../formats/quote.ts";
import { encodeSafetensors } from "../../formats/safetensors_writer.ts";
import type { Sink, Source } from "../../formats/source.ts";
import { encodeTorch } from "../../formats/torch_writer.ts";
import { writeFiles } from "../../formats/write_files.ts";
import type { Adapter, LoraModule, ReportLine } from "../adapter.ts";
import { assembleAdapter, reportTrainingState } from "./assemble.ts";
import { carryTexts, CONFIG_KEY, readCarried } from "./carried.ts";
import { FactorPairs } from "./factor_pairs.ts";
import { foldScales } from "./fold.ts";
import { requireHeld } from "./losses.ts";
import { gatherSlices, type MergedLayer, mergedLayer, slicesOf, spreadSlices } from "./merged_linear.ts";
import type { ReadDialectOptions, WriteDialectOptions } from "./options.ts";
import { refuseForeign } from "./refusals.ts";
import { readTensorFile, type TensorFile } from "./tensor_file.ts";

/** Default name of the file. */
export const LORALIB_FILE = "lora.pt";
/** Key of the alpha in the metadata. */
const ALPHA_KEY = "lora_alpha";
const EXPECTED = '"<path>.lora_A" or "<path>.lora_B"';

/**
 * Reads what `lora_state_dict()` gave, saved by `torch.save` or as safetensors.
 *
 * A `MergedLinear` of rank r with n enabled slices becomes one module of rank r·n and alpha·n, which is exact. Layers are
 * told from embeddings and convolutions by their names, or by `modules`, the base's linear layers.
 *
 * @param source The file.
 * @param options `alpha`, which files of other tools require; `merged` where there are such layers; `modules`, caps and a signal.
 * @returns The adapter.
 * @throws {FormatError} If a tensor is no factor of a linear layer.
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
  const layers = new Map<string, { a?: StoredTensor; b?: StoredTensor }>();
  for (const [tensor, stored] of file.tensors) {
    const [, path, part] = /^(.+)\.lora_([AB])$/.exec(tensor) ?? [];
    if (path === undefined) throw refuseForeign(tensor, file.name, EXPECTED);
    layers.set(path, { ...layers.get(path), [part === "A" ? "a" : "b"]: stored });
  }
  const pairs = new FactorPairs(file.name, { modules, limits, kinds: { embedding: true } });
  const merged = new Map<string, MergedLayer>();
  for (const [path, { a, b }] of layers) {
    const layer = a && b && mergedLayer({ path, a, b, file: file.name }, options.merged ?? {});
    if (layer) merged.set(path, layer);
    if (a) pairs.add(path, "a", `${path}.lora_A`, a);
    if (b) pairs.add(path, "b", `${path}.lora_B`, layer ? spreadSlices(b, layer) : b);
  }
  const scaled = pairs.complete().map((pair) => ({ ...pair, alpha: alpha * (merged.get(pair.name)?.enabled ?? 1) }));
  const { name, metadata } = file;
  const carried = readCarried(metadata.get(CONFIG_KEY), { file: name, metadata, limits });
  return await assembleAdapter({ name: source.name, file: name, pairs: scaled, carried, limits });
}

function carriedAlpha({ metadata }: TensorFile): number | undefined {
  const text = metadata.get(ALPHA_KEY);
  return text === undefined ? undefined : Number(text);
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
 * Writes a file for `load_state_dict(..., strict=False)` of a model with loralib's `Linear` layers. Modules whose scale is
 * not alpha / r have the difference in B: exact for powers of two, else rounded once to F32 and reported. The alpha, and
 * what the rounding took, are in the metadata, so that {@linkcode readLoralib} gives every bit and scale again.
 *
 * @param adapter Plain LoRA of linear layers and embeddings.
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
  const held = requireHeld(adapter, { dialect: "loralib", kinds: ["linear", "embedding"] }, options);
  const layerOf = ({ name }: LoraModule): MergedLayer | undefined => {
    const slices = slicesOf(name, options.merged ?? {});
    return slices && { slices, enabled: slices.filter(Boolean).length };
  };
  // An alpha of 0 says nothing but s = 0.
  const alpha = (options.alpha ?? adapter.config.loraAlpha) || 1;
  requireAlpha(alpha, file);
  const why = `loralib makes its layers with one alpha, ${alpha}, and s = alpha / r`;
  const scaleOf = (module: LoraModule) => alpha * (layerOf(module)?.enabled ?? 1) / module.rank;
  const folded = foldScales(held.modules, scaleOf, { file, why });
  const tensors = new Map<string, StoredTensor>();
  for (const module of folded.modules) {
    const { name, loraA, loraB } = module;
    const layer = layerOf(module);
    tensors.set(`${name}.lora_A`, loraA).set(`${name}.lora_B`, layer ? gatherSlices(loraB, layer, name) : loraB);
  }
  const metadata = (await carryTexts(held.config, folded)).set(ALPHA_KEY, String(alpha));
  const encode = file.endsWith(".safetensors") ? encodeSafetensors : encodeTorch;
  await writeFiles(sink, new Map([[file, encode(tensors, metadata)]]), options);
  const what = `the layers have to be made with lora_alpha = ${alpha}`;
  const note: ReportLine = { module: file, what, why: "loralib does not read it from the file" };
  return [...reportTrainingState(adapter), ...held.report, ...folded.report, note];
}
