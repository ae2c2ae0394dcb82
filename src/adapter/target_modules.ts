/**
 * Which modules of a base a config adapts, with PEFT's rules: to check a file against its config, and to create new
 * adapters. Loading needs none of this, the keys of the file say what is adapted.
 *
 * @module
 */

import { FormatError } from "../errors.ts";
import { compareCodePoints } from "../formats/json_writer.ts";
import type { LoraConfig } from "./lora_config.ts";
import { lastName } from "./paths.ts";
import { compilePatternKey, type MatchingWork, MAX_STEPS, Pattern, type PatternOptions } from "./pattern.ts";

/** The fields of a config that choose modules. */
export type TargetConfig = Pick<
  LoraConfig,
  "targetModules" | "excludeModules" | "layersToTransform" | "layersPattern" | "taskType" | "modulesToSave"
>;

/** What a config targets. */
export interface Targets {
  /** The adapted modules, in the order given. */
  readonly modules: readonly string[];
  /** How many of them each entry of `target_modules` names; 0 is an entry that names nothing. */
  readonly counts: ReadonlyMap<string, number>;
}

/** Last names of the output embedding, which `"all-linear"` leaves out. */
const HEADS: ReadonlySet<string> = new Set(["lm_head", "embed_out"]);
const CLASSIFIERS: ReadonlySet<string> = new Set(["score", "classifier"]);

/**
 * Lists the modules that a config targets.
 *
 * A module is excluded first (`exclude_modules`: one pattern of the whole path, or names and tails of paths; and what
 * `modules_to_save` names, with all inside it, because it is trained in full); a pattern must match the whole path; an
 * entry of a list is the path or its tail after a dot, and then only in the layers named.
 *
 * @param config The fields that choose.
 * @param modules Paths of the linear modules of the base.
 * @returns The targeted modules, and the count of each entry.
 * @throws {FormatError} If `target_modules` is null, or a pattern uses a construct outside the subset.
 * @throws {LimitError} If a pattern or a path is too long.
 *
 * @example
 * ```ts
 * import { parseLoraConfig } from "@lowrank/lora";
 * import assert from "node:assert/strict";
 *
 * const config = parseLoraConfig('{"peft_type": "LORA", "target_modules": ["q", "v"]}');
 * const targets = listTargets(config, ["layers.0.q", "layers.0.k", "layers.1.q"]);
 * assert.deepEqual(targets.modules, ["layers.0.q", "layers.1.q"]);
 * assert.deepEqual(targets.counts, new Map([["q", 2], ["v", 0]]));
 * ```
 */
export function listTargets(config: TargetConfig, modules: Iterable<string>): Targets {
  const work = { steps: MAX_STEPS };
  const isExcluded = nameTest(config.excludeModules ?? [], { field: "exclude_modules", work });
  const entriesOf = targetEntries(config, work);
  const { targetModules } = config;
  const counts = new Map(
    (typeof targetModules === "string" ? [targetModules] : targetModules ?? []).map((e) => [e, 0]),
  );
  const targeted: string[] = [];
  for (const module of modules) {
    const entries = isExcluded(module) || isWhole(module, config) ? [] : entriesOf(module);
    for (const entry of entries) counts.set(entry, counts.get(entry)! + 1);
    if (entries.length > 0) targeted.push(module);
  }
  return { modules: targeted, counts };
}

function isWhole(module: string, { modulesToSave }: TargetConfig): boolean {
  return modulesToSave?.some((name) => `.${module}.`.includes(`.${name}.`)) ?? false;
}

/** Gives the entries of `target_modules` by which a module is targeted. */
function targetEntries(config: TargetConfig, work: MatchingWork): (module: string) => readonly string[] {
  const { targetModules } = config;
  if (targetModules === null) {
    throw new FormatError(
      "Cannot list the targets of a config without target_modules: expected names of modules, or a pattern",
      {
        field: "target_modules",
        found: null,
      },
    );
  }
  if (typeof targetModules !== "string") {
    const entries = new Tails(targetModules);
    const isInLayers = layerTest(config, work);
    return (module) => {
      const tails = entries.of(module);
      return isInLayers(module) ? tails : tails.filter((tail) => tail === module);
    };
  }
  if (targetModules.toLowerCase() === "all-linear") {
    return (module) => isHead(module, config.taskType) ? [] : [targetModules];
  }
  const pattern = new Pattern(targetModules, { field: "target_modules", work });
  return (module) => pattern.fullMatch(module) ? [targetModules] : [];
}

/** Names, each of which stands for the paths that end with it after a dot. */
class Tails {
  readonly #names: ReadonlySet<string>;
  readonly #longest: number;

  constructor(names: Iterable<string>) {
    this.#names = new Set(names);
    this.#longest = Math.max(0, ...[...this.#names].map((name) => name.length));
  }

  /** The names that are the path or a tail of it, the longest first. */
  of(path: string): string[] {
    // Tails longer than every name are not even looked up: a path of dots has as many tails as characters.
    let start = Math.max(0, path.length - this.#longest);
    if (start > 0) start = path.indexOf(".", start - 1) + 1 || path.length;
    const found: string[] = [];
    for (; start < path.length; start = path.indexOf(".", start) + 1 || path.length) {
      const tail = path.slice(start);
      if (this.#names.has(tail)) found.push(tail);
    }
    return found;
  }
}

function isHead(module: string, taskType: string | null): boolean {
  const name = lastName(module);
  return HEADS.has(name) || (taskType === "SEQ_CLS" && CLASSIFIERS.has(name));
}

function nameTest(names: readonly string[] | string, options: PatternOptions): (module: string) => boolean {
  if (typeof names === "string") {
    if (names === "") return () => false;
    const pattern = new Pattern(names, options);
    return (module) => pattern.fullMatch(module);
  }
  const entries = new Tails(names);
  return (module) => entries.of(module).length > 0;
}

/**
 * The index of a layer is the first number with two names before it, or the first one after a name in
 * `layers_pattern`; it is never the last part of a path.
 */
function layerTest(config: TargetConfig, work: MatchingWork): (module: string) => boolean {
  const { layersToTransform, layersPattern } = config;
  if (layersToTransform === null || layersToTransform.length === 0) return () => true;
  const layers = new Set(layersToTransform);
  const lists = layersPattern?.map((name) => compilePatternKey(name, { field: "layers_pattern", work })) ?? [];
  return (module) => {
    const names = module.split(".");
    const index = names.findIndex((name, i) => {
      if (i === names.length - 1 || !/^[0-9]+$/.test(name)) return false;
      return lists.length === 0 ? i >= 2 : lists.some((list) => list(names.slice(0, i).join(".")));
    });
    return index >= 0 && layers.has(Number(names[index]));
  };
}

/** The value of a module under a pattern map. */
export interface PatternValue {
  /** The value of the first matching key, in sorted order, or the fallback. */
  readonly value: number;
  /** The matching keys, if they disagree. */
  readonly conflict?: readonly string[];
  /** All values of matching keys, or the fallback. */
  readonly candidates: readonly number[];
}

/**
 * Compiles `rank_pattern` or `alpha_pattern`: the first key that matches a module's path, in sorted order, gives its
 * value. PEFT saves the keys sorted, so this is the order that it sees after a reload.
 *
 * @param patterns The map.
 * @param fallback The value of modules that no key matches.
 * @param options Field and file, for error messages, and the steps that matching may take.
 * @returns The value of each module.
 * @throws {FormatError} If a key uses a construct outside the subset.
 */
export function compilePatternMap(
  patterns: ReadonlyMap<string, number>,
  fallback: number,
  options: PatternOptions,
): (module: string) => PatternValue {
  const keys = [...patterns.keys()].sort(compareCodePoints).map((key) => ({
    key,
    test: compilePatternKey(key, options),
  }));
  return (module) => {
    const matching = keys.filter(({ test }) => test(module)).map(({ key }) => key);
    if (matching.length === 0) return { value: fallback, candidates: [fallback] };
    const candidates = matching.map((key) => patterns.get(key)!);
    const value = candidates[0]!;
    return { value, candidates, ...(candidates.some((other) => other !== value) && { conflict: matching }) };
  };
}
