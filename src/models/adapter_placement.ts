/**
 * Where each part of an adapter belongs in a model.
 *
 * @module
 */

import type { Adapter, LoraModule, TokenRows } from "../adapter/adapter.ts";
import { lastName, ownerPath } from "../adapter/paths.ts";
import { isBaseTable } from "../adapter/base_tables.ts";
import { checkAgainst } from "../adapter/match.ts";
import { requirePublishedBase } from "../adapter/variant_fields.ts";
import { MismatchError } from "../errors.ts";
import { type StoredTensor, toFloat32 } from "../formats/dtype.ts";
import { quote } from "../formats/quote.ts";
import { floatMatrix, matrixValues, transposed } from "../lora/factors.ts";
import { LoraEmbedding } from "../lora/lora_embedding.ts";
import { LoraExperts } from "../lora/lora_experts.ts";
import { LoraLinear } from "../lora/lora_linear.ts";
import { numbersFrom } from "../lora/rows.ts";
import type { ModelLayer, ModelLayers } from "./model_layers.ts";
import { withFusedExperts } from "./single_experts.ts";
import { splitSpare } from "./spare_parts.ts";

/** Rows of a table that are compared at once. */
const COMPARED_ROWS = 1024;

/**
 * Gives every layer what an adapter has for it; a caller whose call fails removes the adapter from all layers.
 *
 * @param layers The model's layers.
 * @param name The adapter's name in them.
 * @param whole The adapter.
 * @returns The adapter, whose report tells which parts have no effect in this model.
 * @throws {MismatchError} If a part has no place in this model. Nothing has changed then.
 */
export async function placeAdapter(layers: ModelLayers, name: string, whole: Adapter): Promise<Adapter> {
  const { used: adapter, whole: told } = splitSpare(layers, whole);
  const { modules } = checkPlaces(layers, adapter);
  for (const [path, module] of modules) placeModule(layers.byPath.get(path)!, name, module);
  for (const [tensor, values] of adapter.replacements) {
    const [path, part] = [ownerPath(tensor), lastName(tensor)];
    // A tied table that is saved beside the factors of one side is the base's, which both sides have.
    const isShared = adapter.config.ensureWeightTying || isBaseTable(adapter, tensor);
    await replacePart(layers, { name, path, part }, values, isShared);
  }
  for (const [path, rows] of adapter.tokenRows) {
    const layer = layers.byPath.get(path);
    if (layer instanceof LoraLinear) await placeHeadRows(layers, name, { head: path, ...rows });
    if (!(layer instanceof LoraEmbedding)) continue;
    const head = layers.tied?.embedding === path ? layers.tied.head : null;
    if (head !== null && !adapter.tokenRows.has(head)) await placeHeadRows(layers, name, { head, ...rows });
    layer.replaceFor(name, { rows });
  }
  if (adapter.config.ensureWeightTying) tieHead(layers, name, adapter);
  return told;
}

/** Returns the adapter's modules as the model has them. */
function checkPlaces(layers: ModelLayers, adapter: Adapter): Pick<Adapter, "modules"> {
  requirePublishedBase(adapter, "run");
  const placed = withFusedExperts(adapter, (name) => expertShape(layers.byPath.get(name)));
  checkAgainst(placed, shapesFor(layers, placed));
  for (const { name, kind } of placed.modules.values()) {
    const own = kindOf(layers.byPath.get(name)!);
    if (own === kind) continue;
    const message = `Cannot apply ${quote(adapter.name)} with ${quote(name)} as ${kind}: the base has it as ${own}`;
    throw new MismatchError(message, { file: adapter.name, tensor: name, found: kind, expected: own });
  }
  const unexpected = [...adapter.replacements.keys()].filter((tensor) => !takesPart(layers, tensor));
  unexpected.push(
    ...[...adapter.tokenRows.keys()].filter((path) => {
      const layer = layers.byPath.get(path);
      return !(layer instanceof LoraEmbedding || layer instanceof LoraLinear);
    }),
  );
  if (unexpected.length === 0) return placed;
  const message = `Cannot apply ${quote(adapter.name)} with ${quote(unexpected[0]!)}: the base has no such tensor`;
  throw new MismatchError(message, { file: adapter.name, tensor: unexpected[0]!, unexpected });
}

/** The shapes that checkAgainst compares; experts only where the adapter has them, because no target names them. */
function shapesFor(
  { byPath }: ModelLayers,
  { modules }: Pick<Adapter, "modules">,
): Map<string, readonly [number, number]> {
  const shapes = new Map<string, readonly [number, number]>();
  for (const [path, layer] of byPath) {
    if (layer instanceof LoraLinear) shapes.set(path, layer.weight.shape);
    else if (!modules.has(path)) continue;
    else if (layer instanceof LoraExperts) shapes.set(path, [layer.outFeatures, layer.inFeatures]);
    else if (layer instanceof LoraEmbedding) shapes.set(path, [layer.weight.shape[1], layer.weight.shape[0]]);
  }
  return shapes;
}

/** (E, out, in) of experts, nothing of a layer that is none; undefined without one. */
function expertShape(layer: ModelLayer | undefined): readonly number[] | undefined {
  return layer instanceof LoraExperts ? [layer.experts.length, layer.outFeatures, layer.inFeatures] : layer && [];
}

function kindOf(layer: ModelLayer): string {
  if (layer instanceof LoraLinear) return "linear";
  if (layer instanceof LoraEmbedding) return "embedding";
  return layer instanceof LoraExperts ? "experts" : "norm";
}

function placeModule(layer: ModelLayer, name: string, module: LoraModule): void {
  if (layer instanceof LoraLinear || layer instanceof LoraEmbedding || layer instanceof LoraExperts) {
    layer.addAdapter(name, module);
  }
}

function takesPart({ byPath }: ModelLayers, tensor: string): boolean {
  const [path, part] = [ownerPath(tensor), lastName(tensor)];
  const layer = byPath.get(path);
  if (layer === undefined || layer instanceof LoraExperts) return false;
  return part === "weight" || (part === "bias" && !(layer instanceof LoraEmbedding));
}

async function replacePart(
  layers: ModelLayers,
  { name, path, part }: { name: string; path: string; part: string },
  values: StoredTensor,
  tie: boolean,
): Promise<void> {
  const layer = layers.byPath.get(path)!;
  if (layer instanceof LoraExperts) return;
  if (layer instanceof LoraEmbedding) {
    // PEFT saves the whole table beside adapters of embeddings: it is nearly always the base's own.
    if (await isSameTable(layers, layer, values)) return;
    layer.replaceFor(name, { weight: values });
    const head = layers.tied?.embedding === path ? layers.byPath.get(layers.tied.head) : undefined;
    if (tie && head instanceof LoraLinear) head.replaceFor(name, { weight: values });
  } else if (layer instanceof LoraLinear && part === "weight") {
    if (tie && await isSameTable(layers, layer, values)) return;
    const table = tie && layers.tied?.head === path ? layers.byPath.get(layers.tied.embedding) : undefined;
    if (table instanceof LoraEmbedding) table.replaceFor(name, { weight: values });
    layer.replaceFor(name, { weight: layers.isTransposed(`${path}.weight`) ? turned(name, values) : values });
  } else layer.replaceFor(name, { [part]: values });
}

/** The values of a matrix stored (in, out) as (out, in). */
function turned(name: string, values: StoredTensor): StoredTensor {
  const { shape, bytes } = transposed(matrixValues(name, "weight", values));
  return { dtype: "F32", shape, bytes };
}

/**
 * Whether values are those of a table, bit for bit once they are stored as it is. While adapters are merged into the
 * table nobody knows: an adapter then keeps its own.
 */
async function isSameTable(
  { backend }: ModelLayers,
  layer: LoraEmbedding | LoraLinear,
  values: StoredTensor,
): Promise<boolean> {
  const table = layer.weight;
  if (values.shape[0] !== table.shape[0] || values.shape[1] !== table.shape[1]) return false;
  const other = backend.weight(matrixValues("", "weight", values), { dtype: table.dtype });
  try {
    for (let start = 0; start < table.shape[0]; start += COMPARED_ROWS) {
      if (layer.merged) return false;
      const ids = numbersFrom({ start, end: Math.min(start + COMPARED_ROWS, table.shape[0]) });
      const rows = [table, other].map((weight) => backend.embedding(ids, weight));
      const [ours, theirs] = await Promise.all(rows.map((tensor) => backend.read(tensor)));
      for (const tensor of rows) tensor.dispose();
      if (ours!.some((value, i) => !Object.is(value, theirs![i]))) return false;
    }
    return true;
  } finally {
    other.dispose();
  }
}

/** New rows of a head, its own or those of the tied embedding: logits += x (new − old)ᵀ in their columns, as a branch. */
async function placeHeadRows(
  { backend, byPath }: ModelLayers,
  name: string,
  { head: path, indices, rows }: { readonly head: string } & TokenRows,
): Promise<void> {
  const head = byPath.get(path) as LoraLinear;
  if (head.adapters.includes(name)) {
    const message = `Cannot apply adapter "${name}" with new token rows and factors for the head ${path}`;
    throw new MismatchError(`${message}: expected one of them`, { tensor: path });
  }
  const [vocab, dim] = head.weight.shape;
  const old = backend.embedding(Uint32Array.from(indices), head.weight);
  const before = await backend.read(old).finally(() => old.dispose());
  const difference = toFloat32(rows).map((value, i) => value - before[i]!);
  const columns = new Float32Array(vocab * indices.length);
  indices.forEach((index, i) => columns[index * indices.length + i] = 1);
  head.addAdapter(name, {
    loraA: floatMatrix([indices.length, dim], difference),
    loraB: floatMatrix([vocab, indices.length], columns),
    scaling: 1,
    isUnweighted: true,
  });
}

/** `ensure_weight_tying`: one Δ for the embedding and the head, A and B turned. */
function tieHead({ byPath, tied }: ModelLayers, name: string, { modules }: Adapter): void {
  const module = tied && modules.get(tied.embedding);
  if (!tied || !module || modules.has(tied.head)) return;
  const [loraA, loraB] = [matrixValues(name, "A", module.loraA), matrixValues(name, "B", module.loraB)];
  const head = byPath.get(tied.head) as LoraLinear;
  head.addAdapter(name, { loraA: transposed(loraB), loraB: transposed(loraA), scaling: module.scaling });
}
