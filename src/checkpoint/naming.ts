/**
 * How the names of an adapter and those of a checkpoint correspond. A checkpoint may leave out the name of the whole model
 * before its paths ("transformer.", "bert."), or have it where the adapter does not, as long as all modules of the
 * adapter then have their place.
 *
 * @module
 */

import type { LoraModule } from "../adapter/adapter.ts";
import type { CheckpointTensor } from "../formats/checkpoint.ts";

/** The tensors of a base by name. */
export type BaseTensors = ReadonlyMap<string, CheckpointTensor>;

/** A correspondence. */
export interface Naming {
  /** The base's name of a tensor, by the adapter's. */
  toBase(name: string): string;
  /** The adapter's name of a tensor, by the base's. */
  toAdapter(name: string): string;
  /** What is remarkable about it, for a report. */
  readonly what?: string;
}

/** Name of the tensor that a module adapts, as the adapter has it; null where only the base can tell. */
export function weightName({ name, parameter }: Pick<LoraModule, "name" | "parameter">): string | null {
  return parameter === undefined ? `${name}.weight` : parameter === null ? null : name;
}

/** The namings to try, the plain one first. */
export function namings(first: string, tensors: BaseTensors): readonly Naming[] {
  const same = { toBase: (name: string) => name, toAdapter: (name: string) => name };
  const begin = `${first}.`;
  const shorter = {
    toBase: (name: string) => name.startsWith(begin) ? name.slice(begin.length) : name,
    toAdapter: (name: string) => begin + name,
    what: `its tensors are named without "${begin}"`,
  };
  const prefixes = new Set([...tensors.keys()].map((name) => `${name.split(".", 1)[0]}.`));
  const longer = [...prefixes].map((prefix) => ({
    toBase: (name: string) => tensors.has(prefix + name) ? prefix + name : name,
    toAdapter: (name: string) => name.startsWith(prefix) ? name.slice(prefix.length) : name,
    what: `its tensors are named with "${prefix}" before them`,
  }));
  return [same, shorter, ...longer];
}

const ROUTERS: readonly [RegExp, string][] = [
  [/\.mlp\.gate(?=$|\.)/, ".block_sparse_moe.gate"],
  [/\.block_sparse_moe\.gate(?=$|\.)/, ".mlp.gate"],
];

/**
 * Mixtral's router has one name beside single experts and another beside fused ones: the base may have the one, and the
 * adapter the other.
 *
 * @param naming A correspondence.
 * @param tensors The base.
 * @param modules The adapter's modules.
 * @returns The same, and that of routers.
 */
export function withRouters(naming: Naming, tensors: BaseTensors, modules: ReadonlyMap<string, unknown>): Naming {
  const turn = (name: string) => {
    const [form, other] = ROUTERS.find(([form]) => form.test(name)) ?? [/$^/, ""];
    return name.replace(form, other);
  };
  return {
    ...naming,
    toBase: (name) => {
      const [found, other] = [naming.toBase(name), naming.toBase(turn(name))];
      return tensors.has(found) || !tensors.has(other) ? found : other;
    },
    toAdapter: (name) => {
      const own = naming.toAdapter(name);
      const path = own.replace(/\.weight$/, "");
      return !modules.has(path) && modules.has(turn(path)) ? turn(own) : own;
    },
  };
}
