import { Adapter, type ReportLine } from "../adapter/adapter.ts";
import { ownerPath } from "../adapter/paths.ts";
import type { ModelLayers } from "./model_layers.ts";

const NO_EFFECT = "it has no effect";
const NOT_COMPUTED = "the model's answer does not depend on this part of the base";

/** An adapter over a model that computes nothing of some of its parts. */
export interface SplitAdapter {
  /** What has an effect. */
  readonly used: Adapter;
  /** All of it; its report names what has none. */
  readonly whole: Adapter;
}

/**
 * Takes apart what a model computes of an adapter and what it does not, as the pooler of an encoder whose answer is the
 * last hidden state: PEFT adapts it with all other linear layers, and its output goes nowhere.
 *
 * @param layers The model's layers.
 * @param adapter The adapter.
 * @returns Both.
 */
export function splitSpare({ byPath, isSpare }: ModelLayers, adapter: Adapter): SplitAdapter {
  const isUnused = (path: string, tensor: string) => !byPath.has(path) && isSpare(tensor);
  const modules = [...adapter.modules].filter(([path]) => !isUnused(path, `${path}.weight`));
  const replacements = [...adapter.replacements].filter(([name]) => {
    return !isUnused(ownerPath(name), name);
  });
  const kept = new Set([...modules, ...replacements].map(([name]) => name));
  const unused = [...adapter.modules.keys(), ...adapter.replacements.keys()].filter((name) => !kept.has(name));
  if (unused.length === 0) return { used: adapter, whole: adapter };
  const lines = unused.map((module): ReportLine => ({ module, what: NO_EFFECT, why: NOT_COMPUTED }));
  const report = [...adapter.report.filter(({ what }) => what !== NO_EFFECT), ...lines];
  return {
    used: new Adapter({ ...adapter, modules: new Map(modules), replacements: new Map(replacements) }),
    whole: new Adapter({ ...adapter, report }),
  };
}
