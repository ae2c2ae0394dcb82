/**
 * diffusers: `pytorch_lora_weights.safetensors` with one adapter per part of the pipeline under its prefix, and the PEFT
 * config of each in the header.
 *
 * @module
 */

import { FormatError } from "../../errors.ts";
import type { StoredTensor } from "../../formats/dtype.ts";
import { type JsonValue, parseJson } from "../../formats/json.ts";
import { stringifyJson } from "../../formats/json_writer.ts";
import { quote } from "../../formats/quote.ts";
import { encodeSafetensors } from "../../formats/safetensors_writer.ts";
import type { Sink, Source } from "../../formats/source.ts";
import { writeFiles } from "../../formats/write_files.ts";
import type { Adapter, LoraModule, ReportLine } from "../adapter.ts";
import { CONFIG_DEFAULTS } from "../config_defaults.ts";
import { type LoraConfig, readLoraConfig } from "../lora_config.ts";
import { assembleAdapter, reportTrainingState } from "./assemble.ts";
import { diffusersComponent, oneComponent } from "./component.ts";
import { guessComponent, parseDiffusersKey } from "./diffusers_names.ts";
import { FactorPairs } from "./factor_pairs.ts";
import { type Holds, requireHeld } from "./losses.ts";
import type { ReadDialectOptions, WriteDialectOptions } from "./options.ts";
import { refuseForeign } from "./refusals.ts";
import { readAlpha } from "./stored_alpha.ts";
import { readTensorFile, type TensorFile } from "./tensor_file.ts";

/** Default name of the file. */
const DIFFUSERS_FILE = "pytorch_lora_weights.safetensors";
/** Key of the header's metadata with the configs, their fields prefixed by component. */
const CONFIG_KEY = "lora_adapter_metadata";
const HOLDS: Holds = { dialect: "diffusers", kinds: ["linear", "conv"], parts: ["magnitude", "loraBias"] };
const EXPECTED = '"<component>.<path>.lora_A.weight" and its older forms, with components such as "unet"';

/**
 * Reads a LoRA file of diffusers, of any age. The config in the header decides the scales; without one a module's
 * `.alpha` does, and without that s = 1.
 *
 * @param source The file.
 * @param options `component`, where the file has several; `modules`, caps and a signal.
 * @returns The adapter of one component.
 * @throws {FormatError} If a tensor is no factor of a linear layer.
 * @throws {MismatchError} If a factor lacks its partner, a rank differs from the config's, or the component is not given.
 * @throws {LimitError} If a cap is passed.
 * @throws {NumericError} If a factor or an alpha is not finite.
 */
export async function readDiffusers(source: Source, options: ReadDialectOptions = {}): Promise<Adapter> {
  const file = await readTensorFile(source, options);
  const { limits, modules } = options;
  const keys = Array.from(file.tensors, ([tensor, stored]) => {
    const key = parseDiffusersKey(tensor);
    if (key === null) throw refuseForeign(tensor, file.name, EXPECTED);
    return { ...key, tensor, stored };
  });
  const components = [...new Set(keys.map(({ component }) => component))];
  const { component, report } = oneComponent(file.name, components, diffusersComponent(options.component));
  const pairs = new FactorPairs(file.name, { modules, limits, kinds: { conv: true } });
  const alphas = new Map<string, number>();
  for (const { path, part, tensor, stored } of keys.filter((key) => key.component === component)) {
    if (part === "alpha") alphas.set(path, readAlpha(stored, tensor, file.name));
    else pairs.add(path, part, tensor, stored);
  }
  return await assembleAdapter({
    name: source.name,
    file: file.name,
    pairs: pairs.complete().map((pair) => ({ ...pair, alpha: alphas.get(pair.name) ?? pair.a.shape[0]! })),
    config: headerConfig(file, component, options),
    report,
    limits,
  });
}

function headerConfig(file: TensorFile, component: string, { limits }: ReadDialectOptions): LoraConfig | null {
  const text = file.metadata.get(CONFIG_KEY);
  if (text === undefined) return null;
  const name = `${CONFIG_KEY} of ${file.name}`;
  const all = parseJson(text, { file: name, maxDepth: 16, keepNumberText: true });
  if (!(all instanceof Map)) {
    const message = `Cannot read ${quote(CONFIG_KEY)} of ${quote(file.name)}: expected a JSON object`;
    throw new FormatError(message, { file: file.name, field: CONFIG_KEY, expected: "object" });
  }
  const prefix = `${component}.`;
  const raw = new Map<string, JsonValue>();
  for (const [key, value] of all) if (key.startsWith(prefix)) raw.set(key.slice(prefix.length), value);
  if (raw.size === 0) return null;
  if (!raw.has("peft_type")) raw.set("peft_type", "LORA");
  return readLoraConfig(raw, { file: name, ...(limits && { limits }) });
}

/**
 * Writes a file that diffusers loads, for one component; its header carries the PEFT config, so nothing is folded.
 *
 * @param adapter LoRA or DoRA of linear layers and convolutions.
 * @param sink Where the file goes.
 * @param options `component`: `"unet"`, `"transformer"`, `"text_encoder"`; guessed by the paths if absent. `file`,
 * `allowLoss`.
 * @returns What a reader should know.
 * @throws {MismatchError} If the adapter is more than that, and the loss is not allowed.
 */
export async function writeDiffusers(
  adapter: Adapter,
  sink: Sink,
  options: WriteDialectOptions = {},
): Promise<readonly ReportLine[]> {
  const { file = DIFFUSERS_FILE } = options;
  const held = requireHeld(adapter, HOLDS, options);
  const component = diffusersComponent(options.component) ?? guessComponent(held.modules.map(({ name }) => name));
  const tensors = new Map<string, StoredTensor>();
  for (const { name, loraA, loraB, loraBias, magnitude } of held.modules) {
    const path = `${component}.${name}`;
    tensors.set(`${path}.lora_A.weight`, loraA).set(`${path}.lora_B.weight`, loraB);
    if (loraBias) tensors.set(`${path}.lora_B.bias`, loraBias);
    if (magnitude) tensors.set(`${path}.lora_magnitude_vector`, magnitude);
  }
  const unnamed = [...tensors.keys()].find((tensor) => parseDiffusersKey(tensor) === null);
  if (unnamed !== undefined) throw refuseForeign(unnamed, file, EXPECTED);
  const config = new Map([...CONFIG_DEFAULTS, ...held.config.raw]);
  const prefixed = new Map(Array.from(config, ([key, value]) => [`${component}.${key}`, value]));
  const metadata = new Map([["format", "pt"], [CONFIG_KEY, stringifyJson(prefixed, { indent: 2, sortKeys: true })]]);
  await writeFiles(sink, new Map([[file, encodeSafetensors(tensors, metadata)]]), options);
  return [...reportTrainingState(adapter), ...held.report, ...reportScale(held.modules, file)];
}

function reportScale(modules: readonly LoraModule[], file: string): readonly ReportLine[] {
  const count = modules.filter(({ scaling }) => scaling !== 1).length;
  if (count === 0) return [];
  const why = "diffusers that do not know it take s = 1";
  return [{ module: file, what: `the scaling of ${count} modules is in the header's ${CONFIG_KEY} only`, why }];
}
