import type { Adapter, LoraModule } from "../adapter/adapter.ts";
import { IN_PROJECTION } from "../adapter/module_places.ts";
import { ownerPath } from "../adapter/paths.ts";
import { MismatchError } from "../errors.ts";
import { bitsPerElement, type StoredTensor, toFloat32 } from "../formats/dtype.ts";
import { quote } from "../formats/quote.ts";
import type { MergeDraft } from "./draft.ts";
import type { PlanOptions } from "./merge_plan.ts";
import type { Places } from "./places.ts";
import { followers } from "./plan_full.ts";
import type { WeightLayout } from "./weight_shape.ts";

/** One module of an adapter that is merged with a weight. */
export interface WeightedModule {
  /** The adapter. */
  readonly adapter: Adapter;
  /** The module. */
  readonly module: LoraModule;
  /** The adapter's weight. */
  readonly weight: number;
}

/** Where it goes. */
export interface ModuleTensor {
  /** Name of its tensor in the base. */
  readonly tensor: string;
  /** How ΔW lies there. */
  readonly layout: WeightLayout;
  /** The places of all modules. */
  readonly places: Places;
}

/**
 * Plans ΔW of one module, and the bias of its B.
 *
 * @throws {MismatchError} If it cannot be merged as the options are, or its tied table cannot be untied.
 */
export function planModule(
  draft: MergeDraft,
  { adapter, module, weight }: WeightedModule,
  { tensor, layout, places }: ModuleTensor,
  options: PlanOptions,
): void {
  const { tied } = draft;
  if (tied && tensor === tied.head && isTwin(adapter, module, places, tied.table)) {
    const what = "its factors are those of the input embedding";
    draft.report.push({ module: module.name, what, why: "the table stays tied, and gets them once" });
    return;
  }
  if (layout.groups !== undefined && !options.expandGroups) throw refuseGroups(adapter, module, layout.groups);
  if (module.magnitude && draft.hasSteps(biasOf(draft, module, { tensor, places }))) throw refuseBias(adapter, module);
  const scaling = module.scaling * weight;
  const step = { kind: "branch", module, scaling, transposed: layout.transposed } as const;
  const isAlone = !adapter.config.ensureWeightTying;
  const names = followers(draft, tensor, { isAlone, module: module.name, adapter });
  for (const name of names) draft.addStep(name, step, layout);
  if (layout.groups !== undefined) {
    const what = `its ${layout.groups} groups are gone: the weight has the shape [${layout.shape!.join(", ")}]`;
    draft.report.push({ module: module.name, what, why: "Δ is dense across groups; set groups to 1 in the model" });
    const why = "PEFT 0.21.2 takes them of a product that is not the update";
    if (module.magnitude) draft.report.push({ module: module.name, what: "its norms are those of W + ΔW", why });
  }
  if (module.loraBias) planBias(draft, { adapter, module, weight }, { tensor, places });
}

/** y += s b_B is a change of the bias, which a base without one gets. */
function planBias(
  draft: MergeDraft,
  { module, weight }: WeightedModule,
  { tensor, places }: Pick<ModuleTensor, "tensor" | "places">,
): void {
  const values = module.loraBias!;
  if (module.parameter === IN_PROJECTION) {
    const why = "PEFT 0.21.2 adds the updates of weights alone to an attention that is one module";
    draft.report.push({ module: module.name, what: "its bias of B has no effect", why });
    return;
  }
  const bias = biasOf(draft, module, { tensor, places });
  if (!draft.has(bias)) {
    const dtype = draft.dtypeOf(tensor);
    const bytes = new Uint8Array(values.shape[0]! * bitsPerElement(dtype) / 8);
    draft.add(bias, { file: draft.fileOf(tensor), values: { dtype, shape: values.shape, bytes } });
    const why = "lora_bias is one: loaders take it only where the model's config asks for a bias of this layer";
    draft.report.push({ module: bias, what: "the base has no such bias: it is added", why });
  }
  // The output projection's update counts twice, its bias once.
  const times = places.modules.has(`${ownerPath(module.name)}.${IN_PROJECTION}`) ? 2 : 1;
  draft.addStep(bias, { kind: "vector", values, factor: module.scaling * weight / times });
}

/** Name of the bias beside a module's weight. */
function biasOf(
  draft: MergeDraft,
  { name }: LoraModule,
  { tensor, places }: Pick<ModuleTensor, "tensor" | "places">,
): string {
  const bias = places.naming.toBase(`${name}.bias`);
  return draft.has(bias) ? bias : tensor.replace(/weight$/, "bias");
}

/** With ensure_weight_tying, the head has A = B of the embedding, transposed, and B = its A. */
function isTwin({ config }: Adapter, head: LoraModule, places: Places, table: string): boolean {
  if (!config.ensureWeightTying) return false;
  const embedding = [...places.modules.values()].find(({ name }) => places.tensorOf(name) === table);
  if (embedding?.kind !== "embedding") return false;
  if (isTransposed(head.loraA, embedding.loraB) && isTransposed(head.loraB, embedding.loraA)) return true;
  const message =
    `Cannot merge ${quote(head.name)} into a tied table: with ensure_weight_tying its factors are those of ` +
    `${
      quote(embedding.name)
    }, transposed, and these differ; expected ensure_weight_tying false, by which both are merged into tables of their own`;
  throw new MismatchError(message, { tensor: head.name, field: "ensure_weight_tying" });
}

function isTransposed(a: StoredTensor, b: StoredTensor): boolean {
  const [rows, columns] = a.shape as readonly [number, number];
  if (b.shape[0] !== columns || b.shape[1] !== rows) return false;
  const [x, y] = [toFloat32(a), toFloat32(b)];
  return x.every((value, i) => value === y[(i % columns) * rows + Math.floor(i / columns)]);
}

function refuseGroups(adapter: Adapter, module: LoraModule, groups: number): MismatchError {
  const message =
    `Cannot merge ${quote(module.name)} of ${quote(adapter.name)} into a convolution with ${groups} groups: ` +
    "its update is dense across groups; expected expandGroups (--expand-groups), which writes the weight without groups";
  return new MismatchError(message, { code: "unsupported", tensor: module.name, field: "groups", found: groups });
}

/** The live layer multiplies what came before by DoRA's gain, biases of B too, and PEFT's own merge does not. */
function refuseBias(adapter: Adapter, module: LoraModule): MismatchError {
  const message = `Cannot merge ${quote(module.name)} of ${quote(adapter.name)} with DoRA over a bias of B ` +
    "(lora_bias) of another adapter: beside each other its gain would act on that bias; " +
    "expected the adapter with DoRA before the other";
  return new MismatchError(message, { code: "unsupported", tensor: module.name, field: "lora_bias", found: true });
}
