/**
 * Plain layers with adapters, beside PEFT's answers.
 *
 * @module
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import type { Adapter } from "../../src/adapter/adapter.ts";
import { saveAdapter } from "../../src/adapter/save.ts";
import { toPlainLora } from "../../src/adapter/to_plain.ts";
import type { Backend } from "../../src/backend.ts";
import { type StoredTensor, toFloat32 } from "../../src/formats/dtype.ts";
import { folder } from "../../src/fs/mod.ts";
import { type ConvFactors, LoraConv, type LoraConvOptions } from "../../src/lora/lora_conv.ts";
import { LoraEmbedding } from "../../src/lora/lora_embedding.ts";
import { LoraLinear } from "../../src/lora/lora_linear.ts";
import { matrixValues, transposed } from "../../src/lora/factors.ts";
import type { AdapterSelection } from "../../src/lora/selection.ts";
import { compareMerged, type Findings, type LayerInfo, mergeCase, readAll, type Wanted } from "./findings.ts";

type Weights = ReadonlyMap<string, StoredTensor>;

/** Checks one adapter over plain layers: answers, merges, and what saving it keeps. */
export async function checkLayers(backend: Backend, findings: Findings): Promise<void> {
  const adapter = await findings.load("adapter");
  await saveAdapter(adapter, folder(join(findings.path, "saved")));
  const base = await readAll(new Uint8Array(readFileSync(join(findings.path, "base", "model.safetensors"))));
  await compareLayers(backend, findings, { adapters: { a: adapter }, base, mix: "a", prefix: "adapted" });
  if (findings.info.merge !== undefined) return;
  compareMerged(findings, await mergeCase(findings, [{ adapter }], { dtype: "f32", backend }), base);
}

/** Checks several adapters over plain layers: each alone, and their sum. */
export async function checkManyLayers(backend: Backend, findings: Findings): Promise<void> {
  const { names = [], weights = {} } = findings.info;
  const base = await readAll(new Uint8Array(readFileSync(join(findings.path, "base", "model.safetensors"))));
  const adapters: Record<string, Adapter> = {};
  for (const name of names) adapters[name] = await findings.load(name);
  for (const name of names) await compareLayers(backend, findings, { adapters, base, mix: name, prefix: name });
  await compareLayers(backend, findings, { adapters, base, mix: weights, prefix: "mix" });
  if (findings.info.merge !== undefined) return;
  const weighted = names.map((name) => ({ adapter: adapters[name]!, weight: weights[name]! }));
  compareMerged(findings, await mergeCase(findings, weighted, { dtype: "f32", backend }), base);
}

interface Comparison {
  readonly adapters: Readonly<Record<string, Adapter>>;
  readonly base: Weights;
  readonly mix: AdapterSelection;
  readonly prefix: string;
}

async function compareLayers(
  backend: Backend,
  findings: Findings,
  { adapters, base, mix, prefix }: Comparison,
): Promise<void> {
  const plain: [string, Adapter][] = [];
  for (const [name, adapter] of Object.entries(adapters)) {
    plain.push([name, await toPlainLora(adapter, { weightOf: (module) => base.get(`${module}.weight`)! })]);
  }
  for (const [path, layer] of Object.entries(findings.info.layers ?? {})) {
    const isWhole = plain.some(([, { replacements, tokenRows }]) => {
      return tokenRows.has(path) || [...replacements.keys()].some((name) => name.startsWith(`${path}.`));
    });
    if (isWhole || layer.kind === "attention" || isDefective(layer, plain)) continue;
    const own = plain.filter(([, { modules }]) => modules.has(path));
    const input = findings.expected.get(`input.${path}`)!;
    const chosen = typeof mix === "string"
      ? own.some(([name]) => name === mix) ? mix : null
      : Object.fromEntries(Object.entries(mix ?? {}).filter(([name]) => own.some(([other]) => name === other)));
    const y = await runLayer(backend, { path, layer, own, base, input }, chosen as AdapterSelection);
    findings.compare(
      `${prefix} ${path} (${layer.kind})`,
      y,
      findings.expected.get(`${prefix}.${path}`),
      findings.tolerance,
    );
  }
}

/** What PEFT 0.21.2 computes otherwise than it merges: A without the base's dilation and padding, norms over groups. */
function isDefective(
  { dilation, paddingMode = "zeros", groups = 1 }: LayerInfo,
  own: readonly [string, Adapter][],
): boolean {
  const isDilated = Array.isArray(dilation) && dilation.some((step) => step !== 1);
  return isDilated || paddingMode !== "zeros" || (groups !== 1 && own.some(([, { config }]) => config.useDora));
}

interface LayerCase {
  readonly path: string;
  readonly layer: LayerInfo;
  readonly own: readonly (readonly [string, Adapter])[];
  readonly base: Weights;
  readonly input: Wanted;
}

async function runLayer(
  backend: Backend,
  { path, layer, own, base, input }: LayerCase,
  adapter: AdapterSelection,
): Promise<Float32Array> {
  const adapters = Object.fromEntries(own.map(([name, { modules }]) => [name, modules.get(path)!]));
  const weight = base.get(`${path}.weight`)!;
  const [stored, bias] = [matrix(weight, path), base.get(`${path}.bias`)];
  const shared = bias ? { bias: backend.tensor(bias.shape, toFloat32(bias)) } : {};
  if (layer.kind === "embedding") {
    const table = new LoraEmbedding(backend, { weight: backend.weight(stored), adapters });
    return await backend.read(table.forward(Uint32Array.from(input.values), { adapter }));
  }
  const x = backend.tensor(input.shape, Float32Array.from(input.values));
  if (layer.kind === "conv") {
    const { stride, padding, dilation, groups, paddingMode } = layer as unknown as LoraConvOptions;
    const factors = adapters as unknown as Readonly<Record<string, ConvFactors>>;
    const geometry = { stride, padding, dilation, groups, paddingMode } as Partial<LoraConvOptions>;
    const conv = new LoraConv(backend, { weight, ...shared, ...geometry, adapters: factors });
    return await backend.read(conv.forward(x, { adapter }));
  }
  const values = layer.kind === "conv1d" ? transposed(stored) : stored;
  const linear = new LoraLinear(backend, { weight: backend.weight(values), ...shared, adapters });
  return await backend.read(linear.forward(x, { adapter }));
}

function matrix(tensor: StoredTensor, name: string): ReturnType<typeof matrixValues> {
  const rows = tensor.shape[0]!;
  const size = tensor.shape.reduce((product, length) => product * length, 1);
  return matrixValues(name, "weight", { ...tensor, shape: [rows, size / rows] });
}
