import type { Adapter, LoraModule, ReportLine } from "../adapter/adapter.ts";
import { fuseExperts, splitExperts } from "../adapter/expert_forms.ts";
import { ownerOf } from "../adapter/module_places.ts";
import type { MergeDraft } from "./draft.ts";
import { type Naming, namings, weightName, withRouters } from "./naming.ts";

/** Where the modules of an adapter are in a base. */
export interface Places {
  /** How names correspond. */
  readonly naming: Naming;
  /** The modules, in the form that the base has: experts fused, or one by one. */
  readonly modules: ReadonlyMap<string, LoraModule>;
  /** Modules of the adapter that are in `modules` in another form. */
  readonly fused: ReadonlySet<string>;
  /** What was chosen. */
  readonly report: readonly ReportLine[];
  /** Name of the tensor of a module; undefined if it has no place. */
  tensorOf(module: string): string | undefined;
}

/**
 * Finds the tensors of all modules, under the first naming in which all have a place.
 *
 * @param adapter The adapter.
 * @param draft The base.
 * @returns The places; those of the plain naming if there is no better one.
 */
export function placeModules(adapter: Adapter, draft: MergeDraft): Places {
  const [first = ""] = adapter.modules.keys();
  const all = namings(first.split(".", 1)[0]!, draft.tensors).map((naming) => {
    return withRouters(naming, draft.tensors, adapter.modules);
  });
  let plain: Places | undefined;
  for (const naming of all) {
    const places = placesBy(naming, adapter, draft);
    if ([...places.modules.keys()].every((name) => places.tensorOf(name) !== undefined)) return places;
    plain ??= places;
  }
  return plain!;
}

function placesBy(naming: Naming, adapter: Adapter, draft: MergeDraft): Places {
  const shapeOf = (name: string) => draft.tensors.get(naming.toBase(name))?.shape;
  const fused = fuseExperts(adapter.modules, shapeOf);
  const { modules, report } = splitExperts(fused.modules, shapeOf);
  const tensors = new Map<string, string>();
  for (const [name, module] of modules) {
    const tensor = findTensor(module, { naming, modules, draft });
    if (tensor !== undefined) tensors.set(name, tensor);
  }
  return {
    naming,
    modules,
    fused: new Set([...adapter.modules.keys()].filter((name) => !modules.has(name))),
    report: [...fused.report, ...report],
    tensorOf: (module) => tensors.get(module),
  };
}

interface Search {
  readonly naming: Naming;
  readonly modules: ReadonlyMap<string, LoraModule>;
  readonly draft: MergeDraft;
}

function findTensor(module: LoraModule, search: Search): string | undefined {
  const { naming, draft } = search;
  const name = weightName(module);
  if (name === null) return findParameter(module, search);
  const found = naming.toBase(name);
  return draft.has(found) ? found : undefined;
}

/** The one parameter of the module's owner that its factors fit and that no other module has. */
function findParameter(module: LoraModule, { naming, modules, draft }: Search): string | undefined {
  const owner = naming.toBase(module.name.replace(/(?:\.base_layer)+$/, ""));
  const taken = new Set([...modules.values()].flatMap(({ name, parameter }) => {
    return parameter ? [naming.toBase(`${ownerOf(name, parameter)}.${parameter}`)] : [];
  }));
  const fitting = [...draft.tensors.keys()].filter((name) => {
    const rest = name.slice(owner.length + 1);
    if (!name.startsWith(`${owner}.`) || rest.includes(".") || taken.has(name)) return false;
    const shape = draft.tensors.get(name)!.shape;
    const sizes = [module.outFeatures, module.inFeatures];
    const [rows, columns] = shape.slice(-2);
    const isExperts = shape.length === 3 && shape[0] === module.experts;
    return isExperts && sizes.includes(rows!) && sizes.includes(columns!) && rows! + columns! === sizes[0]! + sizes[1]!;
  });
  return fitting.length === 1 ? fitting[0] : undefined;
}
