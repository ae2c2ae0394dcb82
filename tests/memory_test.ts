import assert from "node:assert/strict";
import type { Backend, Tensor } from "../src/backend.ts";
import { DisposedError } from "../src/errors.ts";
import { forEachBackend, poisonFreeMemory } from "./backends.ts";
import { assertSameBits } from "./compare.ts";
import { random, randomMatrix, storedF32, tensorOf, weightOf } from "./values.ts";

const SHAPES = [[], [0], [1], [3, 0], [7], [2, 3], [2, 3, 5], [1, 1, 1, 1025]];

forEachBackend("tensor() holds its own copy of the values, or zeros", async (backend) => {
  const next = random(1);
  for (const shape of SHAPES) {
    const size = shape.reduce((product, length) => product * length, 1);
    const zeros = backend.tensor(shape);
    assertSameBits(await backend.read(zeros), new Float32Array(size), `zeros [${shape}]`);
    const values = Float32Array.from({ length: size }, next);
    const [givenShape, given] = [[...shape], values.slice()];
    const tensor = backend.tensor(givenShape, given);
    givenShape.fill(99);
    given.fill(99);
    assert.deepEqual([[...tensor.shape], tensor.size], [shape, size]);
    assertSameBits(await backend.read(tensor), values, `values [${shape}]`);
  }
});

forEachBackend("write() overwrites every element, and read() returns a copy", async (backend) => {
  const tensor = backend.tensor([2, 3], Float32Array.of(1, 2, 3, 4, 5, 6));
  const before = await backend.read(tensor);
  const values = Float32Array.of(-0, NaN, Infinity, -Infinity, 1e-45, 3.4e38);
  backend.write(tensor, values);
  assertSameBits(await backend.read(tensor), values, "after write()");
  assertSameBits(before, Float32Array.of(1, 2, 3, 4, 5, 6), "what read() returned before");
  (await backend.read(tensor)).fill(7);
  assertSameBits(await backend.read(tensor), values, "after a change of the copy");
});

forEachBackend("read() sees the operations that were called before it", async (backend) => {
  let sum = backend.tensor([3], Float32Array.of(1, 2, 3));
  for (let i = 0; i < 5; i++) sum = backend.add(sum, sum);
  const early = backend.read(sum);
  backend.write(sum, new Float32Array(3));
  assertSameBits(await early, Float32Array.of(32, 64, 96), "before write()");
  assertSameBits(await backend.read(sum), new Float32Array(3), "after write()");
});

forEachBackend("reshape() shares the elements and lives as long as the first tensor", async (backend) => {
  const tensor = tensorOf(backend, randomMatrix(random(2), 4, 6));
  const held = backend.bytes;
  const view = backend.reshape(tensor, [2, 3, 4]);
  assert.deepEqual([[...view.shape], view.size, backend.bytes], [[2, 3, 4], 24, held]);
  const values = Float32Array.from({ length: 24 }, (_, i) => i);
  backend.write(view, values);
  assertSameBits(await backend.read(tensor), values, "the first tensor");
  view.dispose();
  assertSameBits(await backend.read(tensor), values, "the first tensor, after its view was disposed");
  const other = backend.reshape(tensor, [24]);
  tensor.dispose();
  await assert.rejects(async () => await backend.read(other), DisposedError);
});

forEachBackend("scope() frees what is made inside and keeps what is returned", async (backend) => {
  const outside = backend.tensor([2], Float32Array.of(1, 2));
  const held = backend.bytes;
  backend.scope(() => {
    backend.add(outside, outside).dispose();
    backend.tensor([100]);
  });
  assert.equal(backend.bytes, held);
  const kept = backend.scope(() => backend.add(backend.add(outside, outside), outside));
  const [first, second] = backend.scope(() => {
    const sum = backend.add(outside, kept);
    return [sum, backend.add(sum, sum)] as const;
  });
  const view = backend.scope(() => backend.reshape(backend.add(outside, outside), [2, 1]));
  poisonFreeMemory(backend);
  const results = await Promise.all([kept, first, second, view, outside].map((tensor) => backend.read(tensor)));
  assert.deepEqual(results.map((values) => [...values]), [[3, 6], [4, 8], [8, 16], [2, 4], [1, 2]]);
  for (const tensor of [kept, first, second]) tensor.dispose();
});

forEachBackend("scope() hands a temporary over to the view of it that is returned", (backend) => {
  const held = backend.bytes;
  backend.scope(() => backend.reshape(backend.tensor([4]), [2, 2])).dispose();
  assert.equal(backend.bytes, held);
  backend.scope(() => {
    backend.scope(() => backend.reshape(backend.tensor([4]), [2, 2]));
  });
  assert.equal(backend.bytes, held);
});

forEachBackend("scope() frees what is made inside when its body throws", (backend) => {
  const held = backend.bytes;
  const failing = () => {
    backend.tensor([10]);
    backend.scope(() => backend.tensor([20]));
    throw new Error("stop");
  };
  assert.throws(() => backend.scope(failing), { message: "stop" });
  assert.equal(backend.bytes, held);
  const after = backend.tensor([1]);
  assert.ok(backend.bytes > held, "a tensor made after a scope that threw belongs to none");
  after.dispose();
});

forEachBackend("scope() inside scope() hands what it returns to the outer one", async (backend) => {
  const held = backend.bytes;
  let inner: Tensor | undefined;
  const kept = backend.scope(() => {
    const one = backend.tensor([1], Float32Array.of(1));
    inner = backend.scope(() => backend.add(one, one));
    return backend.add(inner, backend.scope(() => inner!));
  });
  assert.deepEqual([...await backend.read(kept)], [4]);
  await assert.rejects(async () => await backend.read(inner!), DisposedError);
  kept.dispose();
  assert.equal(backend.bytes, held);
});

/** Counts the growth of WebAssembly memories while `body` runs. */
function countGrowth(body: () => void): number {
  const prototype = WebAssembly.Memory.prototype;
  const grow = prototype.grow;
  let count = 0;
  prototype.grow = function (delta) {
    count++;
    return grow.call(this, delta);
  };
  try {
    body();
  } finally {
    prototype.grow = grow;
  }
  return count;
}

function createAndDispose(backend: Backend, next: () => number, cycles: number): void {
  const live: { dispose(): void }[] = [];
  for (let i = 0; i < cycles; i++) {
    const size = 1 + Math.floor(Math.abs(next()) * 5000);
    live.push(
      i % 3 === 0 ? weightOf(backend, { shape: [1, size], values: new Float64Array(size) }) : backend.tensor([size]),
    );
    if (live.length > 20) live.splice(Math.floor(Math.abs(next()) * live.length), 1)[0]!.dispose();
  }
  for (const handle of live) handle.dispose();
}

forEachBackend("2,000 cycles of create and dispose end at 0 bytes, in the memory of the first 200", (backend) => {
  createAndDispose(backend, random(1), 200);
  assert.equal(backend.bytes, 0);
  for (let round = 0; round < 10; round++) {
    assert.equal(countGrowth(() => createAndDispose(backend, random(1), 200)), 0, `round ${round}`);
    assert.equal(backend.bytes, 0);
  }
});

forEachBackend("dispose() a second time does not free what came after", async (backend) => {
  const first = backend.tensor([16]);
  const weight = weightOf(backend, randomMatrix(random(3), 2, 8));
  first.dispose();
  weight.dispose();
  const values = Float32Array.from({ length: 16 }, (_, i) => i);
  const [second, third] = [backend.tensor([16], values), backend.tensor([16], values)];
  const held = backend.bytes;
  first.dispose();
  weight.dispose();
  assert.equal(backend.bytes, held);
  backend.tensor([16], new Float32Array(16).fill(7));
  assertSameBits(await backend.read(second), values, "the second tensor");
  assertSameBits(await backend.read(third), values, "the third tensor");
});

forEachBackend("growing memory keeps what tensors and weights hold", async (backend) => {
  const values = randomMatrix(random(4), 9, 31);
  const [tensor, weight] = [tensorOf(backend, values), weightOf(backend, values)];
  const many = Array.from({ length: 6 }, (_, i) => backend.tensor([1 << (16 + i)]));
  assertSameBits(await backend.read(tensor), values, "the tensor");
  assertSameBits(await backend.readWeight(weight), values, "the weight");
  for (const [i, big] of many.entries()) assert.equal((await backend.read(big)).length, 1 << (16 + i));
  const one = backend.tensor([1 << 16], new Float32Array(1 << 16).fill(1));
  let count = one;
  for (let i = 0; i < 30; i++) count = backend.add(count, one);
  assert.ok((await backend.read(count)).every((value) => value === 31), "sums in new memory");
});

forEachBackend("bytes counts tensors and weights, and dispose() of the backend all of them", (backend) => {
  assert.equal(backend.bytes, 0);
  const tensor = backend.tensor([1000]);
  assert.ok(backend.bytes >= 4000 && backend.bytes < 4100, `${backend.bytes} bytes for a tensor of 1000`);
  const weight = backend.weight(storedF32(randomMatrix(random(5), 80, 100)), { dtype: "bf16" });
  assert.ok(weight.bytes >= 16000 && weight.bytes < 17000, `${weight.bytes} bytes for bf16 [80, 100]`);
  assert.ok(backend.bytes >= 4000 + weight.bytes);
  tensor[Symbol.dispose]();
  weight[Symbol.dispose]();
  assert.equal(backend.bytes, 0);
  const left = backend.tensor([5]);
  backend[Symbol.dispose]();
  backend.dispose();
  left.dispose();
  assert.equal(backend.bytes, 0);
});
