/**
 * What a merge will do, settled and checked before the first byte is written.
 *
 * @module
 */

import type { Adapter, LoraModule, ReportLine } from "../adapter/adapter.ts";
import { requirePlain } from "../adapter/factors.ts";
import { isFloatTensor } from "../adapter/factor_values.ts";
import { type BaseModules, checkAgainst } from "../adapter/match.ts";
import type { WeightedAdapter } from "../adapter/weighted_adapter.ts";
import { MismatchError, NumericError } from "../errors.ts";
import type { Checkpoint, CheckpointTensor } from "../formats/checkpoint.ts";
import { quote } from "../formats/quote.ts";
import type { BaseConfig } from "./base_config.ts";

/** One ΔW = s B A that is added to a stored weight. */
export interface MergeBranch {
  /** The module with its factors. */
  readonly module: LoraModule;
  /** s times the adapter's weight. */
  readonly scaling: number;
  /** Whether the weight is stored (in, out), so that Δᵀ is added. */
  readonly transposed: boolean;
}

/** Everything a merge adds. */
export interface MergePlan {
  /** The branches of each weight that changes, by tensor name. */
  readonly targets: ReadonlyMap<string, readonly MergeBranch[]>;
  /** What was chosen on the way. */
  readonly report: readonly ReportLine[];
}

/**
 * Finds the weight of every module of every adapter.
 *
 * A checkpoint may leave out the name of the whole model before its paths ("transformer.", "bert."), or have it where
 * the adapter does not, as long as all modules of the adapter then have their place.
 *
 * @param checkpoint The base.
 * @param adapters The adapters.
 * @param base What `config.json` says.
 * @param options Whether modules that a config targets and its adapter lacks are refused.
 * @returns The branches by tensor.
 * @throws {MismatchError} If an adapter does not fit the checkpoint, or adapts a table that is tied.
 * @throws {NumericError} If a weight is not finite.
 */
export function planMerge(
  checkpoint: Checkpoint,
  adapters: readonly WeightedAdapter[],
  base: BaseConfig,
  options: { readonly strict: boolean },
): MergePlan {
  const targets = new Map<string, MergeBranch[]>();
  const report: ReportLine[] = [];
  for (const { adapter, weight = 1 } of adapters) {
    checkWeight(adapter, weight);
    requirePlain(adapter, "merge");
    const { places, line } = findPlaces(adapter, checkpoint);
    if (line) report.push(line);
    const isTransposed = orientation(adapter, places);
    for (const module of adapter.modules.values()) refuseTied(adapter, module, base);
    report.push(...checkPlaces(adapter, shapes(adapter, places, isTransposed), options.strict));
    for (const module of adapter.modules.values()) {
      const tensor = places.get(module.name)!;
      refuseDtype(tensor);
      const branch = { module, scaling: module.scaling * weight, transposed: isTransposed(module) };
      targets.set(tensor.name, [...targets.get(tensor.name) ?? [], branch]);
    }
  }
  return { targets, report };
}

type Places = ReadonlyMap<string, CheckpointTensor>;

function checkWeight(adapter: Adapter, weight: number): void {
  if (typeof weight !== "number") throw new TypeError(`Cannot merge with weight ${weight}: expected a number`);
  if (Number.isFinite(weight)) return;
  const message = `Cannot merge ${quote(adapter.name)} with weight ${weight}: expected a finite number`;
  throw new NumericError(message, { field: "weight", found: weight });
}

/** The two-dimensional weights by module path, under the first naming in which all modules have a place. */
function findPlaces(adapter: Adapter, checkpoint: Checkpoint): { places: Places; line?: ReportLine } {
  const asStored = new Map<string, CheckpointTensor>();
  for (const [name, tensor] of checkpoint.tensors) {
    if (name.endsWith(".weight") && tensor.shape.length === 2) asStored.set(name.slice(0, -".weight".length), tensor);
  }
  const hasAll = (places: Places): boolean => [...adapter.modules.keys()].every((name) => places.has(name));
  if (hasAll(asStored)) return { places: asStored };
  const first = firstName([...adapter.modules.keys()][0]!);
  const added = new Map([...asStored].map(([name, tensor]) => [`${first}.${name}`, tensor]));
  const what = `its tensors are named without "${first}."`;
  if (hasAll(added)) return { places: added, line: { module: checkpoint.name, what, why: "all modules fit so" } };
  for (const prefix of new Set([...asStored.keys()].map(firstName))) {
    const dropped = new Map<string, CheckpointTensor>();
    for (const [name, tensor] of asStored) {
      dropped.set(name.startsWith(`${prefix}.`) ? name.slice(prefix.length + 1) : name, tensor);
    }
    const what = `its tensors are named with "${prefix}." before them`;
    if (hasAll(dropped)) return { places: dropped, line: { module: checkpoint.name, what, why: "all modules fit so" } };
  }
  return { places: asStored };
}

function firstName(path: string): string {
  return path.split(".", 1)[0]!;
}

/**
 * The shape of a weight tells whether it is stored (in, out). A square one is stored as the others of the adapter are,
 * and if these do not agree, as the config says: PEFT corrects that field layer by layer.
 */
function orientation(adapter: Adapter, places: Places): (module: LoraModule) => boolean {
  const isStored = ({ name, inFeatures, outFeatures }: LoraModule, transposed: boolean): boolean => {
    const [rows, columns] = places.get(name)?.shape ?? [];
    return transposed ? rows === inFeatures && columns === outFeatures : rows === outFeatures && columns === inFeatures;
  };
  const oblong = [...adapter.modules.values()].filter(({ inFeatures, outFeatures }) => inFeatures !== outFeatures);
  const anyTransposed = oblong.some((module) => isStored(module, true));
  const anyPlain = oblong.some((module) => isStored(module, false));
  const square = anyTransposed === anyPlain ? adapter.config.fanInFanOut : anyTransposed;
  return (module) => module.inFeatures === module.outFeatures ? square : isStored(module, true);
}

/** The base's modules with their shapes `[out, in]`. */
function shapes(adapter: Adapter, places: Places, isTransposed: (module: LoraModule) => boolean): BaseModules {
  const base = new Map<string, readonly [number, number]>();
  for (const [name, { shape }] of places) {
    const [rows, columns] = shape as readonly [number, number];
    const module = adapter.modules.get(name);
    base.set(name, module && isTransposed(module) ? [columns, rows] : [rows, columns]);
  }
  return base;
}

/** A module without its place is refused in any case, a place without its module only if `strict`. */
function checkPlaces(adapter: Adapter, base: BaseModules, strict: boolean): ReportLine[] {
  const { missing, unexpected } = checkAgainst(adapter, base, { strict: false });
  if (strict || unexpected.length > 0) checkAgainst(adapter, base);
  const why = "strict is false";
  return missing.map((module) => ({
    module,
    what: `${quote(adapter.name)} targets it and has no tensors for it`,
    why,
  }));
}

function refuseTied(adapter: Adapter, module: LoraModule, base: BaseConfig): void {
  if (!base.tied || module.outFeatures !== base.vocabSize) return;
  throw new MismatchError(
    `Cannot merge module ${quote(module.name)} of ${quote(adapter.name)} into a table that the base shares between ` +
      "input embedding and head (tie_word_embeddings): it would change both; untie the base first",
    { code: "unsupported", tensor: module.name, field: "tie_word_embeddings", found: true, expected: false },
  );
}

function refuseDtype({ name, dtype, file }: CheckpointTensor): void {
  if (isFloatTensor({ dtype })) return;
  const expected = ["F32", "F16", "BF16"];
  const message = `Cannot merge into tensor ${quote(name)} of dtype ${dtype}: expected F32, F16 or BF16`;
  throw new MismatchError(message, { file, tensor: name, field: "dtype", found: dtype, expected });
}
