/**
 * Mixtures whose experts are stored one by one, as Mixtral's were before its parameters were fused, in the fused form.
 *
 * @module
 */

import type { Adapter, LoraModule } from "../adapter/adapter.ts";
import { fuseExperts, type ShapeOf } from "../adapter/expert_forms.ts";
import { MismatchError } from "../errors.ts";
import type { Checkpoint, CheckpointTensor } from "../formats/checkpoint.ts";
import { concat } from "../formats/concat.ts";
import { quote } from "../formats/quote.ts";

const EXPERT = /^(.*\blayers\.\d+)\.(?:block_sparse_moe|mlp)\.experts\.(\d+)\.(\w+)\.weight$/;
const ROUTER = /\.block_sparse_moe\.gate(?=$|\.)/;
/** What each fused parameter is made of; the gate's rows come before those of the up projection. */
const PARTS: readonly (readonly [parameter: string, leaves: readonly (readonly string[])[]])[] = [
  ["gate_up_proj", [["w1", "w3"], ["gate_proj", "up_proj"]]],
  ["down_proj", [["w2"], ["down_proj"]]],
];

/**
 * Gives a checkpoint the names and shapes of fused experts: `mlp.experts.gate_up_proj` (E, 2 out, in) and
 * `mlp.experts.down_proj` (E, out, in), and `mlp.gate` for the router.
 *
 * @param checkpoint Any checkpoint.
 * @returns A view of it; what is not whole (a missing expert, other shapes or dtypes) keeps its names. The checkpoint
 * itself where it has no single experts.
 * @throws {MismatchError} If it has a matrix, a router or a parameter twice, in two of these forms.
 */
export function fuseSingleExperts(checkpoint: Checkpoint): Checkpoint {
  const fused = new Map<string, readonly CheckpointTensor[]>();
  for (const [layer, matrices] of singleExperts(checkpoint)) {
    for (const [parameter, choices] of PARTS) {
      const leaves = choices.find(([leaf]) => matrices.has(leaf!)) ?? [];
      const experts = leaves.map((leaf) => matrices.get(leaf));
      const count = experts[0]?.size ?? 0;
      const parts = Array.from({ length: count }, (_, e) => experts.flatMap((of) => of?.get(e) ?? [])).flat();
      const isWhole = experts.every((of) => of?.size === count) && parts.length === count * leaves.length;
      if (!isWhole || !areAlike(parts)) continue;
      fused.set(`${layer}.mlp.experts.${parameter}`, parts);
    }
  }
  if (fused.size === 0) return checkpoint;
  const taken = new Set([...fused.values()].flatMap((parts) => parts.map(({ name }) => name)));
  const tensors = new Map<string, CheckpointTensor>();
  const stored = new Map<string, string>();
  for (const [own, tensor] of checkpoint.tensors) {
    if (taken.has(own)) continue;
    const name = own.replace(ROUTER, ".mlp.gate");
    const [twin, [part] = []] = [stored.get(name), fused.get(name) ?? []];
    if (twin !== undefined || part) throw refuseTwin(checkpoint, own, twin ?? part!.name);
    stored.set(name, own);
    tensors.set(name, { ...tensor, name });
  }
  for (const [name, parts] of fused) tensors.set(name, describe(name, parts));
  const read: Checkpoint["read"] = async (name, options) => {
    const [parts, tensor] = [fused.get(name), tensors.get(name)];
    if (!parts || !tensor) return await checkpoint.read(stored.get(name) ?? name, options);
    const bytes: Uint8Array[] = [];
    for (const part of parts) bytes.push((await checkpoint.read(part.name, options)).bytes);
    return { dtype: tensor.dtype, shape: tensor.shape, bytes: concat(bytes) };
  };
  return { ...checkpoint, tensors, read };
}

/** The matrices of all experts by their last name and the expert's number, layer by layer. */
function singleExperts(checkpoint: Checkpoint): Map<string, Map<string, Map<number, CheckpointTensor>>> {
  const layers = new Map<string, Map<string, Map<number, CheckpointTensor>>>();
  for (const tensor of checkpoint.tensors.values()) {
    const [, layer, expert, leaf] = EXPERT.exec(tensor.name) ?? [];
    if (layer === undefined) continue;
    const matrices = layers.get(layer) ?? new Map<string, Map<number, CheckpointTensor>>();
    const experts = matrices.get(leaf!) ?? new Map<number, CheckpointTensor>();
    const twin = experts.get(Number(expert));
    if (twin) throw refuseTwin(checkpoint, tensor.name, twin.name);
    layers.set(layer, matrices.set(leaf!, experts.set(Number(expert), tensor)));
  }
  return layers;
}

function refuseTwin({ name }: Checkpoint, tensor: string, twin: string): MismatchError {
  const message = `Cannot load ${quote(name)} with both ${quote(tensor)} and ${quote(twin)}`;
  return new MismatchError(`${message}: expected one, as they are one part of one layer`, {
    file: name,
    tensor,
    unexpected: [tensor],
  });
}

function areAlike(tensors: readonly CheckpointTensor[]): boolean {
  const [first] = tensors;
  return first?.shape.length === 2 &&
    tensors.every(({ dtype, shape }) => dtype === first.dtype && shape.join() === first.shape.join());
}

function describe(name: string, parts: readonly CheckpointTensor[]): CheckpointTensor {
  const [{ shape: [rows, columns], ...first }] = parts as readonly [CheckpointTensor];
  const perExpert = name.endsWith("gate_up_proj") ? 2 : 1;
  const shape = [parts.length / perExpert, perExpert * rows!, columns!];
  return { ...first, name, shape, length: parts.reduce((sum, { length }) => sum + length, 0) };
}

/**
 * Gives the modules of an adapter the form of fused experts.
 *
 * @param adapter The adapter.
 * @param shapeOf The shapes of the model's parameters of experts, and `[]` for any other module that it has.
 * @returns The adapter with these modules, or itself.
 */
export function withFusedExperts(
  adapter: Adapter,
  shapeOf: ShapeOf,
): Pick<Adapter, "name" | "config" | "modules"> {
  const renamed = new Map<string, LoraModule>();
  for (const [path, module] of adapter.modules) {
    const name = shapeOf(path) ? path : path.replace(ROUTER, ".mlp.gate");
    renamed.set(name, name === path ? module : { ...module, name });
  }
  const { name, config } = adapter;
  return { name, config, modules: fuseExperts(renamed, shapeOf).modules };
}
