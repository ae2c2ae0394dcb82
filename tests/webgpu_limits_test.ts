/** Weights in several bindings, dispatches in two dimensions, and how many of them an operation takes. */
import { test } from "node:test";
import assert from "node:assert/strict";
import type { Backend, WeightDtype } from "../src/backend.ts";
import { OutOfMemoryError } from "../src/errors.ts";
import { openBackend } from "../src/open.ts";
import { absoluteBranch, absoluteRows, assertClose, assertSameBits } from "./compare.ts";
import * as reference from "./reference.ts";
import { absolute, add } from "./reference.ts";
import { branchOf, random, randomBranch, randomMatrix, rowsOf, tensorOf, vectorOf, weightOf } from "./values.ts";
import { gpuSkip, withGpu } from "./webgpu_support.ts";

const onGpu = await gpuSkip();

/** W (41, 30) is 6 panels of 960 bytes, two in a binding; A (40, 30) 5 panels; B (41, 40) 6 of 1280, one in each. */
const SMALL = { maxBinding: 2048, maxGroups: 3 };
const [OUT, IN, RANK] = [41, 30, 40];
const operands = (next: () => number, rows: number, dtype: WeightDtype) => ({
  x: randomMatrix(next, rows, IN),
  w: randomMatrix(next, OUT, IN, { scale: 0.2, dtype }),
  branch: randomBranch(next, { inFeatures: IN, outFeatures: OUT, rank: RANK }),
});

for (const dtype of ["f32", "bf16"] as const) {
  test(`linear() binds a weight in ${dtype} in pieces, with its bias and branches`, onGpu, async () => {
    await withGpu(async (backend) => {
      for (const rows of [1, 3, 12]) {
        const next = random(rows);
        const { x, w, branch } = operands(next, rows, dtype);
        const bias = randomMatrix(next, 1, OUT);
        const adapters = [{ start: 0, end: rows, branches: [branch, branch] }];
        const want = reference.linear(x, w, { bias, adapters });
        const options = { bias: absolute(bias), adapters: absoluteRows(adapters) };
        const scale = reference.linear(absolute(x), absolute(w), options);
        const got = backend.linear(tensorOf(backend, x), weightOf(backend, w, dtype), {
          bias: vectorOf(backend, bias),
          adapters: rowsOf(backend, adapters),
        });
        assertClose(await backend.read(got), want, { k: IN + 2 * RANK, scale, label: `${rows} rows` });
      }
    }, SMALL);
  });

  test(`merge(), unmerge(), readWeight() and embedding() of a weight in ${dtype} in pieces`, onGpu, async () => {
    await withGpu(async (backend) => {
      const { w, branch } = operands(random(1), 1, dtype);
      const weight = weightOf(backend, w, dtype);
      assertSameBits(await backend.readWeight(weight), w, "packed");
      const ids = Uint32Array.from({ length: 16 }, (_, i) => i * 29 % OUT);
      const rows = backend.embedding(ids, weight);
      assertSameBits(await backend.read(rows), reference.embedding(ids, w), "rows");
      const branches = [branch, { ...branch, scaling: -0.5 }];
      await backend.merge(weight, branches.map((one) => branchOf(backend, one)));
      const want = reference.merge(w, branches);
      const scale = reference.merge(absolute(w), branches.map(absoluteBranch));
      (await backend.readWeight(weight)).forEach((value, i) => {
        const rounding = dtype === "bf16" ? 2 ** -8 * Math.abs(want.values[i]!) : 0;
        const allowed = rounding + 1e-5 * scale.values[i]!;
        assert.ok(Math.abs(value - want.values[i]!) <= allowed, `got ${value}, want ${want.values[i]} at ${i}`);
      });
      backend.unmerge(weight);
      assertSameBits(await backend.readWeight(weight), w, "unmerged");
    }, SMALL);
  });
}

/** W (81, 300) of int4 is 11 panels of 1,472 bytes, six in a binding; of int8 of 2,912, three in one. */
for (const dtype of ["int4", "int8", "nf4"] as const) {
  test(`a weight in ${dtype} in pieces holds, and merges to, what it does in WebAssembly`, onGpu, async () => {
    const wasm = await openBackend({ prefer: "wasm", variant: "simd" });
    await withGpu(async (backend) => {
      const next = random(5);
      const source = randomMatrix(next, 81, 300);
      const branch = randomBranch(next, { inFeatures: 300, outFeatures: 81, rank: 5 });
      const [weight, twin] = [weightOf(backend, source, dtype), weightOf(wasm, source, dtype)];
      const w = { shape: source.shape, values: Float64Array.from(await wasm.readWeight(twin)) };
      assertSameBits(await backend.readWeight(weight), w, "packed");
      const ids = Uint32Array.of(80, 0, 47, 48, 49);
      assertSameBits(await backend.read(backend.embedding(ids, weight)), reference.embedding(ids, w), "rows");
      const x = randomMatrix(next, 8, 300);
      const got = await backend.read(backend.linear(tensorOf(backend, x), weight));
      const scale = reference.linear(absolute(x), absolute(w));
      assertClose(got, reference.linear(x, w), { k: 300, scale, label: "linear" });
      const report = await backend.merge(weight, [branchOf(backend, branch)]);
      assert.deepEqual(report, await wasm.merge(twin, [branchOf(wasm, branch)]));
      assertSameBits(await backend.readWeight(weight), await wasm.readWeight(twin), "merged");
      backend.unmerge(weight);
      assertSameBits(await backend.readWeight(weight), w, "unmerged");
    }, { maxBinding: 10_240 });
    wasm.dispose();
  });
}

test("linearBackward() and deltaWeight() read weights in pieces", onGpu, async () => {
  await withGpu(async (backend) => {
    const next = random(3);
    const { x, w, branch } = operands(next, 12, "f32");
    const dy = randomMatrix(next, 12, OUT);
    const start = randomMatrix(next, 12, IN);
    const dx = tensorOf(backend, start);
    const adapters = [{ start: 2, end: 12, branches: [branch] }];
    const options = { dx, adapters: rowsOf(backend, adapters) };
    backend.linearBackward(tensorOf(backend, dy), tensorOf(backend, x), weightOf(backend, w), options);
    const gradient = reference.linearBackward(dy, x, w, adapters).dx;
    const terms = reference.linearBackward(absolute(dy), absolute(x), absolute(w), absoluteRows(adapters)).dx;
    const judged = { k: OUT + IN + RANK, scale: add(absolute(start), terms), label: "dx" };
    assertClose(await backend.read(dx), add(start, gradient), judged);

    const small = randomBranch(next, { inFeatures: IN, outFeatures: 15, rank: RANK });
    const delta = await backend.read(backend.deltaWeight(branchOf(backend, small)));
    const zero = reference.matrix(15, IN, () => 0);
    const scale = reference.merge(zero, [absoluteBranch(small)]);
    assertClose(delta, reference.merge(zero, [small]), { k: RANK, scale, label: "delta" });
  }, SMALL);
});

test("a tensor, or one panel, beyond the largest binding is refused", onGpu, async () => {
  await withGpu((backend) => {
    assert.throws(() => backend.tensor([513]), OutOfMemoryError);
    assert.throws(() => weightOf(backend, randomMatrix(random(1), 1, 65)), OutOfMemoryError);
    assert.equal(backend.bytes, 0);
  }, SMALL);
});

test("a dispatch of more than 65,535 workgroups is folded", onGpu, async () => {
  await withGpu(async (backend) => {
    const size = 65_535 * 64 + 100;
    const x = backend.tensor([size], Float32Array.from({ length: size }, (_, i) => i));
    const wrong = (await backend.read(backend.add(x, x))).findIndex((value, i) => value !== 2 * i);
    assert.equal(wrong, -1, `element ${wrong}`);
  });
});

/** Dispatches and submissions while `body` runs and the results are read in one turn. */
async function count(
  backend: Backend & { readonly counts: { dispatches: number; submits: number } },
  body: () => Promise<unknown>,
): Promise<readonly [dispatches: number, submits: number]> {
  const before = backend.counts;
  await body();
  const after = backend.counts;
  return [after.dispatches - before.dispatches, after.submits - before.submits];
}

test(
  "a linear layer is one dispatch, two with an adapter for all rows, and reads of one turn share a submission",
  onGpu,
  async () => {
    await withGpu(async (backend) => {
      for (const rows of [1, 7, 40]) {
        const { x, w, branch } = operands(random(1), rows, "bf16");
        const [input, weight] = [tensorOf(backend, x), weightOf(backend, w, "bf16")];
        const adapters = rowsOf(backend, [{ start: 0, end: rows, branches: [branch] }]);
        const bias = backend.tensor([OUT]);
        const base = await count(backend, () => backend.read(backend.linear(input, weight, { bias })));
        assert.deepEqual(base, [1, 1]);
        const adapted = await count(backend, () => backend.read(backend.linear(input, weight, { bias, adapters })));
        assert.deepEqual(adapted, [2, 1]);
        const both = () => Promise.all([0, 1].map(() => backend.read(backend.linear(input, weight, { adapters }))));
        assert.deepEqual(await count(backend, both), [4, 1]);
      }
    });
  },
);
