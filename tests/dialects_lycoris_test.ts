import assert from "node:assert/strict";
import { test } from "node:test";
import type { Adapter } from "../src/adapter/adapter.ts";
import { readAdapter } from "../src/adapter/dialects/convert.ts";
import type { ReadDialectOptions } from "../src/adapter/dialects/options.ts";
import { readFactors } from "../src/adapter/factors.ts";
import { singularVectors } from "../src/adapter/svd.ts";
import { fromFloat32, type StoredTensor, toFloat32 } from "../src/formats/dtype.ts";
import { memorySource } from "../src/formats/memory.ts";
import { encodeSafetensors } from "../src/formats/safetensors_writer.ts";
import { store } from "./dialects_support.ts";
import { random } from "./values.ts";

const NAME = "lora_unet_mid_block_attentions_0_proj_in";
const PATH = "mid_block.attentions.0.proj_in";
const ALPHA = fromFloat32(Float32Array.of(3), []);

/** A file of one module. */
async function read(parts: Record<string, StoredTensor>, options: ReadDialectOptions = {}): Promise<Adapter> {
  const named = Object.entries(parts).map(([part, tensor]) => [`${NAME}.${part}`, tensor] as const);
  return (await readAdapter(memorySource("a.safetensors", encodeSafetensors(new Map(named))), options)).adapter;
}

function tensors(seed: number, shapes: Record<string, number[]>): Record<string, StoredTensor> {
  const next = random(seed);
  return Object.fromEntries(
    Object.entries(shapes).map((
      [part, shape],
    ) => [part, { ...store("F32", 1, shape.reduce((x, y) => x * y, 1), next), shape }]),
  );
}

type Value = (...at: number[]) => number;

/** Elements of a tensor by their places. */
function at({ shape, ...tensor }: StoredTensor): Value {
  const values = toFloat32({ ...tensor, shape });
  return (...place) => values[place.reduce((index, i, dimension) => index * shape[dimension]! + i, 0)]!;
}

function sum(count: number, term: (i: number) => number): number {
  return Array.from({ length: count }, (_, i) => term(i)).reduce((x, y) => x + y, 0);
}

/** ΔW (out, in · k). */
function delta(adapter: Adapter): { rows: number; columns: number; values: Float64Array } {
  const { scaling, ...module } = adapter.modules.get(PATH)!;
  const { a, b } = readFactors(module);
  const values = Float64Array.from({ length: b.columns * a.columns }, (_, at) => {
    const [o, n] = [Math.floor(at / a.columns), at % a.columns];
    return scaling * sum(a.rows, (r) => b.values[r * b.columns + o]! * a.values[r * a.columns + n]!);
  });
  return { rows: b.columns, columns: a.columns, values };
}

/** Compares ΔW with a formula over (out, in, place in the kernel). */
function assertDelta(adapter: Adapter, [out, inputs, places = 1]: readonly number[], wanted: Value, most = 1e-6): void {
  const got = delta(adapter);
  assert.deepEqual([got.rows, got.columns], [out, inputs! * places]);
  let [difference, whole] = [0, 0];
  for (const [index, value] of got.values.entries()) {
    const [o, rest] = [Math.floor(index / got.columns), index % got.columns];
    const expected = wanted(o, Math.floor(rest / places), rest % places);
    difference += (value - expected) ** 2;
    whole += expected ** 2;
  }
  assert.ok(whole > 0 && Math.sqrt(difference / whole) < most, `${Math.sqrt(difference / whole)}`);
}

test("LoHa is an exact LoRA of the squared rank, of linear layers and with Tucker cores", async () => {
  const parts = tensors(1, { hada_w1_a: [7, 2], hada_w1_b: [2, 5], hada_w2_a: [7, 2], hada_w2_b: [2, 5] });
  const [w1a, w1b, w2a, w2b] = Object.values(parts).map(at) as [Value, Value, Value, Value];
  const plain = await read({ ...parts, alpha: ALPHA });
  assert.equal(plain.modules.get(PATH)!.rank, 4);
  const product = (a: Value, b: Value, o: number, n: number) => sum(2, (r) => a(o, r) * b(r, n));
  assertDelta(plain, [7, 5], (o, n) => 1.5 * product(w1a, w1b, o!, n!) * product(w2a, w2b, o!, n!));
  assert.ok(plain.report.some(({ what, error }) => what.includes("LoHa became LoRA, of rank 4") && error === 0));

  const shapes = {
    hada_t1: [2, 2, 3, 3],
    hada_w1_a: [2, 7],
    hada_w1_b: [2, 5],
    hada_t2: [2, 2, 3, 3],
    hada_w2_a: [2, 7],
    hada_w2_b: [2, 5],
  };
  const cores = tensors(2, shapes);
  const [t1, v1a, v1b, t2, v2a, v2b] = Object.values(cores).map(at) as Value[];
  const tucker = ([t, a, b]: Value[], [o = 0, n = 0, k = 0]: number[]) =>
    sum(2, (i) => sum(2, (j) => t!(i, j, Math.floor(k / 3), k % 3) * b!(j, n) * a!(i, o)));
  const conv = await read(cores);
  assert.equal(conv.modules.get(PATH)!.kind, "conv");
  const [first, second] = [[t1!, v1a!, v1b!], [t2!, v2a!, v2b!]];
  assertDelta(conv, [7, 5, 9], (...place) => tucker(first, place) * tucker(second, place));
});

type Shapes = Record<string, number[]>;
const LEFT: Record<string, Shapes> = {
  whole: { lokr_w1: [2, 3] },
  factored: { lokr_w1_a: [2, 2], lokr_w1_b: [2, 3] },
};
const RIGHT: Record<string, Shapes> = {
  whole: { lokr_w2: [3, 4] },
  factored: { lokr_w2_a: [3, 2], lokr_w2_b: [2, 4] },
  kernel: { lokr_w2: [3, 4, 3, 3] },
  core: { lokr_t2: [2, 2, 3, 3], lokr_w2_a: [2, 3], lokr_w2_b: [2, 4] },
};

/** Element (o, n, k) of one side, by its tensors. */
function side(form: string, index: 1 | 2, value: Record<string, Value>): Value {
  const [whole, a, b, core] = [`lokr_w${index}`, `lokr_w${index}_a`, `lokr_w${index}_b`, "lokr_t2"].map((part) =>
    value[part]!
  );
  const place = (k = 0) => [Math.floor(k / 3), k % 3];
  if (form === "whole") return (o, n) => whole!(o!, n!);
  if (form === "kernel") return (o, n, k) => whole!(o!, n!, ...place(k));
  if (form === "factored") return (o, n) => sum(2, (r) => a!(o!, r) * b!(r, n!));
  return (o, n, k) => sum(2, (i) => sum(2, (j) => core!(i, j, ...place(k)) * b!(j, n!) * a!(i, o!)));
}

test("LoKr is an exact LoRA, whichever of its sides are whole, factored, kernels or cores", async () => {
  for (const [first, w1] of Object.entries(LEFT)) {
    for (const [second, w2] of Object.entries(RIGHT)) {
      const parts = tensors(3, { ...w1, ...w2 });
      const value = Object.fromEntries(Object.entries(parts).map(([part, tensor]) => [part, at(tensor)]));
      const [left, right] = [side(first, 1, value), side(second, 2, value)];
      // Without a factored side there is no dimension to divide the alpha by.
      const scaling = first === "factored" || second === "factored" || second === "core" ? 1.5 : 1;
      const places = second === "kernel" || second === "core" ? 9 : 1;
      const adapter = await read({ ...parts, alpha: ALPHA });
      const wanted: Value = (o = 0, n = 0, k) =>
        scaling * left(Math.floor(o / 3), Math.floor(n / 4)) * right(o % 3, n % 4, k!);
      assertDelta(adapter, [6, 12, places], wanted);
    }
  }
});

test("a LoCon's Tucker core goes into A, exactly", async () => {
  const parts = tensors(4, {
    "lora_up.weight": [7, 2, 1, 1],
    "lora_down.weight": [2, 5, 1, 1],
    "lora_mid.weight": [2, 2, 3, 3],
  });
  const [up, down, mid] = Object.values(parts).map(at) as [Value, Value, Value];
  const adapter = await read({ ...parts, alpha: ALPHA });
  assert.deepEqual([adapter.modules.get(PATH)!.rank, adapter.modules.get(PATH)!.scaling], [2, 1.5]);
  assertDelta(
    adapter,
    [7, 5, 9],
    (o, n, k) =>
      1.5 * sum(2, (a) => sum(2, (b) => up(o!, a, 0, 0) * mid(a, b, Math.floor(k! / 3), k! % 3) * down(b, n!, 0, 0))),
  );
});

test("a full difference is exact up to its rank, and below it the best approximation with the error told", async () => {
  for (const shape of [[9, 6], [6, 9], [5, 4, 3, 3]]) {
    const parts = tensors(5, { diff: shape });
    const value = at(parts.diff!);
    const [out, inputs, ...kernel] = shape;
    const wanted: Value = (o, n, k) => kernel.length > 0 ? value(o!, n!, Math.floor(k! / 3), k! % 3) : value(o!, n!);
    const places = kernel.length > 0 ? 9 : 1;
    assertDelta(await read({ ...parts, alpha: ALPHA }), [out!, inputs!, places], wanted);
    const cut = await read(parts, { rank: 3 });
    assert.equal(cut.modules.get(PATH)!.rank, 3);
    const { sigma } = singularVectors({
      rows: out!,
      columns: inputs! * places,
      values: Float64Array.from(toFloat32(parts.diff!)),
    });
    const energy = (values: Float64Array) => Math.hypot(...values);
    const optimum = energy(sigma.slice(3)) / energy(sigma);
    const { error = 0, why } = cut.report.find(({ what }) =>
      what.includes("a full difference became LoRA, of rank 3")
    )!;
    assert.ok(Math.abs(error - optimum) < 1e-6 && why.includes("cut off"), `${error}, optimum ${optimum}`);
    assertDelta(cut, [out!, inputs!, places], wanted, optimum + 1e-6);
  }
});

test("LyCORIS modules of wrong shapes, or without a part, are refused by tensor name", async () => {
  const loha = tensors(6, { hada_w1_a: [7, 2], hada_w1_b: [2, 5], hada_w2_a: [7, 2], hada_w2_b: [2, 5] });
  const other = (part: string, shape: number[]) => ({ ...loha, ...tensors(7, { [part]: shape }) });
  const { hada_w2_b: _, ...lone } = loha;
  const cases: readonly (readonly [Record<string, StoredTensor>, string])[] = [
    [lone, "hada_w1_a"],
    [other("hada_w1_b", [3, 5]), "hada_w1_b"],
    [other("hada_w2_b", [2, 6]), "hada_w2_a"],
    [other("hada_w1_a", [14]), "hada_w1_a"],
    [other("hada_t1", [2, 3, 3, 3]), "hada_t1"],
    [tensors(8, { lokr_w2: [3, 4] }), "lokr_w2"],
    [tensors(9, { diff: [6] }), "diff"],
  ];
  for (const [parts, part] of cases) {
    await assert.rejects(read(parts), { name: "MismatchError", tensor: `${NAME}.${part}` }, part);
  }
});
