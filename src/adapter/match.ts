import { FormatError, MismatchError } from "../errors.ts";
import { quote } from "../formats/quote.ts";
import type { Adapter, LoraModule } from "./adapter.ts";
import { listTargets } from "./target_modules.ts";

/** How an adapter fits a base. */
export interface Match {
  /** Modules that have their place. */
  readonly applied: readonly string[];
  /** Modules of the base that the config targets and the adapter lacks. */
  readonly missing: readonly string[];
  /** Modules of the adapter that the base lacks, or has in another shape. */
  readonly unexpected: readonly string[];
}

/** Options of {@linkcode checkAgainst}. */
export interface MatchOptions {
  /** False returns an incomplete match instead of throwing; true if absent. */
  readonly strict?: boolean;
}

/** Shape `[out, in]` of each linear module of a base, by path. */
export type BaseModules = ReadonlyMap<string, readonly [number, number]>;

/**
 * Checks that every module of an adapter has its place in a base, and that none which its config targets is absent: an
 * adapter is never applied in part without a word.
 *
 * @param adapter The adapter.
 * @param base The base's linear modules.
 * @param options Whether an incomplete match throws.
 * @returns The three lists.
 * @throws {MismatchError} If the match is incomplete; it carries the lists, and names the nearest module of the base.
 *
 * @example
 * ```ts
 * import { checkAgainst, loadAdapter } from "@lowrank/lora";
 * import { folder } from "@lowrank/lora/fs";
 * import assert from "node:assert/strict";
 *
 * const adapter = await loadAdapter(folder("examples/models/tiny/news"));
 * const base = new Map([["model.layers.0.self_attn.q_proj", [64, 64] as const]]);
 * assert.throws(() => checkAgainst(adapter, base), { name: "MismatchError" });
 * ```
 */
export function checkAgainst(
  adapter: Pick<Adapter, "name" | "config" | "modules">,
  base: BaseModules,
  options: MatchOptions = {},
): Match {
  const applied: string[] = [];
  const unexpected: string[] = [];
  for (const module of adapter.modules.values()) {
    (fits(module, base) ? applied : unexpected).push(module.name);
  }
  const missing = targetsOf(adapter, base).filter((name) => !adapter.modules.has(name));
  const match = { applied, missing, unexpected };
  if (options.strict === false || (missing.length === 0 && unexpected.length === 0)) return match;
  const tensor = (unexpected[0] ?? missing[0])!;
  const field = unexpected.length === 0 ? { field: "target_modules" } : {};
  throw new MismatchError(describe(adapter, base, match), { file: adapter.name, tensor, ...field, ...match });
}

function fits({ name, outFeatures, inFeatures }: LoraModule, base: BaseModules): boolean {
  const shape = base.get(name);
  return shape !== undefined && shape[0] === outFeatures && shape[1] === inFeatures;
}

/** The base's targets; none where the config does not say, or says it by a pattern that is not supported. */
function targetsOf({ config }: Pick<Adapter, "config">, base: BaseModules): readonly string[] {
  const { targetModules } = config;
  if (targetModules === null) return [];
  if (typeof targetModules === "string" && targetModules.toLowerCase() === "all-linear") return [];
  try {
    return listTargets(config, base.keys()).modules;
  } catch (error) {
    if (error instanceof FormatError) return [];
    throw error;
  }
}

function describe(
  { name, modules }: Pick<Adapter, "name" | "modules">,
  base: BaseModules,
  { missing, unexpected }: Match,
): string {
  const first = unexpected[0];
  if (first === undefined) {
    return `Cannot apply ${quote(name)} without ${missing.length} of the modules that its config targets: the base ` +
      `has ${quote(missing[0]!)}, the adapter does not; expected all of them, or the option strict: false`;
  }
  const count = `Cannot apply ${quote(name)} with ${unexpected.length} of ${modules.size} modules out of place`;
  const shape = base.get(first);
  if (shape) {
    const { outFeatures, inFeatures } = modules.get(first)!;
    return `${count}: ${quote(first)} is for a weight of shape [${outFeatures}, ${inFeatures}], the base has [${
      shape.join(", ")
    }]`;
  }
  const nearest = nearestName(first, base.keys());
  const hint = nearest === undefined ? "it has no linear module" : `the nearest is ${quote(nearest)}`;
  return `${count}: the base has no ${quote(first)}, ${hint}`;
}

/**
 * Finds the name that takes the fewest edits of characters.
 *
 * @param name The name wanted.
 * @param names The names there are.
 * @param most Edits that it may take; any number if absent.
 * @returns The nearest one, the first among equals; undefined if there are none.
 */
export function nearestName(name: string, names: Iterable<string>, most: number = Infinity): string | undefined {
  let nearest: string | undefined;
  let least = most + 1;
  for (const candidate of names) {
    const distance = editDistance(name, candidate);
    if (distance < least) [nearest, least] = [candidate, distance];
  }
  return nearest;
}

function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 0; i < a.length; i++) {
    const next = [i + 1];
    for (let j = 0; j < b.length; j++) {
      const replaced = row[j]! + (a[i] === b[j] ? 0 : 1);
      next.push(Math.min(replaced, row[j + 1]! + 1, next[j]! + 1));
    }
    row = next;
  }
  return row[b.length]!;
}
