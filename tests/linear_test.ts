import assert from "node:assert/strict";
import type { Backend, WeightDtype } from "../src/backend.ts";
import { forEachBackend, forEachBuild } from "./backends.ts";
import { absoluteRows, assertClose, assertSameBits, runGuarded } from "./compare.ts";
import * as reference from "./reference.ts";
import { absolute, type Matrix, type RowBranches } from "./reference.ts";
import { random, randomBranch, randomMatrix, rowsOf, storedF32, tensorOf, vectorOf, weightOf } from "./values.ts";

const DTYPES: readonly WeightDtype[] = ["f32", "bf16"];
/** Below, at and above the tiles of 4, 5 and 6 rows, and the least rows of the GEMM path. */
const ROWS = [0, 1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 23, 24, 25];
/** [in, out]: around the panels of 8 columns, column blocks of 64 and 512, and K blocks of 256 and 1024. */
const SIZES = [
  [1, 1],
  [1, 9],
  [2, 7],
  [3, 8],
  [4, 16],
  [5, 17],
  [7, 1],
  [8, 8],
  [13, 23],
  [9, 65],
  [5, 521],
  [31, 5],
  [64, 40],
  [255, 3],
  [256, 9],
  [257, 8],
  [1023, 2],
  [1024, 7],
  [1025, 9],
  [1283, 1],
  [1030, 72],
  [2049, 8],
] as const;
/** For sizes whose reference takes long. */
const FEW_ROWS = [1, 5, 6, 7, 24, 25];

interface Case {
  readonly x: Matrix;
  readonly w: Matrix;
  readonly dtype: WeightDtype;
  readonly bias?: Matrix;
  readonly adapters?: readonly RowBranches[];
  readonly label: string;
}

function runOn(backend: Backend, { x, w, dtype, bias, adapters }: Case): Promise<Float32Array> {
  const input = tensorOf(backend, x);
  const weight = weightOf(backend, w, dtype);
  const options = {
    ...(bias && { bias: vectorOf(backend, bias) }),
    ...(adapters && { adapters: rowsOf(backend, adapters) }),
  };
  const inputs = options.bias ? [input, options.bias] : [input];
  return runGuarded(backend, { shape: [x.shape[0], w.shape[0]], inputs }, () => backend.linear(input, weight, options));
}

async function check(backend: Backend, c: Case): Promise<void> {
  const { x, w, bias, adapters = [], label } = c;
  const want = reference.linear(x, w, { ...(bias && { bias }), adapters });
  const scale = reference.linear(absolute(x), absolute(w), {
    ...(bias && { bias: absolute(bias) }),
    adapters: absoluteRows(adapters),
  });
  const ranks = adapters.flatMap(({ branches }) => branches.map(({ a }) => a.shape[0]));
  const k = w.shape[1] + ranks.reduce((sum, rank) => sum + rank, 0);
  assertClose(await runOn(backend, c), want, { k, scale, label });
}

function randomCase(next: () => number, rows: number, [k, n]: readonly [number, number], dtype: WeightDtype): Case {
  return {
    x: randomMatrix(next, rows, k),
    w: randomMatrix(next, n, k, { scale: 1 / Math.sqrt(k), dtype }),
    dtype,
    label: `x [${rows}, ${k}], W [${n}, ${k}] ${dtype}`,
  };
}

for (const dtype of DTYPES) {
  forEachBackend(`linear() is x Wᵀ + bias for every number of rows and size, with W in ${dtype}`, async (backend) => {
    const next = random(1);
    for (const [i, size] of SIZES.entries()) {
      const rowCounts = size[0] * size[1] < 1000 ? ROWS : FEW_ROWS;
      await Promise.all(rowCounts.map((rows) => {
        const plain = randomCase(next, rows, size, dtype);
        const bias = randomMatrix(next, 1, size[1]);
        return check(backend, i % 2 === 0 ? plain : { ...plain, bias, label: `${plain.label}, bias` });
      }));
    }
  });
}

forEachBackend("linear() of no input features is the bias, and of no output features is empty", async (backend) => {
  const next = random(2);
  const bias = randomMatrix(next, 1, 9);
  for (const rows of [1, 5, 25]) {
    const x = randomMatrix(next, rows, 0);
    await check(backend, { x, w: randomMatrix(next, 9, 0), dtype: "f32", bias, label: `x [${rows}, 0]` });
    const wide = randomMatrix(next, rows, 7);
    await check(backend, { x: wide, w: randomMatrix(next, 0, 7), dtype: "f32", label: `W [0, 7], ${rows} rows` });
  }
});

forEachBackend("linear() adds one scaled branch of any rank to all rows", async (backend) => {
  const next = random(3);
  for (const [k, n] of [[1, 1], [7, 9], [16, 8], [37, 17], [257, 11], [40, 70], [6, 521], [1029, 9]] as const) {
    const small = k * n < 700;
    const ranks = [...new Set(small ? [1, 2, 7, 8, 9, 16, 17, Math.min(k, n), k] : [1, 8, 17])];
    for (const rows of small ? [1, 2, 5, 6, 7, 13, 24, 25] : FEW_ROWS) {
      await Promise.all(ranks.map((rank) => {
        const plain = randomCase(next, rows, [k, n], rank % 2 === 0 ? "bf16" : "f32");
        const branch = randomBranch(next, { inFeatures: k, outFeatures: n, rank, scaling: -0.75 });
        const adapters = [{ start: 0, end: rows, branches: [branch] }];
        const bias = randomMatrix(next, 1, n);
        return check(backend, { ...plain, bias, adapters, label: `${plain.label}, r = ${rank}` });
      }));
    }
  }
});

/** Row ranges over 13 rows: [start, end, ...[rank, scaling] of each branch]. */
const RANGES: readonly (readonly (readonly [number, number, ...(readonly [number, number])[]])[])[] = [
  [],
  [[0, 13]],
  [[0, 0, [4, 1]]],
  [[13, 13, [4, 1]]],
  [[0, 13, [4, 0]]],
  [[0, 13, [4, 1], [3, 1]]],
  [[0, 13, [8, 0.5], [1, -2], [17, 0.25]]],
  [[0, 1, [4, 1]]],
  [[12, 13, [4, 1]]],
  [[3, 9, [5, 2]]],
  [[0, 6, [8, 1]], [6, 13, [8, 2]]],
  [[0, 1, [1, 1]], [1, 2, [16, 1]], [4, 4, [3, 1]], [5, 11, [7, 0.5], [2, 3]], [12, 13, [9, 1]]],
  [[0, 5], [5, 7, [23, 1]], [7, 13]],
];

forEachBackend("linear() gives each row range its own branches, and the other rows the base", async (backend) => {
  const next = random(4);
  for (const [k, n] of [[11, 9], [24, 16], [300, 7]] as const) {
    for (const ranges of RANGES) {
      const plain = randomCase(next, 13, [k, n], "f32");
      const adapters = ranges.map(([start, end, ...ranks]) => ({
        start,
        end,
        branches: ranks.map(([rank, scaling]) => randomBranch(next, { inFeatures: k, outFeatures: n, rank, scaling })),
      }));
      await check(backend, { ...plain, adapters, label: `${plain.label}, ranges ${JSON.stringify(ranges)}` });
    }
  }
});

forEachBackend("linear() of a mixed batch equals single-adapter batches row by row", async (backend) => {
  const next = random(5);
  const [k, n, rows] = [40, 19, 9];
  const plain = randomCase(next, rows, [k, n], "bf16");
  const branches = [3, 8, 11].map((rank) => randomBranch(next, { inFeatures: k, outFeatures: n, rank, scaling: 1.5 }));
  const ranges = [[0, 2, 0], [2, 3, 1], [4, 9, 2]] as const;
  const mixed = await runOn(backend, {
    ...plain,
    adapters: ranges.map(([start, end, i]) => ({ start, end, branches: [branches[i]!] })),
  });
  for (const [start, end, i] of ranges) {
    const adapters = [{ start: 0, end: rows, branches: [branches[i]!] }];
    const single = await runOn(backend, { ...plain, adapters });
    const [got, want] = [mixed, single].map((y) => y.subarray(start * n, end * n)) as [Float32Array, Float32Array];
    got.forEach((value, j) => {
      assert.ok(Math.abs(value - want[j]!) <= 1e-5, `range ${i}: got ${value}, want ${want[j]} at ${j}`);
    });
  }
  const base = await runOn(backend, plain);
  assertSameBits(mixed.subarray(3 * n, 4 * n), base.subarray(3 * n, 4 * n), "the row in no range");
});

forEachBuild(
  "linear() of a row has the same bits alone, with its own adapter, and in a mixed batch",
  async (backend) => {
    const next = random(55);
    for (const dtype of ["f32", "bf16", "f16", "f8", "nf4", "int8"] as const) {
      for (const [k, n] of [[40, 19], [1030, 72], [1283, 9]] as const) {
        const plain = { ...randomCase(next, 25, [k, n], "f32"), dtype };
        const branches = [3, 8, 11].map((rank) =>
          randomBranch(next, { inFeatures: k, outFeatures: n, rank, scaling: 1.5 })
        );
        const ranges = [[0, 2, [0]], [2, 3, [1]], [4, 9, [2, 0]], [9, 24, [1]]] as const;
        const adaptersOf = (rows: readonly (readonly [number, number, readonly number[]])[]) =>
          rows.map(([start, end, which]) => ({ start, end, branches: which.map((i) => branches[i]!) }));
        const mixed = await runOn(backend, { ...plain, adapters: adaptersOf(ranges) });
        const alone = async (row: number, count: number, which: readonly number[]) => {
          const x = reference.rowRange(plain.x, row, row + count);
          const got = await runOn(backend, { ...plain, x, adapters: adaptersOf([[0, count, which]]) });
          assertSameBits(
            got,
            mixed.subarray(row * n, (row + count) * n),
            `${dtype} [${n}, ${k}], ${count} from ${row}`,
          );
        };
        for (const [start, end, which] of ranges) {
          await alone(start, 1, which);
          await alone(start, end - start, which);
          if (end - start >= 5) { for (const count of [2, 3, 4, 5]) await alone(end - count, count, which); }
        }
        await alone(3, 1, []);
      }
    }
  },
);

forEachBackend("linear() with a zero B is the base, bit for bit", async (backend) => {
  const next = random(6);
  for (const rows of [1, 7, 25]) {
    const plain = randomCase(next, rows, [33, 10], "f32");
    const branch = randomBranch(next, { inFeatures: 33, outFeatures: 10, rank: 4 });
    const zero = { ...branch, b: reference.matrix(10, 4, () => 0) };
    const adapters = [{ start: 0, end: rows, branches: [zero] }];
    assertSameBits(await runOn(backend, { ...plain, adapters }), await runOn(backend, plain), `${rows} rows`);
  }
});

forEachBackend("linear() takes a weight stored (in, out)", async (backend) => {
  const next = random(7);
  for (const dtype of DTYPES) {
    const { x, w, label } = randomCase(next, 6, [21, 13], dtype);
    const weight = backend.weight(storedF32(reference.transpose(w)), { dtype, transposed: true });
    assert.deepEqual([...weight.shape], [13, 21]);
    const got = await backend.read(backend.linear(tensorOf(backend, x), weight));
    const scale = reference.linear(absolute(x), absolute(w));
    assertClose(got, reference.linear(x, w), { k: 21, scale, label });
  }
});

forEachBackend("linear() holds nothing but its result", (backend) => {
  const next = random(8);
  const plain = randomCase(next, 13, [70, 30], "bf16");
  const x = tensorOf(backend, plain.x);
  const weight = weightOf(backend, plain.w, "bf16");
  const branch = randomBranch(next, { inFeatures: 70, outFeatures: 30, rank: 5 });
  const adapters = rowsOf(backend, [{ start: 0, end: 4, branches: [branch, branch] }]);
  const held = backend.bytes;
  backend.linear(x, weight, { adapters }).dispose();
  assert.equal(backend.bytes, held);
});
