/**
 * Kohya's sd-scripts: `lora_unet_<path with underscores>.lora_down.weight` (r, in) or (r, in, k, k), `.lora_up.weight`
 * (out, r) or (out, r, 1, 1), `.alpha` for each module, s = alpha / r, and `.dora_scale` (out, 1) or (out, 1, 1, 1).
 *
 * @module
 */

import { FormatError, MismatchError } from "../../errors.ts";
import { fromFloat32, type StoredTensor } from "../../formats/dtype.ts";
import { type JsonValue, parseJson } from "../../formats/json.ts";
import { quote } from "../../formats/quote.ts";
import { encodeSafetensors } from "../../formats/safetensors_writer.ts";
import type { Sink, Source } from "../../formats/source.ts";
import { writeFiles } from "../../formats/write_files.ts";
import type { Adapter, LoraModule, ReportLine } from "../adapter.ts";
import { DEFAULT_LIMITS } from "../limits.ts";
import { assembleAdapter, reportTrainingState } from "./assemble.ts";
import { carryTexts, CONFIG_KEY, readCarried } from "./carried.ts";
import { kohyaPrefix, oneComponent } from "./component.ts";
import { FactorPairs } from "./factor_pairs.ts";
import { foldScales } from "./fold.ts";
import { flattenPath, pathReader } from "./kohya_names.ts";
import { requireHeld } from "./losses.ts";
import { type ConvertedLycoris, convertLycoris, LYCORIS_PART, type LycorisTensors, reportLycoris } from "./lycoris.ts";
import type { ReadDialectOptions, WriteDialectOptions } from "./options.ts";
import { refuseForeign } from "./refusals.ts";
import { commonest } from "./scale_config.ts";
import { readAlpha } from "./stored_alpha.ts";
import { readTensorFile, type TensorFile } from "./tensor_file.ts";

/** Default name of the file. */
const KOHYA_FILE = "lora.safetensors";
/** Key with the paths, which the names alone do not tell. */
const MODULES_KEY = "peft_modules";
const EXPECTED = '"lora_unet_<name>.lora_down.weight", "….lora_up.weight", "….alpha" or "….dora_scale"';
const KEY = /^(lora_[a-z]+\d*)_([^.]+)\.(.+)$/;
const PARTS: readonly string[] = ["lora_down.weight", "lora_up.weight", "alpha", "dora_scale"];

/**
 * Reads a file of sd-scripts. Its names are looked up in the base's list of modules; without one in the list that files
 * of {@linkcode writeKohya} carry, or among the names of the architectures that sd-scripts trains. LyCORIS modules become plain LoRA: see {@linkcode convertLycoris}.
 *
 * @param source The file.
 * @param options `modules`, `component` (the prefix, where the file has several: `"lora_te1"`), `rank` of LyCORIS modules,
 * caps and a signal.
 * @returns The adapter.
 * @throws {FormatError} If a tensor is no factor of a linear layer, or a name is that of several modules.
 * @throws {MismatchError} If a name is that of no module, a factor lacks its partner, or the component is not given.
 * @throws {LimitError} If a cap is passed.
 * @throws {NumericError} If a factor or an alpha is not finite.
 */
export async function readKohya(source: Source, options: ReadDialectOptions = {}): Promise<Adapter> {
  const file = await readTensorFile(source, options);
  const { limits } = options;
  const { component, report, keys } = chooseComponent(file, options.component);
  const pathOf = pathReader(options.modules ?? carriedModules(file), file.name);
  const pairs = new FactorPairs(file.name, { limits, kinds: { conv: true } });
  const own = keys.filter(({ prefix }) => prefix === component);
  const alphas = new Map<string, number>();
  const converted: ConvertedLycoris[] = [];
  for (const [path, group] of Map.groupBy(own, ({ name, tensor }) => pathOf(name, tensor))) {
    const tensors = new Map(group.map(({ part, tensor, stored }) => [part, { name: tensor, ...stored }] as const));
    const { alpha, lycoris } = addModule(pairs, { path, tensors, file: file.name }, options);
    if (alpha !== undefined) alphas.set(path, alpha);
    if (lycoris) converted.push(lycoris);
  }
  return await assembleAdapter({
    name: source.name,
    file: file.name,
    pairs: pairs.complete().map((pair) => ({ ...pair, alpha: alphas.get(pair.name) ?? pair.a.shape[0]! })),
    carried: readCarried(file.metadata.get(CONFIG_KEY), { file: file.name, metadata: file.metadata, limits }),
    report: [...report, ...reportLycoris(converted, file.name)],
    limits,
  });
}

interface KohyaKey {
  readonly tensor: string;
  readonly prefix: string;
  readonly name: string;
  /** End of the tensor's name. */
  readonly part: string;
  readonly stored: StoredTensor;
}

/** Adds the tensors of a module; its alpha is that of the factors added, absent where it is their rank. */
function addModule(
  pairs: FactorPairs,
  { path, tensors, file }: { readonly path: string; readonly tensors: LycorisTensors; readonly file: string },
  { rank = DEFAULT_LIMITS.rank }: ReadDialectOptions,
): { readonly alpha?: number; readonly lycoris?: ConvertedLycoris } {
  const stored = tensors.get("alpha");
  // Trainers and loaders take an alpha that is absent or 0 for the rank.
  const alpha = stored && readAlpha(stored, stored.name, file) || undefined;
  const dora = tensors.get("dora_scale");
  if (dora) pairs.add(path, "magnitude", dora.name, outputNorms(dora, dora.name, file));
  const part = [...tensors.keys()].find((part) => LYCORIS_PART.test(part));
  if (part !== undefined) {
    const lycoris = convertLycoris(tensors, { rank, module: path, file });
    const { name } = tensors.get(part)!;
    pairs.add(path, "a", name, lycoris.a);
    pairs.add(path, "b", name, lycoris.b);
    const { dimension, a } = lycoris;
    const scaling = dimension === null || alpha === undefined ? 1 : alpha / dimension;
    return { alpha: scaling * a.shape[0]!, lycoris };
  }
  const [down, up] = [tensors.get("lora_down.weight"), tensors.get("lora_up.weight")];
  if (down) pairs.add(path, "a", down.name, down);
  if (up) pairs.add(path, "b", up.name, up);
  if (stored && !down && !up) {
    const message = `Cannot read tensor ${quote(stored.name)} of ${quote(file)} without factors beside it`;
    throw new MismatchError(`${message}: expected lora_down and lora_up`, { file, tensor: stored.name });
  }
  return alpha === undefined ? {} : { alpha };
}

/** A norm for every output: (out, 1) of linear layers, (out, 1, 1, 1) of convolutions. */
function outputNorms({ dtype, shape, bytes }: StoredTensor, tensor: string, file: string): StoredTensor {
  const [outputs = 0, ...ones] = shape;
  if (ones.length > 0 && ones.every((length) => length === 1)) {
    return { dtype, bytes, shape: ones.length === 1 ? [outputs] : [1, outputs, ...ones.slice(1)] };
  }
  const message = `Cannot read tensor ${quote(tensor)} of ${quote(file)} and shape [${shape.join(", ")}]`;
  const expected = "a norm for every output; PEFT has none for inputs";
  throw new FormatError(`${message}: expected ${expected}`, {
    code: "unsupported",
    file,
    tensor,
    found: shape,
    expected,
  });
}

function chooseComponent(file: TensorFile, wanted: string | undefined) {
  const keys = Array.from(file.tensors, ([tensor, stored]): KohyaKey => {
    const [, prefix, name, part = ""] = KEY.exec(tensor) ?? [];
    const isKnown = PARTS.includes(part) || LYCORIS_PART.test(part);
    if (prefix === undefined || name === undefined || !isKnown) throw refuseForeign(tensor, file.name, EXPECTED);
    return { tensor, prefix, name, part, stored };
  });
  const prefixes = [...new Set(keys.map(({ prefix }) => prefix))];
  const { component, report } = oneComponent(file.name, prefixes, kohyaPrefix(wanted, prefixes));
  return { component, report, keys };
}

function carriedModules({ name, metadata }: TensorFile): readonly string[] | undefined {
  const text = metadata.get(MODULES_KEY);
  if (text === undefined) return undefined;
  const list: JsonValue = parseJson(text, { file: `${MODULES_KEY} of ${name}`, maxDepth: 1 });
  if (Array.isArray(list) && list.every((path) => typeof path === "string")) return list;
  const message = `Cannot read ${quote(MODULES_KEY)} of ${quote(name)}: expected a list of module paths`;
  throw new FormatError(message, { file: name, field: MODULES_KEY, expected: "a list of paths" });
}

/**
 * Writes a file that sd-scripts, ComfyUI and diffusers load. Factors stay as they are; each module has its own alpha,
 * rounded to F32, and where that would be 0, which means s = 1, the scaling goes into B.
 *
 * @param adapter LoRA or DoRA of linear layers and convolutions.
 * @param sink Where the file goes.
 * @param options `component`, the prefix; that of text encoders or `"lora_unet"`, by the paths, if absent. `file`,
 * `allowLoss`.
 * @returns What was changed.
 * @throws {MismatchError} If the adapter is more than that, and the loss is not allowed.
 * @throws {FormatError} If two modules would have one name.
 */
export async function writeKohya(
  adapter: Adapter,
  sink: Sink,
  options: WriteDialectOptions = {},
): Promise<readonly ReportLine[]> {
  const { file = KOHYA_FILE } = options;
  const held = requireHeld(adapter, { dialect: "kohya", kinds: ["linear", "conv"], parts: ["magnitude"] }, options);
  const names = held.modules.map(({ name }) => name);
  const prefix = kohyaPrefix(options.component) ??
    (names.every((name) => name.startsWith("text_model.")) ? "lora_te" : "lora_unet");
  const folded = foldScales(held.modules, fileScaling, {
    file,
    why: "Kohya's files hold alphas in F32, and one of 0 means s = 1",
  });
  const tensors = new Map<string, StoredTensor>();
  const owners = new Map<string, string>();
  for (const { name, alpha, loraA, loraB, magnitude } of folded.modules) {
    const key = `${prefix}_${flattenPath(name)}`;
    refuseTwins(key, owners.get(key), name);
    owners.set(key, name);
    tensors.set(`${key}.lora_down.weight`, loraA).set(`${key}.lora_up.weight`, loraB);
    if (magnitude) tensors.set(`${key}.dora_scale`, { ...magnitude, shape: normShape(loraA, magnitude) });
    tensors.set(`${key}.alpha`, fromFloat32(Float32Array.of(alpha), []));
  }
  const metadata = new Map([
    ["ss_network_module", "networks.lora"],
    ["ss_network_dim", String(commonest(folded.modules.map(({ rank }) => rank)))],
    ["ss_network_alpha", String(Math.fround(commonest(folded.modules.map(({ alpha }) => alpha))))],
    [MODULES_KEY, JSON.stringify(names)],
    ...await carryTexts(held.config, folded),
  ]);
  await writeFiles(sink, new Map([[file, encodeSafetensors(tensors, metadata)]]), options);
  return [...reportTrainingState(adapter), ...held.report, ...folded.report];
}

function normShape({ shape: [, , ...kernel] }: StoredTensor, { shape }: StoredTensor): readonly number[] {
  return kernel.length === 0 ? [...shape, 1] : [shape[1]!, 1, ...kernel.map(() => 1)];
}

/** The scale that an alpha in F32 gives, or 1 where it would be 0 or infinite. */
function fileScaling({ scaling, rank }: LoraModule): number {
  const alpha = Math.fround(scaling * rank);
  return alpha !== 0 && Number.isFinite(alpha) ? alpha / rank : 1;
}

function refuseTwins(key: string, twin: string | undefined, name: string): void {
  if (twin === undefined) return;
  const found = `${quote(twin)} and ${quote(name)}`;
  const message = `Cannot write modules ${found} under the one name ${quote(key)}`;
  throw new FormatError(`${message}: expected paths that differ in more than "." and "_"`, {
    code: "ambiguous-name",
    tensor: key,
    found: [twin, name],
  });
}
