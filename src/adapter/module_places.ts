/**
 * Which module of the base each path of a PEFT file stands for. PEFT puts `base_layer` into the paths of fused experts and
 * of attention that is one module, because it wraps these twice.
 *
 * @module
 */

import type { LoraConfig } from "./lora_config.ts";
import { lastName, ownerPath } from "./paths.ts";

/** Where the factors under one path of a file belong. */
export interface ModulePlace {
  /** Name of the module in an adapter. */
  readonly name: string;
  /** The path that keys of `rank_pattern` and `alpha_pattern` are matched against. */
  readonly patternPath: string;
  /** Whether the factors are those of a parameter that `target_parameters` names, with an expert in every r rows. */
  readonly isParameter: boolean;
  /** The adapted parameter if it is not the weight of a module; null if the file does not tell. */
  readonly parameter?: string | null;
  /** How many times PEFT adds the update; once if absent. */
  readonly times?: number;
}

/**
 * PEFT 0.21.2 adds the update of an attention's output projection twice, in training, inference and merging: its forward
 * makes a weight with the update and then merges the update into it again.
 */
const OUT_PROJECTION_TIMES = 2;
/** Name of the parameter of `nn.MultiheadAttention` that its own factors adapt. */
export const IN_PROJECTION = "in_proj_weight";
const WRAPPER = ".base_layer";
const OUT_PROJECTION = `${WRAPPER}.out_proj`;
const EXPERTS = /(?:^|\.)experts$/;
/** In the order in which the fused experts of transformers register them. */
const REGISTERED: readonly string[] = ["gate_up_proj", "w1", "v1", "w2", "down_proj"];

/**
 * Finds the places of all paths of a file.
 *
 * With n adapted parameters on one module, the i-th in the order of their registration, from 0, has n − 1 − i times
 * `.base_layer` after the module's path.
 *
 * @param paths The paths before `.lora_A.weight` and the like.
 * @param config The config, whose `target_parameters` name the parameters.
 * @returns The places by path, the parameters of one module in the order of their registration.
 */
export function placeModules(paths: Iterable<string>, config: LoraConfig): ReadonlyMap<string, ModulePlace> {
  const known = new Set(paths);
  const places = new Map<string, ModulePlace>();
  for (const path of known) {
    if (places.has(path)) continue;
    const levels = parameterLevels(path, known, config);
    if (levels) { for (const [level, place] of levels) places.set(level, place); }
    else places.set(path, placeOne(path, known));
  }
  return places;
}

function placeOne(path: string, known: ReadonlySet<string>): ModulePlace {
  const plain = { name: path, patternPath: path, isParameter: false };
  if (known.has(`${path}${OUT_PROJECTION}`)) {
    return { ...plain, name: `${path}.${IN_PROJECTION}`, parameter: IN_PROJECTION };
  }
  const attention = path.endsWith(OUT_PROJECTION) ? path.slice(0, -OUT_PROJECTION.length) : "";
  if (!known.has(attention)) return plain;
  return { ...plain, name: `${attention}.out_proj`, patternPath: attention, times: OUT_PROJECTION_TIMES };
}

/** The places of all parameters of the module that a path belongs to; undefined if it is no such module. */
function parameterLevels(
  path: string,
  known: ReadonlySet<string>,
  config: LoraConfig,
): readonly (readonly [string, ModulePlace])[] | undefined {
  const module = innermost(path, known);
  const levels = [module];
  while (known.has(levels[0] + WRAPPER)) levels.unshift(levels[0] + WRAPPER);
  const names = parameterNames(module, config);
  if (levels.length === 1 && names.length !== 1) return undefined;
  const isKnown = names.length === levels.length && (names.length === 1 || names.every((n) => REGISTERED.includes(n)));
  const ordered = isKnown ? names.toSorted((a, b) => REGISTERED.indexOf(a) - REGISTERED.indexOf(b)) : [];
  return levels.map((level, i) => {
    const parameter = ordered[i] ?? null;
    const name = parameter === null ? level : `${module}.${parameter}`;
    return [level, { name, patternPath: parameter === null ? module : name, isParameter: true, parameter }];
  });
}

function innermost(path: string, known: ReadonlySet<string>): string {
  let module = path;
  while (module.endsWith(WRAPPER) && known.has(module.slice(0, -WRAPPER.length))) {
    module = module.slice(0, -WRAPPER.length);
  }
  return module;
}

/**
 * The parameters of a module that the config targets: its entries are whole names, or tails of them after a dot. Where
 * PEFT turns the names of single experts into those of fused ones, an entry is a parameter's bare name, `down_proj`,
 * which any module could have: it is taken to be one of experts.
 */
function parameterNames(module: string, { targetParameters }: LoraConfig): readonly string[] {
  const names = (targetParameters ?? []).flatMap((entry) => {
    const [owner, name] = [ownerPath(entry), lastName(entry)];
    const isOwner = owner === ""
      ? REGISTERED.includes(name) && EXPERTS.test(module)
      : `.${module}`.endsWith(`.${owner}`);
    return isOwner ? [name] : [];
  });
  return [...new Set(names)];
}

/**
 * Puts the parameters of each module in the order in which transformers registers them, where it is known.
 *
 * @param parameters Parameters of any modules; their names end with what `parameter` has.
 * @returns The same in that order; a parameter that is not known keeps its place among the others.
 */
export function registeredFirst<Parameter extends { readonly name: string; readonly parameter?: string | null }>(
  parameters: readonly Parameter[],
): readonly Parameter[] {
  const owner = ({ name, parameter }: Parameter) => parameter ? ownerOf(name, parameter) : name;
  const rank = ({ parameter }: Parameter) => REGISTERED.indexOf(parameter ?? "");
  return [...Map.groupBy(parameters, owner).values()].flatMap((own) => {
    return own.some((one) => rank(one) < 0) ? own : own.toSorted((a, b) => rank(a) - rank(b));
  });
}

/**
 * Finds the paths of modules in a PEFT file: the inverse of {@linkcode placeModules}.
 *
 * @param modules The modules, the parameters of one module in the order of their registration.
 * @returns The path of each module.
 */
export function filePaths(
  modules: Iterable<{ readonly name: string; readonly kind: string; readonly parameter?: string | null }>,
): ReadonlyMap<string, string> {
  const paths = new Map<string, string>();
  const parameters = new Map<string, string[]>();
  for (const { name, kind, parameter } of modules) {
    paths.set(name, name);
    if (kind !== "experts") {
      if (parameter === IN_PROJECTION) paths.set(name, ownerOf(name, parameter));
    } else if (parameter) {
      const owner = ownerOf(name, parameter);
      parameters.set(owner, [...parameters.get(owner) ?? [], name]);
    }
  }
  for (const [owner, names] of parameters) {
    names.forEach((name, i) => paths.set(name, owner + WRAPPER.repeat(names.length - 1 - i)));
  }
  for (const name of paths.keys()) {
    const attention = name.endsWith(".out_proj") ? name.slice(0, -".out_proj".length) : "";
    if (paths.has(`${attention}.${IN_PROJECTION}`)) paths.set(name, `${attention}${OUT_PROJECTION}`);
  }
  return paths;
}

/** The path of the module that has a parameter. */
export function ownerOf(name: string, parameter: string): string {
  return name.slice(0, -parameter.length - 1);
}
