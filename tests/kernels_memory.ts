/** Arrays with guard bands in the memory of one build of the kernels, for `kernels_test.ts`. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";

/** Both committed builds. */
export const VARIANTS = ["simd", "relaxed"] as const;

type Exports = Record<string, (...parameters: number[]) => number> & { memory: WebAssembly.Memory };

/** Floats of NaN before and behind every array: a kernel that writes them is caught, one that reads them poisons. */
const GUARD = 16;
const GUARD_BITS = 0x7fc0_beef;

/** An array in linear memory. */
export interface Placed {
  readonly at: number;
  readonly length: number;
}

/** One instance of the kernels with a bump allocator. */
export class KernelMemory {
  readonly call: Exports;
  #next: number;
  readonly #start: number;
  #guards: number[] = [];

  constructor(variant: string) {
    const bytes = readFileSync(new URL(`../src/wasm/kernels-${variant}.wasm`, import.meta.url));
    const instance = new WebAssembly.Instance(new WebAssembly.Module(bytes));
    this.call = instance.exports as unknown as Exports;
    this.#start = this.#next = Number((instance.exports.__heap_base as WebAssembly.Global).value);
  }

  /** Places bytes between guard bands; without `values` they are NaN. */
  bytes(length: number, values?: Uint8Array): Placed {
    const at = Math.ceil(this.#next / 64) * 64 + GUARD * 4;
    const words = Math.ceil(length / 4);
    this.#next = at + (words + GUARD) * 4;
    const missing = this.#next - this.call.memory.buffer.byteLength;
    if (missing > 0) this.call.memory.grow(Math.ceil(missing / 65_536));
    new Uint32Array(this.call.memory.buffer, at - GUARD * 4, words + 2 * GUARD).fill(GUARD_BITS);
    if (values) new Uint8Array(this.call.memory.buffer).set(values, at);
    for (let i = 1; i <= GUARD; i++) this.#guards.push(at - i * 4, at + (words + i - 1) * 4);
    return { at, length };
  }

  /** Places floats between guard bands; a number makes that many, all NaN. */
  floats(values: Float32Array | number): Placed {
    if (typeof values === "number") return { at: this.bytes(values * 4).at, length: values };
    const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
    return { at: this.bytes(bytes.length, bytes).at, length: values.length };
  }

  /** Places indices. */
  indices(values: readonly number[]): Placed {
    return {
      at: this.bytes(values.length * 4, new Uint8Array(Uint32Array.from(values).buffer)).at,
      length: values.length,
    };
  }

  /** The floats of a placed array. */
  read(array: Placed): Float32Array {
    return new Float32Array(this.call.memory.buffer, array.at, array.length).slice();
  }

  /** Packs a row-major f32 matrix (n, k). */
  panels(values: Float32Array, n: number, k: number, dtype: number): Placed {
    const source = this.floats(values);
    const panels = this.bytes(Math.ceil(n / 8) * 8 * k * (dtype === 0 ? 4 : 2));
    this.call.pack!(panels.at, source.at, n, k, 0, dtype, 0);
    return panels;
  }

  /** Asserts that no guard band was written, and forgets all arrays. */
  release(label: string): void {
    const words = new Uint32Array(this.call.memory.buffer);
    const broken = this.#guards.find((at) => words[at / 4] !== GUARD_BITS);
    assert.equal(broken, undefined, `${label}: wrote outside its arrays`);
    this.#next = this.#start;
    this.#guards = [];
  }
}

/** Deterministic values in [-1, 1), with 24 bits. */
export function random(count: number, seed: number): Float32Array {
  let state = (seed * 2_654_435_761 + 12_345) >>> 0;
  return Float32Array.from({ length: count }, () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return (state >>> 8) / 8_388_608 - 1;
  });
}

/** Rounds to the nearest bf16, ties to even. */
export function roundBf16(value: number): number {
  if (Number.isNaN(value)) return value;
  const word = new Uint32Array(Float32Array.of(value).buffer);
  word[0] = ((word[0]! + 0x7fff + ((word[0]! >>> 16) & 1)) & 0xffff_0000) >>> 0;
  return new Float32Array(word.buffer)[0]!;
}

/** Asserts |got - want| <= 4 terms 2^-24 (magnitude + |want|) for every element. */
export function assertClose(
  got: ArrayLike<number>,
  want: ArrayLike<number>,
  terms: number,
  label: string,
  magnitude = 1,
): void {
  assert.equal(got.length, want.length, label);
  for (let i = 0; i < want.length; i++) {
    const limit = 4 * Math.max(terms, 1) * 2 ** -24 * (magnitude + Math.abs(want[i]!));
    if (Number.isNaN(want[i]) && Number.isNaN(got[i])) continue;
    assert.ok(Math.abs(got[i]! - want[i]!) <= limit, `${label}: element ${i} is ${got[i]}, not ${want[i]}`);
  }
}

/** C (m, n) = A (m, k) B (n, k)ᵀ in double precision; `at` reads an element. */
export function multiply(
  m: number,
  n: number,
  k: number,
  a: (i: number, t: number) => number,
  b: (j: number, t: number) => number,
): Float64Array {
  const c = new Float64Array(m * n);
  for (let i = 0; i < m; i++) {
    for (let j = 0; j < n; j++) {
      let sum = 0;
      for (let t = 0; t < k; t++) sum += a(i, t) * b(j, t);
      c[i * n + j] = sum;
    }
  }
  return c;
}
