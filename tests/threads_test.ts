/** Threads: the same answers as one, started late, and gone without a trace, a hang or a wrong number. */
import assert from "node:assert/strict";
import { test } from "node:test";
import type { Backend, Tensor, WeightDtype } from "../src/backend.ts";
import { BackendUnavailableError } from "../src/errors.ts";
import { openBackend } from "../src/open.ts";
import { findWorkers, type WorkerLike } from "../src/wasm/worker_host.ts";
import { assertSameBits } from "./compare.ts";
import { openThreads } from "./threads_support.ts";
import { branchOf, random, randomBranch, randomMatrix, tensorOf, vectorOf, weightOf } from "./values.ts";

const startWorker = findWorkers()!;

/** A factory that keeps its workers, and may change their code. */
function watched(change: (code: string) => string = (code) => code) {
  const workers: WorkerLike[] = [];
  const make = (url: URL): WorkerLike => {
    const [head, code] = [url.href.slice(0, url.href.indexOf(",") + 1), decodeURIComponent(url.pathname)];
    const body = change(code.slice(code.indexOf(",") + 1));
    workers.push(startWorker(new URL(head + encodeURIComponent(body))));
    return workers.at(-1)!;
  };
  return { workers, make };
}

/** A product that is worth two threads. */
function largeProduct(backend: Backend, seed = 1): Tensor {
  const next = random(seed);
  const x = tensorOf(backend, randomMatrix(next, 64, 256));
  return backend.linear(x, weightOf(backend, randomMatrix(next, 256, 256)));
}

async function untilThreads(backend: Backend): Promise<void> {
  for (let i = 0; i < 4000 && !/^\D*\d threads$/.test(lastClause(backend)); i++) {
    backend.scope(() => void largeProduct(backend));
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
  assert.match(lastClause(backend), /^\d threads$/);
}

function lastClause(backend: Backend): string {
  return backend.info.reason.split("; ").at(-1)!;
}

/** [rows, in, out] around the shares of threads; some have no row, or fewer panels than threads. */
const SHAPES = [
  ...[[1, 64, 8], [1, 300, 61], [1, 1031, 130], [3, 17, 200], [6, 1025, 64], [25, 70, 513], [64, 33, 1000]],
  // the rows that whole tiles leave, which alone would be few
  ...[[33, 1500, 16], [61, 1100, 9], [92, 1030, 24]],
];

for (const variant of ["relaxed", "simd"] as const) {
  for (const threads of [2, 3]) {
    test(`linear() of ${threads} threads has the bits of one (${variant})`, async () => {
      const [one, many] = [await openBackend({ prefer: "wasm", variant }), await openThreads({ threads, variant })];
      for (const dtype of ["f32", "bf16"] as const) {
        for (const shape of SHAPES) assertSameBits(...await both(one, many, (b) => product(b, shape, dtype)));
      }
      one.dispose();
      many.dispose();
    });
  }
}

async function both(
  one: Backend,
  many: Backend,
  run: (backend: Backend) => Tensor,
): Promise<[Float32Array, Float32Array, string]> {
  return [await many.read(run(many)), await one.read(run(one)), run.toString()];
}

function product(backend: Backend, [rows = 0, inFeatures = 0, outFeatures = 0]: number[], dtype: WeightDtype): Tensor {
  const next = random(rows + inFeatures);
  const x = tensorOf(backend, randomMatrix(next, rows, inFeatures));
  const weight = weightOf(backend, randomMatrix(next, outFeatures, inFeatures), dtype);
  const branches = [branchOf(backend, randomBranch(next, { inFeatures, outFeatures, rank: 5 }))];
  const bias = vectorOf(backend, randomMatrix(next, 1, outFeatures));
  return backend.linear(x, weight, { bias, adapters: [{ start: 0, end: rows, branches }] });
}

/** A chain of every operation that is split, on shapes that a seed picks. */
function chain(backend: Backend, seed: number): Tensor {
  const next = random(seed);
  const pick = (least: number, most: number) => least + Math.floor((next() + 1) / 2 * (most - least + 1));
  const [heads, half, rows, hidden] = [pick(1, 3), pick(1, 9), pick(1, 30), pick(1, 70)];
  const dim = heads * 2 * half;
  const x = tensorOf(backend, randomMatrix(next, rows, dim));
  const [cos, sin] = [
    tensorOf(backend, randomMatrix(next, rows, half)),
    tensorOf(backend, randomMatrix(next, rows, half)),
  ];
  const normal = backend.rmsNorm(x, vectorOf(backend, randomMatrix(next, 1, dim)), 1e-5);
  const q = backend.rope(normal, cos, sin);
  const cache = backend.reshape(q, [1, rows, dim]);
  const attended = backend.attention(q, cache, cache, { heads, kvHeads: heads, batch: 1, past: 0 });
  const up = backend.linear(attended, weightOf(backend, randomMatrix(next, hidden, dim), "bf16"));
  const gated = backend.siluMul(up, up);
  const y = backend.add(x, backend.linear(gated, weightOf(backend, randomMatrix(next, dim, hidden))));
  return backend.crossEntropy(y, new Uint32Array(rows));
}

test("many small operations in turns have the bits of one thread, also in memory that grew", async () => {
  const [one, many] = [await openBackend({ prefer: "wasm" }), await openThreads({ threads: 3 })];
  for (let seed = 0; seed < 60; seed++) {
    const [got, want] = await both(one, many, (b) => b.scope(() => chain(b, seed)));
    assertSameBits(got, want, `seed ${seed}`);
    if (seed % 20 === 0) many.tensor([1 << 20]); // later results lie behind it
  }
  one.dispose();
  many.dispose();
});

test("merge() and linearBackward() of 2 threads have the bits of one", async () => {
  const [one, many] = [await openBackend({ prefer: "wasm" }), await openThreads({ threads: 2 })];
  for (const [rows, inFeatures, outFeatures] of [[30, 130, 67], [33, 16, 70]] as const) {
    const results = await Promise.all([one, many].map(async (backend) => {
      const next = random(5);
      const weight = weightOf(backend, randomMatrix(next, outFeatures, inFeatures));
      const branch = branchOf(backend, randomBranch(next, { inFeatures, outFeatures, rank: 4 }));
      const x = tensorOf(backend, randomMatrix(next, rows, inFeatures));
      const dy = tensorOf(backend, randomMatrix(next, rows, outFeatures));
      const [dx, dw] = [backend.tensor([rows, inFeatures]), backend.tensor([outFeatures, inFeatures])];
      backend.linearBackward(dy, x, weight, { dx, dw });
      await backend.merge(weight, [branch]);
      const outputs = [dx, dw, backend.deltaWeight(branch)];
      return [await backend.readWeight(weight), ...await Promise.all(outputs.map((tensor) => backend.read(tensor)))];
    }));
    results[1]!.forEach((values, i) => assertSameBits(values, results[0]![i]!, `result ${i} of ${rows} rows`));
  }
  one.dispose();
  many.dispose();
});

test("workers start with the first large operation, which does not wait for them", async () => {
  const { workers, make } = watched();
  const backend = await openBackend({ prefer: "wasm", threads: 3, worker: make });
  assert.deepEqual([backend.info.threads, workers.length], [3, 0]);
  const small = backend.tensor([2, 2], Float32Array.of(1, 2, 3, 4));
  backend.add(small, small);
  assert.equal(workers.length, 0);
  largeProduct(backend);
  assert.equal(workers.length, 2);
  await untilThreads(backend);
  assert.equal(workers.length, 2);
  backend.dispose();
});

const BROKEN = {
  "a worker cannot be made": () => {
    throw new Error("no worker today");
  },
  "a worker's code throws": watched(() => "throw new Error('no worker today')").make,
  "a worker does not see the memory": watched((code) => code.replace("kernels.add(", "((y) => y)(")).make,
};

for (const [what, worker] of Object.entries(BROKEN)) {
  test(`one thread computes, and info says why, when ${what}`, async () => {
    const backend = await openBackend({ prefer: "wasm", threads: 2, worker });
    const one = await openBackend({ prefer: "wasm" });
    for (let i = 0; i < 4000 && backend.info.threads > 1; i++) {
      backend.scope(() => void largeProduct(backend));
      await new Promise((resolve) => setTimeout(resolve, 1));
    }
    assert.equal(backend.info.threads, 1);
    assert.match(backend.info.reason, /one thread: .*(no worker today|do not see|could not start)/);
    assertSameBits(...await both(one, backend, largeProduct));
    one.dispose();
    backend.dispose();
  });
}

test("one thread computes, and info says why, where memory cannot be shared", async () => {
  const own = Object.getOwnPropertyDescriptor(globalThis, "SharedArrayBuffer")!;
  Object.defineProperty(globalThis, "SharedArrayBuffer", { value: undefined, configurable: true });
  try {
    const { info } = await openBackend({ prefer: "wasm", threads: "auto" });
    assert.deepEqual([info.threads, /one thread: .*(SharedArrayBuffer|isolated)/.test(info.reason)], [1, true]);
  } finally {
    Object.defineProperty(globalThis, "SharedArrayBuffer", own);
  }
  const { KERNELS } = await import("../src/wasm/kernels_simd.ts");
  const bytes = Uint8Array.from(atob(KERNELS), (character) => character.charCodeAt(0));
  const compiled = await openBackend({ prefer: "wasm", threads: 2, wasm: new WebAssembly.Module(bytes) });
  assert.match(compiled.info.reason, /one thread: a compiled module/);
  const given = await openBackend({ prefer: "wasm", threads: 2, wasm: bytes });
  assert.deepEqual([given.info.variant, given.info.threads], ["given", 2]);
});

/** What may happen to a worker in the middle of a part, as a change of its code. */
const DEATHS = {
  "hangs in a part": (code: string) => code.replace("run(left - 1)", "wait(words, 15, 0)"),
  "throws in a part": (code: string) => code.replace("run(left - 1)", "null.x"),
};

for (const [what, change] of Object.entries(DEATHS)) {
  test(`a worker that ${what} gives an error within 5 s, and no operation works after it`, async () => {
    const backend = await openThreads({ threads: 2, worker: watched(change).make });
    const weight = weightOf(backend, randomMatrix(random(1), 512, 512));
    const x = backend.tensor([512, 512]);
    const start = performance.now();
    assert.throws(() => {
      for (let i = 0; i < 2000; i++) backend.linear(x, weight).dispose();
    }, { name: "BackendUnavailableError", code: "worker-lost" });
    assert.throws(() => backend.add(x, x), BackendUnavailableError);
    await assert.rejects(() => backend.read(x), BackendUnavailableError);
    assert.ok(performance.now() - start < 5000);
    backend.dispose();
    assert.throws(() => backend.tensor([1]), { name: "DisposedError" });
  });
}

/** Computes until that fails, at most 10 s, and fails unless it does within `most` ms, by a lost worker. */
async function assertLost(backend: Backend, most: number): Promise<void> {
  const start = performance.now();
  await assert.rejects(async () => {
    for (; performance.now() - start < 10_000; await new Promise((resolve) => setTimeout(resolve, 20))) {
      backend.scope(() => void largeProduct(backend));
    }
  }, { name: "BackendUnavailableError", code: "worker-lost" });
  assert.ok(performance.now() - start < most, `${performance.now() - start} ms`);
  backend.dispose();
}

test("a worker that is terminated between operations gives an error within 5 s", async () => {
  const { workers, make } = watched();
  const backend = await openThreads({ threads: 2, worker: make });
  await backend.read(largeProduct(backend));
  await workers[0]!.terminate();
  // Chromium leaves a terminated worker 2 s to come back to its event loop; until then it computes.
  await assertLost(backend, "document" in globalThis ? 9000 : 5000);
});

test("a worker that falls silent between operations gives an error within 5 s", async () => {
  // After the self-test it never sees another operation; the caller does not need it to finish one.
  const { make } = watched((code) => code.replace("store(words, WORD.seen", "if (last > 2) wait(words, 15, 0);\n$&"));
  await assertLost(await openThreads({ threads: 2, worker: make }), 5000);
});

test("a backend that rested answers at once and with all threads", async () => {
  const backend = await openThreads({ threads: 2 });
  const want = await backend.read(largeProduct(backend));
  await new Promise((resolve) => setTimeout(resolve, 1300)); // longer than a worker may be silent
  assertSameBits(await backend.read(largeProduct(backend)), want, "after the rest");
  assert.match(backend.info.reason, /2 threads$/);
  backend.dispose();
});

test("100 backends opened and disposed leave no worker and no memory", async () => {
  let alive = 0;
  const { workers, make } = watched();
  for (let i = 0; i < 100; i++) {
    const backend = i % 10 === 0
      ? await openThreads({ threads: 2, worker: make })
      : await openBackend({ prefer: "wasm", threads: 2, worker: make });
    if (i % 5 === 0) largeProduct(backend); // workers that are still starting have to end too
    const worker = workers.at(-1);
    if (worker?.on && i % 5 === 0) { // a page is not told
      alive++;
      worker.on("exit", () => alive--);
    }
    backend.dispose();
    assert.equal(backend.bytes, 0);
  }
  assert.equal(workers.length, 20);
  for (let i = 0; i < 500 && alive > 0; i++) await new Promise((resolve) => setTimeout(resolve, 10));
  assert.equal(alive, 0);
});

test("a backend that is never disposed lets the program end", async () => {
  // The file's process would not end otherwise, in any runtime.
  assert.equal((await openThreads({ threads: 2 })).info.threads, 2);
});

test("openBackend() refuses a number of threads that is none", async () => {
  for (const threads of [0, -1, 1.5, NaN, "two" as "auto"]) {
    await assert.rejects(() => openBackend({ threads }), { name: "RangeError", message: /threads/ });
  }
});
