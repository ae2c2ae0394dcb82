/**
 * The float64 reference of quantized weights and activations: what each type keeps of a matrix, and what `linear` makes
 * of it. Slow and plain on purpose, as reference.ts.
 *
 * @module
 */
import type { Backend, BlockDtype, MatrixValues, WeightDtype } from "../src/backend.ts";
import { at, type Matrix, matrix } from "./reference.ts";
import { weightOf } from "./values.ts";

/** Types that `weight()` makes of floats, and that are not plain floats. */
export const QUANTIZED: readonly WeightDtype[] = ["f16", "f8", "int8", "int4", "nf4"];
/** Those whose products are integers. */
export const INTEGERS: readonly WeightDtype[] = ["int8", "int4"];

/** To nearest, ties to even. */
function round(value: number): number {
  return value + 1.5 * 2 ** 52 - 1.5 * 2 ** 52;
}

/** Rounds to a float of so many mantissa bits and a least exponent, ties to even. */
function roundTo(value: number, mantissaBits: number, leastExponent: number): number {
  if (value === 0) return value;
  const exponent = Math.max(Math.floor(Math.log2(Math.abs(value))), leastExponent);
  const step = 2 ** (exponent - mantissaBits);
  return round(value / step) * step;
}

/** Applies `body` to blocks of each row, and puts the results in their place. */
function byBlocks(m: Matrix, size: number, body: (values: number[]) => number[]): Matrix {
  const result = matrix(...m.shape, () => 0);
  const [rows, columns] = m.shape;
  for (let i = 0; i < rows; i++) {
    for (let from = 0; from < columns; from += size) {
      const values = Array.from({ length: Math.min(size, columns - from) }, (_, j) => at(m, i, from + j));
      body(values).forEach((value, j) => result.values[i * columns + from + j] = value);
    }
  }
  return result;
}

function largest(values: readonly number[]): number {
  return values.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
}

const f16 = (value: number) => roundTo(value, 10, -24 + 10);
const clamp = (value: number, least: number, most: number) => Math.min(Math.max(value, least), most);

/** ggml's rule for q4_0: the largest magnitude becomes -8. */
function int4(values: readonly number[]): number[] {
  const [least, most] = [Math.min(...values), Math.max(...values)];
  const d = roundTo((-least > most ? least : most) / -8, 10, -200);
  return values.map((value) => d === 0 ? 0 : d * (clamp(round(value / d + 8), 0, 15) - 8));
}

const NF4 = [
  ...[-1, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334],
  ...[-0.09105003625154495, 0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224],
  ...[0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1],
];

function nf4(m: Matrix): Matrix {
  const [rows, columns] = m.shape;
  const blocks = Math.ceil(columns / 64);
  const maxima = matrix(rows, blocks, (i, b) => {
    return largest(Array.from({ length: Math.min(64, columns - b * 64) }, (_, j) => at(m, i, b * 64 + j)));
  });
  return matrix(rows, columns, (i, j) => {
    const row = Array.from({ length: blocks }, (_, b) => at(maxima, i, b));
    const [least, most] = [Math.min(...row), Math.max(...row)];
    const step = (most - least) / 255;
    const code = step === 0 ? 0 : round((row[Math.floor(j / 64)]! - least) / step);
    const scale = least + step * code;
    const value = scale === 0 ? 0 : at(m, i, j) / scale;
    const nearest = NF4.reduce((best, level) => Math.abs(level - value) < Math.abs(best - value) ? level : best);
    return nearest * scale;
  });
}

/** What a weight of this type holds of a matrix. */
export function quantized(m: Matrix, dtype: WeightDtype): Matrix {
  switch (dtype) {
    case "f16":
      return byBlocks(m, 1, (values) => values.map(f16));
    case "f8":
      return byBlocks(m, m.shape[1], (values) => {
        const scale = Math.fround(largest(values) / 448);
        return values.map((value) => scale === 0 ? 0 : roundTo(value / scale, 3, -6) * scale);
      });
    case "int8":
      return byBlocks(m, 32, (values) => {
        const scale = roundTo(largest(values) / 127, 10, -200);
        return values.map((value) => scale === 0 ? 0 : clamp(round(value / scale), -127, 127) * scale);
      });
    case "int4":
      return byBlocks(m, 32, int4);
    case "nf4":
      return nf4(m);
    default:
      return m;
  }
}

/** One term of a block: 127 steps up to its largest magnitude, 63 against int8. */
function term(values: readonly number[], levels: number): number[] {
  const most = largest(values);
  return values.map((value) => most === 0 ? 0 : round(value * levels / most) * most / levels);
}

/**
 * What `linear` makes of x against a weight of integers: per row and block of 32 a term, and a second one for what it
 * leaves, against int8 always, against int4 where the block's maximum is twice the root mean square of the row's.
 * WebGPU takes x as it is.
 */
export function activations(x: Matrix, dtype: WeightDtype, { name }: Backend): Matrix {
  if (name === "webgpu") return x;
  const levels = dtype === "int8" ? 63 : dtype === "int4" ? 127 : 0;
  if (levels === 0) return x;
  const [rows, columns] = x.shape;
  const limits = Array.from({ length: rows }, (_, i) => {
    const maxima: number[] = [];
    byBlocks({ shape: [1, columns], values: x.values.slice(i * columns, (i + 1) * columns) }, 32, (values) => {
      maxima.push(largest(values));
      return values;
    });
    return dtype === "int8" ? 0 : Math.sqrt(4 * maxima.reduce((sum, most) => sum + most * most, 0) / maxima.length);
  });
  let block = 0;
  const perRow = Math.ceil(columns / 32);
  return byBlocks(x, 32, (values) => {
    const limit = limits[Math.floor(block++ / perRow)]!;
    const first = term(values, levels);
    if (largest(values) <= limit) return first;
    const second = term(values.map((value, j) => value - first[j]!), levels);
    return first.map((value, j) => value + second[j]!);
  });
}

/** A matrix as readWeight gives it. */
export async function held(backend: Backend, w: Matrix, dtype: WeightDtype): Promise<Matrix> {
  const values = await backend.readWeight(weightOf(backend, w, dtype));
  return { shape: w.shape, values: Float64Array.from(values) };
}

/** Blocks of ggml: the type that holds them, their bytes, and ggml's name. */
export const BLOCKS = { q8_0: ["int8", 34, "Q8_0"], q4_0: ["int4", 18, "Q4_0"], q4_1: ["int4", 20, "Q4_1"] } as const;

/** Random blocks of ggml: any integers, with scales and minima of any sign and size, a few of them zero or subnormal. */
export function randomBlocks(next: () => number, [n, k]: readonly [number, number], dtype: BlockDtype): MatrixValues {
  const size = BLOCKS[dtype][1];
  const bytes = Uint8Array.from({ length: n * k / 32 * size }, () => (next() + 1) * 128);
  for (let at = 0; at < bytes.length; at += size) {
    for (const half of dtype === "q4_1" ? [0, 2] : [0]) {
      const kind = Math.floor((next() + 1) * 16);
      const exponent = kind === 0 ? 0 : 8 + kind % 8;
      bytes[at + half + 1] = (bytes[at + half + 1]! & 0x83) | exponent << 2;
      if (kind === 1) bytes.fill(0, at + half, at + half + 2);
    }
  }
  return { shape: [n, k], dtype, bytes };
}
