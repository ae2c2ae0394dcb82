/**
 * Layers that one tool stores as one and another as several: q, k and v in one weight, whose rows are those of the parts.
 *
 * ```text
 * split  every part has A of the whole, and its rows of B, of the magnitude and of the bias: exact, bit for bit
 * join   equal A and s: A as it is, the rows of all B below each other, bit for bit
 *        else A's below each other and B's on the diagonal, of the summed rank: exact where all have one s
 * ```
 *
 * @module
 */

import { MismatchError } from "../../errors.ts";
import { concat } from "../../formats/concat.ts";
import { bitsPerElement, isSameTensor, type StoredTensor, toFloat32 } from "../../formats/dtype.ts";
import { quote } from "../../formats/quote.ts";
import { sizeOf } from "../../shape.ts";
import type { Adapter, LoraModule, ReportLine } from "../adapter.ts";
import { storeMatrix } from "../factors.ts";
import { assembleAdapter } from "./assemble.ts";
import { foldScales } from "./fold.ts";
import type { BaseFacts } from "./options.ts";
import { alphaOf } from "./scale_config.ts";

/** A layer and its parts, as paths with one `*` that stands for the same text in all. */
export interface FusedLayer {
  /** The whole: `"*.qkv_proj"`. */
  readonly whole: string;
  /** Its parts, in the order of their rows: `["*.q_proj", "*.k_proj", "*.v_proj"]`; a single one is renamed. */
  readonly parts: readonly string[];
  /** The parts before the last have as many rows as the layer has inputs, the last the rest; equal rows if absent. */
  readonly restLast?: boolean;
}

/** Fields of the config that name modules, which have other names now. */
const NAMING: readonly string[] = [
  ...["target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern"],
];

/**
 * Takes fused layers apart.
 *
 * @param adapter The adapter.
 * @param layers Which layers, and their parts.
 * @param facts `heads` and `kvHeads`, where three parts are q, k and v of unequal rows.
 * @returns The adapter with the parts in place of the layers; others stay.
 * @throws {MismatchError} If the rows of a layer are not those of its parts, or it is no linear layer.
 *
 * @example
 * ```ts
 * import { createAdapter, joinFused, splitFused } from "@lowrank/lora/adapters";
 * import assert from "node:assert/strict";
 *
 * const layers = [{ whole: "*.qkv_proj", parts: ["*.q_proj", "*.k_proj", "*.v_proj"] }];
 * const modules = [{ name: "0.qkv_proj", inFeatures: 4, outFeatures: 12 }];
 * const split = await splitFused(await createAdapter({ modules, targetModules: ["qkv_proj"] }), layers);
 * assert.deepEqual([...split.modules.keys()], ["0.q_proj", "0.k_proj", "0.v_proj"]);
 * const joined = await joinFused(split, layers);
 * assert.equal(joined.modules.get("0.qkv_proj")?.outFeatures, 12);
 * ```
 */
export async function splitFused(
  adapter: Adapter,
  layers: readonly FusedLayer[],
  facts: BaseFacts = {},
): Promise<Adapter> {
  const modules = [...adapter.modules.values()].flatMap((module) => {
    const found = layers.map((layer) => ({ layer, inner: matchPath(layer.whole, module.name) }))
      .find(({ inner }) => inner !== null);
    return found ? splitModule(module, { ...found.layer, inner: found.inner! }, facts) : module;
  });
  return await withModules(adapter, modules, []);
}

/**
 * Puts parts together.
 *
 * @param adapter The adapter.
 * @param layers Which layers, and their parts.
 * @returns The adapter with the layers in place of the parts; others stay. The report says which ranks grew.
 * @throws {MismatchError} If a part is missing, or the parts do not fit together.
 */
export async function joinFused(adapter: Adapter, layers: readonly FusedLayer[]): Promise<Adapter> {
  const groups = new Map<string, { readonly layer: FusedLayer | null; readonly parts: Map<string, LoraModule> }>();
  for (const module of adapter.modules.values()) {
    const place = placeOf(module.name, layers);
    const group = groups.get(place.whole) ?? { layer: place.layer, parts: new Map() };
    group.parts.set(place.part, module);
    groups.set(place.whole, group);
  }
  const report: ReportLine[] = [];
  const modules = Array.from(groups, ([name, { layer, parts }]) => {
    if (!layer) return parts.values().next().value!;
    const joined = joinModules(name, orderParts(name, layer, parts));
    if (joined.line) report.push(joined.line);
    return joined.module;
  });
  return await withModules(adapter, modules, report);
}

function placeOf(name: string, layers: readonly FusedLayer[]) {
  for (const layer of layers) {
    for (const part of layer.parts) {
      const inner = matchPath(part, name);
      if (inner !== null) return { layer, part, whole: layer.whole.replace("*", inner) };
    }
  }
  return { layer: null, part: name, whole: name };
}

/** What `*` stands for, or null. */
function matchPath(pattern: string, path: string): string | null {
  const [before = "", after = ""] = pattern.split("*");
  const fits = path.startsWith(before) && path.endsWith(after) && path.length >= before.length + after.length;
  return fits ? path.slice(before.length, path.length - after.length) : null;
}

function splitModule(
  module: LoraModule,
  { parts, inner, restLast = false }: FusedLayer & { readonly inner: string },
  facts: BaseFacts,
): LoraModule[] {
  requireLinear(module);
  const sizes = partRows(module, { count: parts.length, restLast }, facts);
  let from = 0;
  return parts.map((part, i) => {
    const [start, to] = [from, from + sizes[i]!];
    from = to;
    const { loraBias, magnitude } = module;
    return {
      ...module,
      name: part.replace("*", inner),
      outFeatures: to - start,
      loraB: rowsOf(module.loraB, start, to),
      ...(loraBias && { loraBias: rowsOf(loraBias, start, to) }),
      ...(magnitude && { magnitude: rowsOf(magnitude, start, to) }),
    };
  });
}

function partRows(
  { name, inFeatures, outFeatures }: LoraModule,
  { count, restLast }: { readonly count: number; readonly restLast: boolean },
  { heads, kvHeads = heads }: BaseFacts,
): readonly number[] {
  const width = count === 3 && heads && kvHeads ? outFeatures / (heads + 2 * kvHeads) : NaN;
  const sizes = restLast
    ? [...Array<number>(count - 1).fill(inFeatures), outFeatures - (count - 1) * inFeatures]
    : Number.isNaN(width)
    ? Array<number>(count).fill(outFeatures / count)
    : [width * heads!, width * kvHeads!, width * kvHeads!];
  if (sizes.every((size) => Number.isInteger(size) && size >= 1)) return sizes;
  const message = `Cannot split module ${quote(name)} of ${outFeatures} rows`;
  const expected = restLast
    ? `more than ${(count - 1) * inFeatures} rows`
    : `rows of ${count} parts, by the heads given`;
  throw new MismatchError(`${message}: expected ${expected}`, { tensor: name, found: outFeatures, expected });
}

function requireLinear({ name, kind }: LoraModule): void {
  if (kind === "linear") return;
  const message = `Cannot split or join module ${quote(name)} of kind ${quote(kind)}: expected a linear layer`;
  throw new MismatchError(message, { tensor: name, found: kind, expected: "linear" });
}

/** Rows of a matrix, or elements of a vector. */
function rowsOf({ dtype, shape: [, ...rest], bytes }: StoredTensor, from: number, to: number): StoredTensor {
  const width = sizeOf(rest) * bitsPerElement(dtype) / 8;
  return { dtype, shape: [to - from, ...rest], bytes: bytes.slice(from * width, to * width) };
}

function orderParts(
  name: string,
  { parts }: FusedLayer,
  found: ReadonlyMap<string, LoraModule>,
): readonly LoraModule[] {
  const missing = parts.filter((part) => !found.has(part));
  if (missing.length > 0) {
    const message = `Cannot join module ${quote(name)} without ${missing.map(quote).join(", ")}`;
    throw new MismatchError(`${message}: expected all its parts`, { tensor: name, missing });
  }
  return parts.map((part) => found.get(part)!);
}

function joinModules(
  name: string,
  parts: readonly LoraModule[],
): { readonly module: LoraModule; readonly line?: ReportLine } {
  parts.forEach(requireLinear);
  const [first] = parts as readonly [LoraModule, ...LoraModule[]];
  const other = parts.find(({ inFeatures, magnitude, loraBias }) =>
    inFeatures !== first.inFeatures || !magnitude !== !first.magnitude || !loraBias !== !first.loraBias
  );
  if (other) {
    const message = `Cannot join module ${quote(other.name)} with ${quote(first.name)}: expected as many inputs, and `;
    throw new MismatchError(`${message}a magnitude and a bias of B in all parts or in none`, { tensor: other.name });
  }
  const extras = {
    ...(first.magnitude && { magnitude: stack(parts.map(({ magnitude }) => magnitude!), name) }),
    ...(first.loraBias && { loraBias: stack(parts.map(({ loraBias }) => loraBias!), name) }),
  };
  const outFeatures = parts.reduce((sum, part) => sum + part.outFeatures, 0);
  const shares = parts.every(({ loraA, scaling }) => scaling === first.scaling && isSameTensor(loraA, first.loraA));
  if (shares) {
    const loraB = stack(parts.map(({ loraB }) => loraB), name);
    return { module: { ...first, ...extras, name, outFeatures, loraB } };
  }
  const reason = { file: name, why: "its parts had several scales, and it has one" };
  const folded = foldScales(parts, () => first.scaling || 1, reason);
  const rank = parts.reduce((sum, part) => sum + part.rank, 0);
  const loraA = stack(folded.modules.map(({ loraA }) => loraA), name);
  const loraB = diagonal(folded.modules, { rank, outFeatures, name });
  const scaling = first.scaling || 1;
  const module = { ...first, ...extras, name, rank, outFeatures, loraA, loraB, scaling, alpha: alphaOf(scaling, rank) };
  const what = `rank ${rank}, the sum of its parts`;
  const error = folded.report.reduce((most, line) => Math.max(most, line.error ?? 0), 0);
  return { module, line: { module: name, what, why: "its parts have factors A of their own", error } };
}

/** Tensors below each other: bits as they are, or F32 where types differ. */
function stack(tensors: readonly StoredTensor[], module: string): StoredTensor {
  const [first] = tensors as readonly [StoredTensor, ...StoredTensor[]];
  const shape = [tensors.reduce((sum, tensor) => sum + tensor.shape[0]!, 0), ...first.shape.slice(1)];
  if (tensors.every(({ dtype }) => dtype === first.dtype)) {
    return { dtype: first.dtype, shape, bytes: concat(tensors.map(({ bytes }) => bytes)) };
  }
  const values = Float64Array.from(tensors.flatMap((tensor) => [...toFloat32(tensor)]));
  return storeMatrix({ values }, shape, { dtype: "F32", module });
}

/** B of every part in its own rows and columns. */
function diagonal(
  parts: readonly LoraModule[],
  { rank, outFeatures, name }: { readonly rank: number; readonly outFeatures: number; readonly name: string },
): StoredTensor {
  const values = new Float64Array(outFeatures * rank);
  let [row, column] = [0, 0];
  for (const part of parts) {
    toFloat32(part.loraB).forEach((value, i) => {
      values[(row + Math.floor(i / part.rank)) * rank + column + i % part.rank] = value;
    });
    row += part.outFeatures;
    column += part.rank;
  }
  const dtypes = new Set(parts.map(({ loraB }) => loraB.dtype));
  const [only = "F32"] = dtypes;
  const dtype = dtypes.size === 1 && (only === "F16" || only === "BF16") ? only : "F32";
  return storeMatrix({ values }, [outFeatures, rank], { dtype, module: name });
}

async function withModules(
  adapter: Adapter,
  modules: readonly LoraModule[],
  report: readonly ReportLine[],
): Promise<Adapter> {
  const fields = new Map([...adapter.config.raw].filter(([field]) => !NAMING.includes(field)));
  return await assembleAdapter({
    name: adapter.name,
    file: adapter.name,
    pairs: modules.map(({ name, scaling, rank, loraA, loraB, loraBias, magnitude }) => ({
      name,
      alpha: alphaOf(scaling, rank),
      a: { name: `${name}.lora_A`, ...loraA },
      b: { name: `${name}.lora_B`, ...loraB },
      ...(loraBias && { loraBias: { name: `${name}.lora_B.bias`, ...loraBias } }),
      ...(magnitude && { magnitude: { name: `${name}.lora_magnitude_vector`, ...magnitude } }),
    })),
    fields,
    report: [...adapter.report, ...report],
  });
}
