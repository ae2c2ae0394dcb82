import type { Adapter, LoraModule } from "../adapter/adapter.ts";
import { lastName, ownerPath } from "../adapter/paths.ts";
import type { MergeDraft } from "./draft.ts";
import type { BaseTensors } from "./naming.ts";
import type { Places } from "./places.ts";
import { layoutOf } from "./weight_shape.ts";

/**
 * Tells whether square weights are stored (in, out); the shape of all others tells by itself. First the base says it: by
 * weights beside a bias, whose length is out, under the same last name or in the same block. Then the other weights of
 * the adapter do, and if they do not agree the config: PEFT corrects `fan_in_fan_out` layer by layer, so that it is
 * right for the last of them.
 *
 * @param adapter The adapter.
 * @param places Where its modules are.
 * @param draft The base.
 * @returns Whether a module's weight is stored so.
 */
export function squareOrientation(
  adapter: Adapter,
  places: Places,
  draft: MergeDraft,
): (module: LoraModule) => boolean {
  const [byLeaf, byBlock] = [new Map<string, Set<boolean>>(), new Map<string, Set<boolean>>()];
  for (const [path, turned] of turnedWeights(draft.tensors)) {
    byLeaf.set(lastName(path), (byLeaf.get(lastName(path)) ?? new Set()).add(turned));
    byBlock.set(ownerPath(path), (byBlock.get(ownerPath(path)) ?? new Set()).add(turned));
  }
  const own = new Set<boolean>();
  for (const module of places.modules.values()) {
    const tensor = places.tensorOf(module.name);
    const layout = tensor === undefined ? undefined : layoutOf(module, draft.shapeOf(tensor), false);
    if (module.kind === "linear" && layout && !layout.isSquare) own.add(layout.transposed);
  }
  return ({ name }) => {
    const agreed = [byLeaf.get(lastName(name)), byBlock.get(places.naming.toBase(ownerPath(name))), own];
    const [answer] = agreed.find((answers) => answers?.size === 1) ?? [adapter.config.fanInFanOut];
    return answer!;
  };
}

/** Whether the weights that are not square, and have a bias, are stored (in, out). */
function* turnedWeights(tensors: BaseTensors): Generator<readonly [path: string, turned: boolean]> {
  for (const [name, { shape: [rows, columns, ...more] }] of tensors) {
    const path = name.endsWith(".weight") ? name.slice(0, -".weight".length) : "";
    const out = tensors.get(`${path}.bias`)?.shape[0];
    if (out === undefined || columns === undefined || more.length > 0 || rows === columns) continue;
    if (out === rows || out === columns) yield [path, out === columns];
  }
}
