/**
 * What becomes of adapters alone: combinations, and which layers a config adapts.
 *
 * @module
 */
import { join } from "node:path";
import type { LoraModule } from "../../src/adapter/adapter.ts";
import { combineAdapters, type CombineOptions } from "../../src/adapter/combine.ts";
import { type BaseModule, createAdapter, type CreateAdapterOptions } from "../../src/adapter/create.ts";
import { saveAdapter } from "../../src/adapter/save.ts";
import { toFloat32 } from "../../src/formats/dtype.ts";
import { folder } from "../../src/fs/mod.ts";
import type { Findings } from "./findings.ts";

/** Compares a combination with add_weighted_adapter(), as updates of the weights. */
export async function checkCombined(findings: Findings): Promise<void> {
  const { names = [], weights = {}, options = {} } = findings.info;
  const adapters = [];
  for (const name of names) adapters.push({ adapter: await findings.load(name), weight: weights[name]! });
  const { combination_type, svd_rank, density, majority_sign_method } = options;
  const method = combination_type === "cat" ? "exact" : combination_type;
  const combined = await combineAdapters(adapters, {
    method,
    ...(svd_rank !== undefined && { rank: svd_rank }),
    ...(density !== undefined && { density }),
    ...(majority_sign_method !== undefined && { majoritySign: majority_sign_method }),
  } as CombineOptions);
  for (const [path, wanted] of findings.expected) {
    const module = combined.modules.get(path);
    if (!module) {
      if (wanted.values.some((value) => value !== 0)) findings.problems.push(`${path} is not combined`);
      continue;
    }
    findings.compare(path, deltaOf(module, wanted.shape), wanted, 2e-5);
  }
}

/** s B A in the layout of the weight. */
function deltaOf(module: LoraModule, shape: readonly number[]): Float64Array {
  const { loraA, loraB, rank, scaling, outFeatures, kind } = module;
  const [a, b] = [toFloat32(loraA), toFloat32(loraB)];
  const columns = a.length / rank;
  const isTurned = kind === "embedding" || (kind === "linear" && shape[0] !== outFeatures);
  const values = new Float64Array(outFeatures * columns);
  for (let o = 0; o < outFeatures; o++) {
    for (let c = 0; c < columns; c++) {
      let sum = 0;
      for (let k = 0; k < rank; k++) sum += b[o * rank + k]! * a[k * columns + c]!;
      values[isTurned ? c * outFeatures + o : o * columns + c] = scaling * sum;
    }
  }
  return values;
}

/** Compares the layers that a new adapter has with those that PEFT adapts, and their ranks and scales. */
export async function checkTargets(findings: Findings): Promise<Readonly<Record<string, readonly number[]>> | null> {
  const { config = {}, modules = [], adapted = {}, refused } = findings.info;
  const options: Record<string, unknown> = { modules: modules as unknown as BaseModule[] };
  for (const [key, value] of Object.entries(config)) {
    const name = key.replace(/_(.)/g, (_, letter: string) => letter.toUpperCase());
    options[name] = name.startsWith("layers") && !Array.isArray(value) ? [value] : value;
  }
  let own: Readonly<Record<string, readonly number[]>>;
  try {
    const adapter = await createAdapter(options as unknown as CreateAdapterOptions);
    own = Object.fromEntries([...adapter.modules].map(([path, { rank, scaling }]) => [path, [rank, scaling]]));
    if (refused === undefined) await saveAdapter(adapter, folder(join(findings.path, "saved")));
  } catch (error) {
    if (refused !== undefined) return null;
    throw error;
  }
  // A pattern may match layers that PEFT cannot adapt, and that we are not told of.
  if (refused?.includes("is not supported. Currently")) return null;
  if (refused !== undefined) {
    findings.problems.push(`PEFT refuses (${refused}), we adapt ${Object.keys(own).length} layers`);
    return null;
  }
  compareAdapted(findings, own, adapted);
  return own;
}

/** Compares layers, ranks and scales. */
export function compareAdapted(
  findings: Findings,
  own: Readonly<Record<string, readonly number[]>>,
  theirs: Readonly<Record<string, readonly number[]>>,
  label = "",
): void {
  for (const path of new Set([...Object.keys(own), ...Object.keys(theirs)])) {
    const [mine, wanted] = [own[path], theirs[path]];
    findings.compared++;
    const isSame = mine && wanted && mine[0] === wanted[0] &&
      Math.abs(mine[1]! - wanted[1]!) <= 1e-6 * Math.abs(wanted[1]!);
    if (!isSame) findings.problems.push(`${label}${path}: ours [${mine ?? "none"}], PEFT's [${wanted ?? "none"}]`);
  }
}
