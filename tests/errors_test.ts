import assert from "node:assert/strict";
import type { Backend, Cache, CacheDtype, CacheShape, Tensor, Weight } from "../src/backend.ts";
import { NumericError, OutOfMemoryError, ShapeError } from "../src/errors.ts";
import { forEachBackend } from "./backends.ts";
import { matrix } from "./reference.ts";
import { weightOf } from "./values.ts";

/** Makes handles whose elements are all 1, and remembers them. */
class Ones {
  readonly tensors: Tensor[] = [];
  readonly weights: Weight[] = [];
  readonly caches: Cache[] = [];
  readonly backend: Backend;
  constructor(backend: Backend) {
    this.backend = backend;
  }
  dispose(): void {
    for (const handle of [...this.tensors, ...this.weights, ...this.caches]) handle.dispose();
  }
  t(...shape: number[]): Tensor {
    const size = shape.reduce((product, length) => product * length, 1);
    const tensor = this.backend.tensor(shape, new Float32Array(size).fill(1));
    this.tensors.push(tensor);
    return tensor;
  }
  c(...[batch, capacity, heads, d, dtype = "int8"]: [...CacheShape, CacheDtype?]): Cache {
    const cache = this.backend.cache([batch, capacity, heads, d], dtype);
    this.caches.push(cache);
    return cache;
  }
  w(rows: number, columns: number): Weight {
    const weight = weightOf(this.backend, matrix(rows, columns, () => 1));
    this.weights.push(weight);
    return weight;
  }
  async assertUnchanged(label: string): Promise<void> {
    for (const tensor of this.tensors) {
      assert.ok((await this.backend.read(tensor)).every((value) => value === 1), `${label} changed a tensor`);
    }
  }
}

const ids = (...indices: number[]): Uint32Array => Uint32Array.from(indices);
const heads = { heads: 4, kvHeads: 2, batch: 2, past: 1 };

/** Calls with one wrong shape or index each: [operation, what is wrong, call]. */
const WRONG: readonly (readonly [string, string, (backend: Backend, ones: Ones) => unknown])[] = [
  ["linear", "columns of x", (b, o) => b.linear(o.t(2, 5), o.w(3, 4))],
  ["linear", "dimensions of x", (b, o) => b.linear(o.t(8), o.w(3, 4))],
  ["linear", "dimensions of x", (b, o) => b.linear(o.t(1, 2, 4), o.w(3, 4))],
  ["linear", "bias", (b, o) => b.linear(o.t(2, 4), o.w(3, 4), { bias: o.t(4) })],
  ["linear", "columns of A", (b, o) => linearWith(b, o, { a: o.w(2, 3) })],
  ["linear", "rows of B", (b, o) => linearWith(b, o, { b: o.w(4, 2) })],
  ["linear", "rank of B", (b, o) => linearWith(b, o, { b: o.w(3, 1) })],
  ["linear", "end of a range", (b, o) => linearWith(b, o, { end: 3 })],
  ["linear", "start of a range", (b, o) => linearWith(b, o, { start: -1 })],
  ["linear", "a range backwards", (b, o) => linearWith(b, o, { start: 2, end: 1 })],
  ["linear", "a range of half a row", (b, o) => linearWith(b, o, { start: 0.5 })],
  ["linear", "a NaN range", (b, o) => linearWith(b, o, { end: NaN })],
  ["linear", "overlapping ranges", (b, o) => {
    const branches = [{ a: o.w(2, 4), b: o.w(3, 2), scaling: 1 }];
    return b.linear(o.t(4, 4), o.w(3, 4), {
      adapters: [{ start: 0, end: 3, branches }, { start: 2, end: 4, branches }],
    });
  }],
  ["linearBackward", "dy", (b, o) => b.linearBackward(o.t(2, 4), o.t(2, 4), o.w(3, 4), {})],
  ["linearBackward", "rows of dy", (b, o) => b.linearBackward(o.t(1, 3), o.t(2, 4), o.w(3, 4), {})],
  ["linearBackward", "x", (b, o) => b.linearBackward(o.t(2, 3), o.t(2, 3), o.w(3, 4), {})],
  ["linearBackward", "dx", (b, o) => b.linearBackward(o.t(2, 3), o.t(2, 4), o.w(3, 4), { dx: o.t(2, 3) })],
  [
    "linearBackward",
    "dw",
    (b, o) => b.linearBackward(o.t(2, 3), o.t(2, 4), o.w(3, 4), { dx: o.t(2, 4), dw: o.t(4, 3) }),
  ],
  [
    "linearBackward",
    "dbias",
    (b, o) => b.linearBackward(o.t(2, 3), o.t(2, 4), o.w(3, 4), { dbias: o.t(4), dx: o.t(2, 4) }),
  ],
  ["linearBackward", "da", (b, o) => backwardWith(b, o, { da: o.t(4, 2) })],
  ["linearBackward", "db", (b, o) => backwardWith(b, o, { db: o.t(2, 3) })],
  ["deltaWeight", "rank", (b, o) => b.deltaWeight({ a: o.w(2, 4), b: o.w(3, 1), scaling: 1 })],
  ["merge", "columns of A", (b, o) => b.merge(o.w(3, 4), [{ a: o.w(2, 3), b: o.w(3, 2), scaling: 1 }])],
  ["merge", "rows of B", (b, o) => b.merge(o.w(3, 4), [{ a: o.w(2, 4), b: o.w(4, 2), scaling: 1 }])],
  ["embedding", "ids", (b, o) => b.embedding(ids(0, 3), o.w(3, 4))],
  ["embedding", "ids of an empty table", (b, o) => b.embedding(ids(0), o.w(0, 4))],
  ["embedding", "a wrapped id", (b, o) => b.embedding(ids(-1), o.w(3, 4))],
  ["takeRows", "rows", (b, o) => b.takeRows(o.t(3, 4), ids(1, 3))],
  ["takeRows", "x", (b, o) => b.takeRows(o.t(12), ids(0))],
  ["rmsNorm", "x", (b, o) => b.rmsNorm(o.t(2, 5), o.t(4), 1e-5)],
  ["rmsNorm", "gain", (b, o) => b.rmsNorm(o.t(2, 4), o.t(1, 4), 1e-5)],
  ["rmsNorm", "an empty gain", (b, o) => b.rmsNorm(o.t(2, 4), o.t(0), 1e-5)],
  ["rmsNorm", "eps", (b, o) => b.rmsNorm(o.t(2, 4), o.t(4), -1)],
  ["rmsNorm", "eps", (b, o) => b.rmsNorm(o.t(2, 4), o.t(4), NaN)],
  ["rope", "x", (b, o) => b.rope(o.t(2, 6), o.t(2, 2), o.t(2, 2))],
  ["rope", "rows of cos", (b, o) => b.rope(o.t(2, 8), o.t(3, 2), o.t(3, 2))],
  ["rope", "columns of sin", (b, o) => b.rope(o.t(2, 8), o.t(2, 2), o.t(2, 4))],
  ["append", "cache", (b, o) => b.append(o.t(5, 3), o.t(2, 3), 0)],
  ["append", "columns of x", (b, o) => b.append(o.t(1, 5, 3), o.t(2, 4), 0)],
  ["append", "rows of x", (b, o) => b.append(o.t(2, 5, 3), o.t(3, 3), 0)],
  ["append", "past + length", (b, o) => b.append(o.t(2, 5, 3), o.t(4, 3), 4)],
  ["append", "past", (b, o) => b.append(o.t(2, 5, 3), o.t(4, 3), -1)],
  ["append", "past", (b, o) => b.append(o.t(2, 5, 3), o.t(4, 3), 0.5)],
  ["append", "heads of a cache", (b, o) => b.append(o.c(2, 5, 2, 4), o.t(2, 4), 0)],
  ["append", "past + length of a cache", (b, o) => b.append(o.c(2, 5, 2, 4), o.t(4, 8), 4)],
  ["append", "heads of a cache as x", (b, o) => b.append(o.c(2, 5, 2, 4), o.c(2, 5, 4, 2), 0)],
  ["append", "capacity of a cache as x", (b, o) => b.append(o.c(2, 5, 2, 4), o.c(2, 6, 2, 4), 0)],
  ["append", "dtype of a cache as x", (b, o) => b.append(o.c(2, 5, 2, 4), o.c(2, 5, 2, 4, "f16"), 0)],
  ["attention", "heads of keys", (b, o) => b.attention(o.t(2, 8), o.c(2, 3, 4, 1), o.c(2, 3, 2, 2), heads)],
  ["attention", "dtype of values", (b, o) => b.attention(o.t(2, 8), o.c(2, 3, 2, 2), o.t(2, 3, 4), heads)],
  ["attention", "columns of q", (b, o) => b.attention(o.t(2, 7), o.t(2, 3, 4), o.t(2, 3, 4), heads)],
  ["attention", "rows of q", (b, o) => b.attention(o.t(3, 8), o.t(2, 3, 4), o.t(2, 3, 4), heads)],
  ["attention", "columns of keys", (b, o) => b.attention(o.t(2, 8), o.t(2, 3, 8), o.t(2, 3, 4), heads)],
  ["attention", "batch of keys", (b, o) => b.attention(o.t(2, 8), o.t(1, 3, 4), o.t(2, 3, 4), heads)],
  ["attention", "capacity of values", (b, o) => b.attention(o.t(2, 8), o.t(2, 3, 4), o.t(2, 4, 4), heads)],
  ["attention", "past + length", (b, o) => b.attention(o.t(6, 8), o.t(2, 3, 4), o.t(2, 3, 4), heads)],
  ["attention", "heads", (b, o) => b.attention(o.t(2, 6), o.t(2, 3, 4), o.t(2, 3, 4), { ...heads, heads: 3 })],
  ["attention", "kvHeads", (b, o) => b.attention(o.t(2, 8), o.t(2, 3, 4), o.t(2, 3, 4), { ...heads, kvHeads: 0 })],
  ["attention", "window", (b, o) => b.attention(o.t(2, 8), o.t(2, 3, 4), o.t(2, 3, 4), { ...heads, window: 0 })],
  ["attention", "past", (b, o) => b.attention(o.t(2, 8), o.t(2, 3, 4), o.t(2, 3, 4), { ...heads, past: -1 })],
  ["siluMul", "up", (b, o) => b.siluMul(o.t(2, 3), o.t(3, 2))],
  ["add", "y", (b, o) => b.add(o.t(2, 3), o.t(6))],
  ["add", "y, which is not broadcast", (b, o) => b.add(o.t(2, 3), o.t(1, 3))],
  ["crossEntropy", "number of targets", (b, o) => b.crossEntropy(o.t(2, 3), ids(0))],
  ["crossEntropy", "a target", (b, o) => b.crossEntropy(o.t(2, 3), ids(0, 3))],
  ["crossEntropy", "logits", (b, o) => b.crossEntropy(o.t(6), ids(0))],
  ["reshape", "shape", (b, o) => b.reshape(o.t(2, 3), [5])],
];

interface Change {
  readonly a?: Weight;
  readonly b?: Weight;
  readonly start?: number;
  readonly end?: number;
  readonly da?: Tensor;
  readonly db?: Tensor;
  readonly scaling?: number;
}

function rangeWith(o: Ones, { start = 0, end = 2, ...change }: Change) {
  return [{ start, end, branches: [{ a: o.w(2, 4), b: o.w(3, 2), scaling: 1, ...change }] }];
}

function linearWith(backend: Backend, o: Ones, change: Change): Tensor {
  return backend.linear(o.t(2, 4), o.w(3, 4), { adapters: rangeWith(o, change) });
}

function backwardWith(backend: Backend, o: Ones, change: Change): void {
  backend.linearBackward(o.t(2, 3), o.t(2, 4), o.w(3, 4), { dx: o.t(2, 4), adapters: rangeWith(o, change) });
}

forEachBackend("every operation refuses a wrong shape by name and changes nothing", async (backend) => {
  for (const [operation, what, call] of WRONG) {
    const label = `${operation}() with wrong ${what}`;
    const ones = new Ones(backend);
    await assert.rejects(async () => await call(backend, ones), (error: Error) => {
      assert.ok(error instanceof ShapeError, `${label}: ${error}`);
      assert.match(error.message, new RegExp(`^Cannot run ${operation} .*: expected .*[^.]$`), label);
      return true;
    });
    await ones.assertUnchanged(label);
    ones.dispose();
    assert.equal(backend.bytes, 0, `${label} holds memory`);
  }
});

/** Calls with a value of another type: [what is wrong, call]. */
const WRONG_TYPES:
  readonly (readonly [string, (backend: Backend, ones: Ones, any: (value: unknown) => never) => unknown])[] = [
    ["values of tensor()", (b, _, any) => b.tensor([2], any([1, 2]))],
    ["values of tensor()", (b, _, any) => b.tensor([2], any(Float64Array.of(1, 2)))],
    ["values of tensor()", (b, _, any) => b.tensor([2], any(Int32Array.of(1, 2)))],
    ["values of write()", (b, o, any) => b.write(o.t(2), any(Float64Array.of(1, 2)))],
    ["ids of embedding()", (b, o, any) => b.embedding(any([0, 1]), o.w(3, 4))],
    ["ids of embedding()", (b, o, any) => b.embedding(any(Int32Array.of(0)), o.w(3, 4))],
    ["rows of takeRows()", (b, o, any) => b.takeRows(o.t(3, 4), any(Float32Array.of(0)))],
    ["targets of crossEntropy()", (b, o, any) => b.crossEntropy(o.t(1, 4), any([0]))],
    ["bytes of weight()", (b, _, any) => b.weight({ shape: [1, 1], dtype: "f32", bytes: any([0, 0, 0, 0]) })],
    ["bytes of weight()", (b, _, any) => b.weight({ shape: [1, 1], dtype: "f32", bytes: any(new ArrayBuffer(4)) })],
    ["bytes of weight()", (b, _, any) => b.weight({ shape: [1, 2], dtype: "f32", bytes: any(Float32Array.of(1, 2)) })],
    ["dtype of the values", (b, _, any) => b.weight({ shape: [1, 1], dtype: any("f64"), bytes: new Uint8Array(2) })],
    ["dtype of the weight", (b, _, any) => {
      return b.weight({ shape: [1, 1], dtype: "f32", bytes: new Uint8Array(4) }, { dtype: any("int9") });
    }],
    ["x of add()", (b, o, any) => b.add(any(Float32Array.of(1)), o.t(1))],
    ["x of linear()", (b, o, any) => b.linear(any(o.w(3, 4)), o.w(3, 4))],
    ["weight of linear()", (b, o, any) => b.linear(o.t(3, 4), any(o.t(3, 4)))],
    ["table of embedding()", (b, o, any) => b.embedding(ids(0), any(o.t(3, 4)))],
  ];

forEachBackend("every operation refuses a wrong type with a TypeError", async (backend) => {
  const any = (value: unknown) => value as never;
  for (const [what, call] of WRONG_TYPES) {
    const ones = new Ones(backend);
    await assert.rejects(async () => await call(backend, ones, any), TypeError, `wrong ${what}`);
    await ones.assertUnchanged(what);
    ones.dispose();
    assert.equal(backend.bytes, 0, `wrong ${what} holds memory`);
  }
});

forEachBackend("tensor() and weight() refuse shapes that are none, and sizes that do not fit", (backend) => {
  const any = (value: unknown) => value as never;
  for (const shape of [[-1], [0.5], [NaN], [Infinity], [2 ** 53], [2 ** 30, 2 ** 30], any([2n]), any(["2"])]) {
    assert.throws(() => backend.tensor(shape), ShapeError, `shape [${shape}]`);
    assert.throws(() => backend.reshape(backend.tensor([1]), shape), ShapeError, `reshape to [${shape}]`);
  }
  for (const length of [0, 1, 3]) {
    assert.throws(() => backend.tensor([2], new Float32Array(length)), ShapeError, `${length} values for [2]`);
    assert.throws(() => backend.write(backend.tensor([2]), new Float32Array(length)), ShapeError);
  }
  const four = new Uint8Array(4);
  const shapes: readonly (readonly number[])[] = [[1, 2], [1, 0], [1], [1, 1, 1], [-1, -1], [2 ** 40, 2 ** 40]];
  for (const shape of shapes) {
    assert.throws(() => backend.weight({ shape: any(shape), dtype: "f32", bytes: four }), ShapeError, `[${shape}]`);
  }
  assert.throws(() => backend.weight({ shape: [1, 1], dtype: "bf16", bytes: four }), ShapeError);
});

forEachBackend("values in shared, resizable or detached memory are copied or refused", async (backend) => {
  const shared = new Float32Array(new SharedArrayBuffer(8));
  shared.set([1, 2]);
  const resizable = new Float32Array(new ArrayBuffer(8, { maxByteLength: 16 }));
  resizable.set([1, 2]);
  for (const values of [shared, resizable]) {
    const tensor = backend.tensor([2], values as Float32Array<ArrayBuffer>);
    values.fill(9);
    assert.deepEqual([...await backend.read(tensor)], [1, 2]);
  }
  const detached = Float32Array.of(1, 2);
  structuredClone(detached.buffer, { transfer: [detached.buffer] });
  assert.throws(() => backend.tensor([2], detached), ShapeError);
});

forEachBackend("a tensor too big for any memory is refused, and the backend lives on", async (backend) => {
  const before = backend.tensor([3], Float32Array.of(1, 2, 3));
  const held = backend.bytes;
  for (const size of [2 ** 34, 2 ** 42, 2 ** 50]) {
    assert.throws(() => backend.tensor([size]), OutOfMemoryError, `${size} elements`);
    assert.equal(backend.bytes, held);
  }
  assert.deepEqual([...await backend.read(backend.add(before, before))], [2, 4, 6]);
});

forEachBackend("linear() and linearBackward() refuse a scaling that is not finite", async (backend) => {
  const ones = new Ones(backend);
  for (const scaling of [NaN, Infinity, -Infinity, 1e39]) {
    assert.throws(() => linearWith(backend, ones, { scaling }), NumericError);
    assert.throws(() => backwardWith(backend, ones, { scaling }), NumericError);
  }
  await ones.assertUnchanged("scaling");
});
