/**
 * The first factors of embeddings, convolutions and experts, as PEFT makes them:
 *
 * ```text
 * embedding  A = 0, B normal          mica: B = the r left singular vectors of (dim, vocab) with the smallest values
 * conv       A uniform in ±1/√(in k…), or normal with variance 1/r²; B = 0
 * experts    A uniform in ±1/√in, or normal with variance 1/r²; B = 0
 * false      A and B normal (embedding), or uniform in ±1/√ of what each sums over
 * ```
 *
 * @module
 */

import { MismatchError } from "../errors.ts";
import type { StoredTensor } from "../formats/dtype.ts";
import { toFloat32 } from "../formats/dtype.ts";
import { quote } from "../formats/quote.ts";
import { formatShape, sizeOf } from "../shape.ts";
import type { LoraModule } from "./adapter.ts";
import type { ModuleValues, NewModule } from "./create_module.ts";
import { minorVectors } from "./inits.ts";
import { transpose } from "./linear_algebra.ts";
import type { LoraConfig } from "./lora_config.ts";
import { RandomStream } from "./random.ts";

/** What is made of such a layer. */
export type FirstFactors = Pick<LoraModule, "loraA" | "loraB" | "loraBias" | "magnitude">;

const TABLE_INITS = /^(?:true|false|gaussian|orthogonal|mica|pissa|pissa_niter_[0-9]+|olora)$/;
const PLAIN_INITS = /^(?:true|false|gaussian)$/;

/**
 * Makes the first factors of a layer that is not linear, in F32.
 *
 * @param sizes What it is.
 * @param config The config of the adapter.
 * @param values What its values come from.
 * @returns The factors.
 * @throws {MismatchError} If PEFT has no such factors for this kind, or the weight is missing or of another shape.
 */
export async function otherFactors(sizes: NewModule, config: LoraConfig, values: ModuleValues): Promise<FirstFactors> {
  const { init = true } = values;
  checkKind(sizes, config, init);
  const needsWeight = config.useDora || (init === "mica" && sizes.kind === "embedding");
  const weight = needsWeight ? await weightFor(sizes, config, values) : null;
  const random = new RandomStream(values.seed, sizes.name);
  const factors = sizes.kind === "embedding"
    ? embeddingFactors(sizes, init, weight, random)
    : uniformFactors(sizes, init, random);
  return {
    ...factors,
    ...(config.loraBias && { loraBias: firstBias(sizes, init, random) }),
    ...(config.useDora && { magnitude: magnitudeOf(sizes, weight!) }),
  };
}

/** Refuses what PEFT refuses, by field. */
function checkKind({ name, kind, rank, groups = 1 }: NewModule, config: LoraConfig, init: ModuleValues["init"]): void {
  const isTable = kind === "embedding";
  const inits = isTable ? TABLE_INITS : PLAIN_INITS;
  const rules: readonly (readonly [field: string, found: unknown, isRefused: boolean, expected: string])[] = [
    ["init", init, !inits.test(String(init)), isTable ? "another one" : 'true, false or "gaussian"'],
    ["loraBias", true, config.loraBias && kind !== "conv", "false"],
    ["useDora", true, config.useDora && (kind === "experts" || init === false), "false"],
    ["loraDropout", config.loraDropout, config.loraDropout > 0 && kind === "experts", "0"],
    ["fanInFanOut", true, config.fanInFanOut && kind === "experts", "false"],
    ["r", rank, rank % groups !== 0, `a multiple of its ${groups} groups`],
  ];
  for (const [field, found, isRefused, expected] of rules) {
    if (!isRefused) continue;
    const message = `Cannot create ${quote(name)}, a module of kind ${kind}, with ${field} ${quote(String(found))}`;
    throw new MismatchError(`${message}: expected ${expected}`, { tensor: name, field, found, expected });
  }
}

async function weightFor(sizes: NewModule, { useDora }: LoraConfig, { weightOf }: ModuleValues): Promise<StoredTensor> {
  const { name, kind, inFeatures, outFeatures, kernel = [], groups = 1 } = sizes;
  const field = useDora ? "useDora" : "init";
  const weight = await weightOf?.(name);
  if (!weight) {
    const message = `Cannot create ${quote(name)} with ${field} without its weight: expected weightOf`;
    throw new MismatchError(message, { tensor: name, field, expected: "weightOf" });
  }
  const expected = kind === "embedding" ? [inFeatures, outFeatures] : [outFeatures, inFeatures / groups, ...kernel];
  if (weight.shape.join() === expected.join()) return weight;
  const message = `Cannot read the weight of ${quote(name)} of shape ${formatShape(weight.shape)}`;
  throw new MismatchError(`${message}: expected ${formatShape(expected)}`, {
    tensor: name,
    found: weight.shape,
    expected,
  });
}

function embeddingFactors(
  { name, rank, inFeatures, outFeatures }: NewModule,
  init: ModuleValues["init"],
  weight: StoredTensor | null,
  random: RandomStream,
): FirstFactors {
  const normal = () => random.normal();
  const loraA = filled([rank, inFeatures], init === false ? normal : () => 0);
  if (init !== "mica") return { loraA, loraB: filled([outFeatures, rank], normal) };
  const table = { rows: inFeatures, columns: outFeatures, values: Float64Array.from(toFloat32(weight!)) };
  const b = transpose(minorVectors(transpose(table), { name, rank }));
  return { loraA, loraB: { ...filled([outFeatures, rank], () => 0), bytes: bytesOf(b.values) } };
}

function uniformFactors(sizes: NewModule, init: ModuleValues["init"], random: RandomStream): FirstFactors {
  const { rank, inFeatures, outFeatures, kernel = [], groups = 1, experts = 1 } = sizes;
  const spread = (width: number) => {
    const bound = 1 / Math.sqrt(width);
    return () => bound * (2 * random.uniform() - 1);
  };
  const a = init === "gaussian" ? () => random.normal() / rank : spread(inFeatures * sizeOf(kernel));
  const columns = rank * experts / groups;
  return {
    loraA: filled([rank * experts, inFeatures, ...kernel], a),
    loraB: filled([outFeatures, columns, ...kernel.map(() => 1)], init === false ? spread(columns) : () => 0),
  };
}

function firstBias({ rank, groups = 1, outFeatures }: NewModule, init: unknown, random: RandomStream): StoredTensor {
  const bound = init === false ? 1 / Math.sqrt(rank / groups) : 0;
  return filled([outFeatures], () => bound * (2 * random.uniform() - 1));
}

/** ‖W‖ by column of a table, by filter of a convolution: ΔW is zero still. */
function magnitudeOf({ kind, outFeatures, kernel = [] }: NewModule, weight: StoredTensor): StoredTensor {
  const values = toFloat32(weight);
  const squares = new Float64Array(outFeatures);
  const each = values.length / outFeatures;
  values.forEach((value, i) =>
    squares[kind === "embedding" ? i % outFeatures : Math.floor(i / each)]! += value * value
  );
  const shape = kind === "embedding" ? [outFeatures] : [1, outFeatures, ...kernel.map(() => 1)];
  return { dtype: "F32", shape, bytes: bytesOf(squares.map(Math.sqrt)) };
}

function filled(shape: readonly number[], next: () => number): StoredTensor {
  const values = new Float32Array(sizeOf(shape));
  for (let i = 0; i < values.length; i++) values[i] = next();
  return { dtype: "F32", shape, bytes: new Uint8Array(values.buffer) };
}

function bytesOf(values: Float64Array): Uint8Array {
  return new Uint8Array(Float32Array.from(values).buffer);
}
