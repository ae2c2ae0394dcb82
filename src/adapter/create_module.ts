import { MismatchError } from "../errors.ts";
import type { StoredTensor } from "../formats/dtype.ts";
import { quote } from "../formats/quote.ts";
import type { LoraModule } from "./adapter.ts";
import type { FirstFactors } from "./create_kinds.ts";
import { firstValues, type InitName } from "./inits.ts";
import { dot, type Matrix, multiply, rowOf, scale, sum, transpose, zeros } from "./linear_algebra.ts";
import type { LoraConfig } from "./lora_config.ts";
import { RandomStream } from "./random.ts";
import type { Factors } from "./svd.ts";
import { readWeight } from "./weight_matrix.ts";

/** The kind, the sizes and the scale of a new module. */
export interface NewModule
  extends
    Pick<LoraModule, "name" | "kind" | "rank" | "alpha" | "scaling" | "inFeatures" | "outFeatures">,
    Pick<LoraModule, "experts" | "parameter"> {
  /** Lengths of a convolution's kernel. */
  readonly kernel?: readonly number[];
  /** Groups of a convolution. */
  readonly groups?: number;
}

/** What its values come from. */
export interface ModuleValues {
  /** The initialisation; true if absent. */
  readonly init?: boolean | InitName | "eva";
  /** The seed. */
  readonly seed: number;
  /** A of EVA. */
  readonly direction?: Matrix | undefined;
  /** The weight of a module as the base stores it. */
  readonly weightOf?: (module: string) => StoredTensor | Promise<StoredTensor>;
  /** Bits of LoftQ's base; 4 if absent. */
  readonly loftqBits?: 4 | 8;
  /** Iterations of LoftQ; 1 if absent. */
  readonly loftqIterations?: number;
  /** Is given the weight over which the module begins, if it is another. */
  readonly onBase?: (module: string, weight: StoredTensor) => void;
}

/** Initialisations that do not look at the base. */
const WEIGHTLESS: readonly (boolean | InitName | "eva")[] = [true, false, "gaussian", "orthogonal", "eva"];

/**
 * Makes a module with its first values, in F32.
 *
 * @param sizes What it is.
 * @param config The config of the adapter.
 * @param values What its values come from.
 * @returns The module.
 * @throws {MismatchError} If a weight is missing or of another shape.
 */
export async function createModule(sizes: NewModule, config: LoraConfig, values: ModuleValues): Promise<LoraModule> {
  const { kernel: _, groups: __, ...own } = sizes;
  if (sizes.kind === "linear") return { ...own, dtype: "F32", ...await linearFactors(sizes, config, values) };
  const { otherFactors } = await import("./create_kinds.ts");
  return { ...own, dtype: "F32", ...await otherFactors(sizes, config, values) };
}

async function linearFactors(sizes: NewModule, config: LoraConfig, values: ModuleValues): Promise<FirstFactors> {
  const { name, rank, outFeatures } = sizes;
  const { init = true, seed, direction, loftqBits = 4, loftqIterations = 1 } = values;
  const needsWeight = config.useDora || !WEIGHTLESS.includes(init);
  const stored = needsWeight ? await values.weightOf?.(name) : undefined;
  const weight = stored ? readWeight(stored, sizes, config.fanInFanOut).matrix : null;
  const random = new RandomStream(seed, name);
  const context = { ...sizes, weight, loftq: { bits: loftqBits, iterations: loftqIterations } };
  const { base, ...factors } = init === "eva"
    ? { a: direction!, b: zeros(rank, outFeatures), base: undefined }
    : firstValues(init, { ...context, random });
  if (base) values.onBase?.(name, store(base));
  return {
    loraA: store(factors.a),
    loraB: store(transpose(factors.b)),
    ...(config.loraBias && { loraBias: firstBias(sizes, init === false ? random : null) }),
    ...(config.useDora && { magnitude: firstMagnitude(sizes, base ?? weight, factors) }),
  };
}

/** ‖W + ΔW‖ per row. */
function firstMagnitude({ name, scaling }: NewModule, weight: Matrix | null, { a, b }: Factors): StoredTensor {
  if (!weight) {
    const message = `Cannot create ${quote(name)} with useDora without its weight: expected weightOf`;
    throw new MismatchError(message, { tensor: name, field: "useDora", expected: "weightOf" });
  }
  const whole = sum(weight, scale(multiply(transpose(b), a), scaling));
  const norms = Float32Array.from({ length: whole.rows }, (_, i) => Math.sqrt(dot(rowOf(whole, i), rowOf(whole, i))));
  return { dtype: "F32", shape: [whole.rows], bytes: new Uint8Array(norms.buffer) };
}

function firstBias({ outFeatures, rank }: NewModule, random: RandomStream | null): StoredTensor {
  const bound = 1 / Math.sqrt(rank);
  const next = () => random ? bound * (2 * random.uniform() - 1) : 0;
  const values = Float32Array.from({ length: outFeatures }, next);
  return { dtype: "F32", shape: [outFeatures], bytes: new Uint8Array(values.buffer) };
}

function store({ rows, columns, values }: Matrix): StoredTensor {
  return { dtype: "F32", shape: [rows, columns], bytes: new Uint8Array(Float32Array.from(values).buffer) };
}
