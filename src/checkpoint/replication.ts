import type { Adapter, ReportLine } from "../adapter/adapter.ts";
import { LimitError, MismatchError } from "../errors.ts";
import type { Checkpoint, CheckpointTensor } from "../formats/checkpoint.ts";
import { quote } from "../formats/quote.ts";
import type { MergeTarget } from "./merge_plan.ts";
import type { BaseTensors } from "./naming.ts";

/** A base with its layers as adapters see them. */
export interface ReplicatedLayers {
  /** The tensors by name in the output. */
  readonly tensors: BaseTensors;
  /** The base's layer that each layer is, where they are replicated. */
  readonly layers?: readonly number[];
  /** What was done. */
  readonly report: readonly ReportLine[];
}

/** The tensors of each layer, with what follows its number in their names. */
type Layers = Map<number, [string, CheckpointTensor][]>;

/** More than any model has, by an order: a config from elsewhere decides it. */
const MAX_LAYERS = 4096;
const LAYER = /^(.*(?:^|\.)(?:layers|layer|h|blocks))\.(\d+)\.(.+)$/;

/**
 * Writes out the layers that `layer_replication` shares: each copy is a layer of its own, with an update of its own.
 *
 * @param checkpoint The base.
 * @param adapters The adapters, which must agree.
 * @returns The layers; those of the base where no adapter replicates any.
 * @throws {MismatchError} If the adapters disagree, or the base has not such layers.
 * @throws {LimitError} If there would be more than 4096 layers.
 */
export function replicateLayers(checkpoint: Checkpoint, adapters: readonly Adapter[]): ReplicatedLayers {
  const all = adapters.map(({ config }) => config.layerReplication);
  const ranges = all.find((one) => one !== null);
  if (!ranges) return { tensors: checkpoint.tensors, report: [] };
  const refuse = (what: string): MismatchError =>
    new MismatchError(
      `Cannot merge into ${quote(checkpoint.name)} with layer_replication ${JSON.stringify(ranges)}: ${what}`,
      {
        field: "layer_replication",
        found: ranges,
      },
    );
  if (all.some((one) => JSON.stringify(one) !== JSON.stringify(ranges))) {
    throw refuse("expected the same of all adapters");
  }
  const lists = layerLists(checkpoint.tensors);
  const [[list, layers] = ["", new Map() as Layers]] = lists;
  if (lists.size !== 1) throw refuse(`expected one list of layers, the base has ${lists.size}`);
  for (const range of ranges) {
    const absent = absentLayer(range, layers);
    if (absent !== undefined) throw refuse(`expected ranges of its layers, it has no layer ${absent}`);
  }
  checkCount(checkpoint.name, ranges);
  const order = ranges.flatMap(([start, end]) => Array.from({ length: end - start }, (_, i) => start + i));
  const tensors = new Map([...checkpoint.tensors].filter(([name]) => !LAYER.test(name)));
  order.forEach((from, to) =>
    layers.get(from)!.forEach(([rest, tensor]) => tensors.set(`${list}.${to}.${rest}`, tensor))
  );
  const what = `its ${layers.size} layers become ${order.length}: ${order.join(" ")}`;
  const report = [{
    module: list,
    what,
    why: "layer_replication; copies are layers of their own, with their own updates",
  }];
  return { tensors, layers: order, report };
}

/** The lists of layers, such as `model.layers`, by name. */
function layerLists(tensors: BaseTensors): Map<string, Layers> {
  const lists = new Map<string, Layers>();
  for (const [name, tensor] of tensors) {
    const [, list, index, rest] = LAYER.exec(name) ?? [];
    if (list === undefined) continue;
    const layers: Layers = lists.get(list) ?? new Map();
    lists.set(list, layers.set(Number(index), [...layers.get(Number(index)) ?? [], [rest!, tensor]]));
  }
  return lists;
}

/** The first layer of a range that the base lacks; found after as many steps as the base has layers, at most. */
function absentLayer(
  [start, end]: readonly [number, number],
  layers: ReadonlyMap<number, unknown>,
): number | undefined {
  let index = start;
  while (index < end && layers.has(index)) index++;
  return index < end ? index : undefined;
}

function checkCount(base: string, ranges: readonly (readonly [number, number])[]): void {
  const value = ranges.reduce((sum, [start, end]) => sum + end - start, 0);
  if (value <= MAX_LAYERS) return;
  throw new LimitError(
    `Cannot merge into ${quote(base)} with layer_replication to ${value} layers: expected at most ${MAX_LAYERS}`,
    { field: "layer_replication", limit: MAX_LAYERS, value },
  );
}

/** The tensors that are copies under another name. */
export function layerCopies(
  tensors: BaseTensors,
  targets: ReadonlyMap<string, MergeTarget>,
): (readonly [string, MergeTarget])[] {
  return [...tensors].flatMap(([name, tensor]) => {
    if (tensor.name === name || targets.has(name)) return [];
    const { file, dtype, shape } = tensor;
    const source = { source: tensor, values: null, file, dtype, shape };
    return [[name, { ...source, columns: 1, groups: 1, rows: [], steps: [] }] as const];
  });
}
