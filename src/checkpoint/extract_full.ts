/**
 * What differs between two checkpoints and is no matrix: where PEFT stores it in full.
 *
 * @module
 */

import type { ReportLine } from "../adapter/adapter.ts";
import { ownerPath } from "../adapter/paths.ts";
import type { JsonValue } from "../formats/json.ts";

/** The tensors of a base, as far as they decide. */
export type TensorShapes = ReadonlyMap<string, { readonly shape: readonly number[] }>;

/** What an adapter takes in full. */
export interface FullPlan {
  /** Names of the tensors. */
  readonly tensors: readonly string[];
  /** Keys of the config that say so. */
  readonly fields: ReadonlyMap<string, JsonValue>;
  /** A line for every tensor that differs. */
  readonly report: readonly ReportLine[];
}

/**
 * Plans what is stored in full: modules of vectors (norms) by `modules_to_save`, biases of layers by `bias`. PEFT takes
 * every module whose path ends with an entry of `modules_to_save`, and every bias of the kind that `bias` names, so more
 * may be stored than differs; it is as small.
 *
 * @param tensors The base's tensors by name.
 * @param differing Those that differ and have no factors, with ‖W' − W‖ / ‖W‖.
 * @param adapted Paths of the modules that have factors.
 * @returns The plan; its report names what has no place.
 */
export function planFull(
  tensors: TensorShapes,
  differing: ReadonlyMap<string, number>,
  adapted: ReadonlySet<string>,
): FullPlan {
  const biases = [...tensors.keys()].filter((name) => isBias(name, tensors));
  const trained = biases.filter((name) => differing.has(name));
  const only = trained.every((name) => adapted.has(ownerPath(name)));
  const bias = trained.length === 0 ? "none" : only ? "lora_only" : "all";
  // "all" means the biases of norms too.
  const kept = new Set(bias === "all" ? vectorBiases(tensors) : []);
  if (bias === "lora_only") { for (const name of biases) if (adapted.has(ownerPath(name))) kept.add(name); }
  const takenBy = savedModules(tensors, adapted);
  const owners = new Set([...differing.keys()].filter((name) => !kept.has(name)).map(ownerPath));
  const entries = [...owners].map((entry) => ({ entry, taken: takenBy(entry) })).filter(({ taken }) =>
    taken.length > 0
  );
  const saved = entries.map(({ entry }) => entry);
  const whole = new Set(entries.flatMap(({ taken }) => taken));
  const full = [...tensors.keys()].filter((name) => kept.has(name) || whole.has(ownerPath(name)));
  const places = new Set(full);
  const report = [...differing].map(([module, change]): ReportLine => {
    if (!places.has(module)) {
      return { module, what: `differs by ${change.toPrecision(2)} of its size and is left out`, why: NO_PLACE };
    }
    const field = whole.has(ownerPath(module)) ? "modules_to_save" : "bias";
    return { module, what: "is stored in full", why: `${field} of the config says so` };
  });
  const fields = new Map<string, JsonValue>([["bias", bias], ["modules_to_save", saved.length > 0 ? saved : null]]);
  return { tensors: full, fields, report };
}

const NO_PLACE = "it is no matrix of a layer, and no vector that PEFT would store in full";

/** Whether a tensor is the bias of a layer with a matrix. */
function isBias(name: string, tensors: TensorShapes): boolean {
  const isVector = name.endsWith(".bias") && tensors.get(name)!.shape.length === 1;
  return isVector && (tensors.get(`${ownerPath(name)}.weight`)?.shape.length ?? 0) >= 2;
}

function vectorBiases(tensors: TensorShapes): readonly string[] {
  return [...tensors].filter(([name, { shape }]) => name.endsWith(".bias") && shape.length === 1).map(([name]) => name);
}

/** All modules that an entry of `modules_to_save` takes; none if one of them is more than vectors. */
function savedModules(tensors: TensorShapes, adapted: ReadonlySet<string>): (entry: string) => readonly string[] {
  const shapes = new Map<string, boolean>();
  for (const [name, { shape }] of tensors) {
    const owner = ownerPath(name);
    shapes.set(owner, shape.length <= 1 && !adapted.has(owner) && shapes.get(owner) !== false);
    for (let path = ownerPath(owner); path !== ""; path = ownerPath(path)) shapes.set(path, false);
  }
  return (entry) => {
    const taken = [...shapes.keys()].filter((path) => path.endsWith(entry));
    return entry !== "" && taken.every((path) => shapes.get(path)) ? taken : [];
  };
}
