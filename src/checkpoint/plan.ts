/**
 * What a merge will do, settled and checked before the first byte is written.
 *
 * @module
 */

import type { Adapter, ReportLine } from "../adapter/adapter.ts";
import { type BaseModules, checkAgainst } from "../adapter/match.ts";
import { requirePublishedBase } from "../adapter/variant_fields.ts";
import type { WeightedAdapter } from "../adapter/weighted_adapter.ts";
import { MismatchError, NumericError } from "../errors.ts";
import type { Checkpoint } from "../formats/checkpoint.ts";
import { quote } from "../formats/quote.ts";
import type { BaseConfig } from "./base_config.ts";
import { MergeDraft } from "./draft.ts";
import type { MergePlan, PlanOptions } from "./merge_plan.ts";
import { squareOrientation } from "./orientation.ts";
import { planModule } from "./plan_module.ts";
import { planReplacements, planTokenRows } from "./plan_full.ts";
import { placeModules, type Places } from "./places.ts";
import { layerCopies, replicateLayers } from "./replication.ts";
import { findTied } from "./tied.ts";
import { layoutOf } from "./weight_shape.ts";

/**
 * Finds the tensor of every part of every adapter.
 *
 * @param checkpoint The base.
 * @param adapters The adapters.
 * @param base What `config.json` says.
 * @param options What is allowed.
 * @returns What becomes of each tensor that changes.
 * @throws {MismatchError} If an adapter does not fit the checkpoint, or cannot be merged at all.
 * @throws {NumericError} If a weight is not finite.
 */
export function planMerge(
  checkpoint: Checkpoint,
  adapters: readonly WeightedAdapter[],
  base: BaseConfig,
  options: PlanOptions,
): MergePlan {
  for (const { adapter, weight = 1 } of adapters) checkMergeable(adapter, weight);
  const { tensors, layers, report } = replicateLayers(checkpoint, adapters.map(({ adapter }) => adapter));
  const draft = new MergeDraft(tensors, findTied(tensors, base));
  draft.report.push(...report);
  for (const { adapter, weight = 1 } of adapters) planAdapter(draft, checkpoint, { adapter, weight }, options);
  const { targets, config } = draft.finish();
  const copies = layerCopies(tensors, targets);
  return {
    targets: new Map([...targets, ...copies]),
    omitted: new Set([...checkpoint.tensors.keys()].filter((name) => !tensors.has(name))),
    config: { ...config, ...(layers !== undefined && { layers }) },
    report: draft.report,
  };
}

function planAdapter(
  draft: MergeDraft,
  { name: folder, files }: Checkpoint,
  { adapter, weight }: Required<WeightedAdapter>,
  options: PlanOptions,
): void {
  const places = placeModules(adapter, draft);
  if (places.naming.what) {
    draft.report.push({ module: folder, what: places.naming.what, why: "all modules fit so" });
  }
  draft.report.push(...places.report);
  planReplacements(draft, adapter, places, files.at(-1)!);
  planTokenRows(draft, adapter, places);
  const square = squareOrientation(adapter, places, draft);
  const layouts = new Map([...places.modules.values()].map((module) => {
    const tensor = places.tensorOf(module.name);
    return [
      module.name,
      tensor === undefined ? undefined : layoutOf(module, draft.shapeOf(tensor), square(module)),
    ] as const;
  }));
  draft.report.push(...checkPlaces({ adapter, places, draft }, layouts, options.strict));
  for (const module of places.modules.values()) {
    const place = { tensor: places.tensorOf(module.name)!, layout: layouts.get(module.name)!, places };
    planModule(draft, { adapter, weight, module }, place, options);
  }
  const isFull = adapter.replacements.size > 0 || adapter.tokenRows.size > 0;
  if (weight !== 1 && isFull) {
    const what = `weight ${weight} scales its factors only`;
    draft.report.push({ module: adapter.name, what, why: "full tensors and token rows replace those of the base" });
  }
}

function checkMergeable(adapter: Adapter, weight: number): void {
  if (typeof weight !== "number") throw new TypeError(`Cannot merge with weight ${weight}: expected a number`);
  if (!Number.isFinite(weight)) {
    const message = `Cannot merge ${quote(adapter.name)} with weight ${weight}: expected a finite number`;
    throw new NumericError(message, { field: "weight", found: weight });
  }
  if (adapter.invocationTokens) {
    const message = `Cannot merge ${quote(adapter.name)} with alora_invocation_tokens: it acts on some tokens only`;
    throw new MismatchError(`${message}; expected another adapter, run this one unmerged`, {
      code: "unsupported",
      file: adapter.name,
      field: "alora_invocation_tokens",
      found: adapter.invocationTokens,
    });
  }
  requirePublishedBase(adapter, "merge");
}

/** A module without its place is refused in any case, a place without its module only if `strict`. */
function checkPlaces(
  { adapter, places, draft }: { readonly adapter: Adapter; readonly places: Places; readonly draft: MergeDraft },
  layouts: ReadonlyMap<string, unknown>,
  strict: boolean,
): ReportLine[] {
  const base = baseModules(places, draft, layouts);
  const { name, config } = adapter;
  const { modules } = places;
  const { missing, unexpected } = checkAgainst({ name, config, modules }, base, { strict: false });
  if (strict || unexpected.length > 0) checkAgainst({ name, config, modules }, base);
  const parameters = missingParameters(adapter, places, draft);
  if (strict && parameters.length > 0) {
    const message =
      `Cannot apply ${quote(name)} without ${parameters.length} of the parameters that its config targets: ` +
      `the base has ${quote(parameters[0]!)}, the adapter does not; expected all of them, or the option strict: false`;
    throw new MismatchError(message, {
      file: name,
      tensor: parameters[0]!,
      field: "target_parameters",
      missing: parameters,
    });
  }
  const what = `${quote(adapter.name)} targets it and has no tensors for it`;
  return [...missing, ...parameters].map((module) => ({ module, what, why: "strict is false" }));
}

/** Parameters of the base that `target_parameters` names, by whole name or tail, and the adapter lacks. */
function missingParameters({ config }: Adapter, places: Places, draft: MergeDraft): readonly string[] {
  const taken = new Set(Array.from(places.modules.keys(), (name) => places.tensorOf(name)));
  const entries = config.targetParameters ?? [];
  return [...draft.tensors.keys()].filter((name) => {
    if (taken.has(name)) return false;
    return entries.some((entry) => `.${places.naming.toAdapter(name)}`.endsWith(`.${entry}`));
  });
}

/** The base's modules with the shapes `[out, in]` of their weights, by the adapter's names. */
function baseModules(places: Places, draft: MergeDraft, layouts: ReadonlyMap<string, unknown>): BaseModules {
  const base = new Map<string, readonly [number, number]>();
  for (const [name, { shape }] of draft.tensors) {
    const own = places.naming.toAdapter(name);
    if (own.endsWith(".weight") && shape.length >= 2) base.set(own.slice(0, -".weight".length), [shape[0]!, shape[1]!]);
  }
  for (const [name, { outFeatures, inFeatures }] of places.modules) {
    if (layouts.get(name)) base.set(name, [outFeatures, inFeatures]);
  }
  return new Map([...base].filter(([name]) => !places.fused.has(name)));
}
