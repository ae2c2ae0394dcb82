import assert from "node:assert/strict";
import { test } from "node:test";
import type { Backend, Tensor, WeightDtype } from "../src/backend.ts";
import { forEachBackend } from "./backends.ts";
import { absoluteRows, assertClose, assertSameBits } from "./compare.ts";
import * as reference from "./reference.ts";
import { absolute, add, type Branch, type LinearGradients, type Matrix, type RowBranches } from "./reference.ts";
import { random, randomBranch, randomMatrix, rowsOf, tensorOf, vectorOf, weightOf } from "./values.ts";

interface Case {
  readonly dy: Matrix;
  readonly x: Matrix;
  readonly w: Matrix;
  readonly dtype: WeightDtype;
  readonly adapters: readonly RowBranches[];
  readonly label: string;
}

/** [start, end, ...rank of each branch]. */
type Ranges = readonly (readonly [start: number, end: number, ...ranks: number[]])[];

function randomCase(rows: number, [k, n]: readonly [number, number], ranges: Ranges, dtype: WeightDtype): Case {
  const next = random(rows * 7919 + k * 31 + n);
  const scaling = 1.25;
  return {
    dy: randomMatrix(next, rows, n),
    x: randomMatrix(next, rows, k),
    w: randomMatrix(next, n, k, { scale: 1 / Math.sqrt(k), dtype }),
    dtype,
    adapters: ranges.map(([start, end, ...ranks]) => ({
      start,
      end,
      branches: ranks.map((rank) => randomBranch(next, { inFeatures: k, outFeatures: n, rank, scaling })),
    })),
    label: `x [${rows}, ${k}], W [${n}, ${k}] ${dtype}, ranges ${JSON.stringify(ranges)}`,
  };
}

/** The gradients as a flat list of named matrices, in one order for reference, scale and backend. */
function listed({ dx, dw, dbias, adapters }: LinearGradients): Map<string, Matrix> {
  const named: [string, Matrix][] = [["dx", dx], ["dw", dw], ["dbias", dbias]];
  adapters.forEach((branches, range) => {
    branches.forEach(({ da, db }, i) => named.push([`da ${range}.${i}`, da], [`db ${range}.${i}`, db]));
  });
  return new Map(named);
}

function scales({ dy, x, w, adapters }: Case): Map<string, Matrix> {
  return listed(reference.linearBackward(absolute(dy), absolute(x), absolute(w), absoluteRows(adapters)));
}

interface Run {
  /** The accumulators as they were. */
  readonly preset: Map<string, Matrix>;
  readonly results: Map<string, Float32Array>;
}

/** Runs the backend with accumulators preset to non-zero; only the `wanted` gradients are given. */
async function runOn(backend: Backend, c: Case, wanted: (name: string) => boolean = () => true): Promise<Run> {
  const next = random(99);
  const preset = new Map<string, Matrix>();
  const tensors = new Map<string, Tensor>();
  const accumulator = <Name extends string>(key: Name, name: string, rows: number, columns: number) => {
    const start = randomMatrix(next, rows, columns);
    const tensor = name === "dbias" ? vectorOf(backend, start) : tensorOf(backend, start);
    preset.set(name, start);
    tensors.set(name, tensor);
    return wanted(name) ? { [key]: tensor } as Record<Name, Tensor> : {};
  };
  const [n, k] = c.w.shape;
  const adapters = rowsOf(backend, c.adapters).map(({ start, end, branches }, range) => ({
    start,
    end,
    branches: branches.map((branch, i) => ({
      ...branch,
      ...accumulator("da", `da ${range}.${i}`, branch.a.shape[0], k),
      ...accumulator("db", `db ${range}.${i}`, n, branch.a.shape[0]),
    })),
  }));
  const options = {
    adapters,
    ...accumulator("dx", "dx", c.x.shape[0], k),
    ...accumulator("dw", "dw", n, k),
    ...accumulator("dbias", "dbias", 1, n),
  };
  const inputs = [tensorOf(backend, c.dy), tensorOf(backend, c.x)] as const;
  const weight = weightOf(backend, c.w, c.dtype);
  const held = backend.bytes;
  backend.linearBackward(...inputs, weight, options);
  assert.equal(backend.bytes, held, `${c.label}: bytes held`);
  const read = [...inputs, ...tensors.values()].map((tensor) => backend.read(tensor));
  const [dy, x, ...gradients] = await Promise.all(read);
  assertSameBits(dy!, c.dy, `${c.label}: dy`);
  assertSameBits(x!, c.x, `${c.label}: x`);
  assertSameBits(await backend.readWeight(weight), c.w, `${c.label}: W`);
  return { preset, results: new Map([...tensors.keys()].map((name, i) => [name, gradients[i]!])) };
}

function longestSum({ x, w, adapters }: Case): number {
  const ranks = adapters.flatMap(({ branches }) => branches.map(({ a }) => a.shape[0]));
  return x.shape[0] + Math.max(...w.shape) + ranks.reduce((sum, rank) => sum + rank, 0);
}

async function check(backend: Backend, c: Case): Promise<void> {
  const gradients = listed(reference.linearBackward(c.dy, c.x, c.w, c.adapters));
  const scale = scales(c);
  const { preset, results } = await runOn(backend, c);
  for (const [name, gradient] of gradients) {
    const start = preset.get(name)!;
    assertClose(results.get(name)!, add(start, gradient), {
      k: longestSum(c),
      scale: add(absolute(start), scale.get(name)!),
      label: `${c.label}: ${name}`,
    });
  }
}

const ROWS = [0, 1, 2, 3, 5, 6, 7, 13, 24, 25];
/** For sizes whose reference takes long. */
const FEW_ROWS = [1, 5, 6, 25];
/** [in, out]. */
const SIZES = [[1, 1], [1, 9], [3, 15], [7, 8], [8, 7], [9, 1], [16, 16], [37, 17], [255, 3], [5, 257], [70, 300], [
  130,
  521,
], [
  1025,
  9,
]] as const;

for (const dtype of ["f32", "bf16"] as const) {
  forEachBackend(`linearBackward() adds all gradients for every size, with W in ${dtype}`, async (backend) => {
    for (const [i, size] of SIZES.entries()) {
      const rowCounts = size[0] * size[1] < 1000 ? ROWS : FEW_ROWS;
      await Promise.all(rowCounts.map((rows) => {
        return check(backend, randomCase(rows, size, i % 2 ? [[0, rows, 1 + (i % 9)]] : [], dtype));
      }));
    }
  });
}

forEachBackend("linearBackward() sums over more rows than a block of them", async (backend) => {
  for (const rows of [255, 257, 513]) {
    for (const size of [[9, 11], [70, 17], [1, 1]] as const) {
      await check(backend, randomCase(rows, size, [[0, rows, 5]], "bf16"));
    }
  }
});

/** Over 13 rows. */
const RANGES: readonly Ranges[] = [
  [[0, 13, 1]],
  [[0, 13, 8]],
  [[0, 13, 9, 3]],
  [[0, 13, 17]],
  [[0, 0, 4]],
  [[13, 13, 4]],
  [[0, 1, 4]],
  [[12, 13, 4]],
  [[0, 6, 8], [6, 13, 2]],
  [[0, 1, 1], [1, 2, 16], [4, 4, 3], [5, 11, 7, 2], [12, 13, 9]],
  [[2, 3], [3, 9, 11]],
];

forEachBackend("linearBackward() adds the gradients of each row range's branches", async (backend) => {
  for (const ranges of RANGES) {
    for (const size of [[11, 9], [24, 16], [3, 130]] as const) {
      await check(backend, randomCase(13, size, ranges, "f32"));
    }
  }
});

forEachBackend("linearBackward() computes only the gradients asked for", async (backend) => {
  const c = randomCase(7, [19, 10], [[0, 4, 3, 9], [4, 7, 8]], "f32");
  const all = await runOn(backend, c);
  const names = [...all.results.keys()];
  for (const only of [...names, "none"]) {
    const { preset, results } = await runOn(backend, c, (name) => name === only);
    for (const name of names) {
      const want = name === only ? all.results.get(name)! : preset.get(name)!;
      assertSameBits(results.get(name)!, want, `${name} when asked for ${only}`);
    }
  }
});

forEachBackend("linearBackward() of per-row adapters equals one call per range", async (backend) => {
  const ranges: Ranges = [[0, 4, 3], [4, 5, 9], [7, 13, 8, 2]];
  const whole = randomCase(13, [21, 12], ranges, "bf16");
  const { preset, results } = await runOn(backend, whole);
  for (const [i, range] of whole.adapters.entries()) {
    const { start, end, branches } = range;
    const [dy, x] = [reference.rowRange(whole.dy, start, end), reference.rowRange(whole.x, start, end)];
    const adapters = [{ start: 0, end: end - start, branches }];
    const part = await runOn(backend, { ...whole, dy, x, adapters, label: `range ${i}` });
    for (const [name, gradient] of part.results) {
      if (!/^d[ab] /.test(name)) continue;
      const mixedName = name.replace("0.", `${i}.`);
      const before = part.preset.get(name)!.values;
      const mixedBefore = preset.get(mixedName)!.values;
      results.get(mixedName)!.forEach((value, j) => {
        const [got, want] = [value - mixedBefore[j]!, gradient[j]! - before[j]!];
        assert.ok(Math.abs(got - want) <= 1e-5, `${mixedName}: got ${got}, want ${want} at ${j}`);
      });
    }
  }
});

/** Central differences of Σ dy ∘ linear(x) along every element of one operand, in float64. */
function differences(operand: Matrix, loss: (operand: Matrix) => number, step = 1e-3): Matrix {
  return reference.matrix(...operand.shape, (row, column) => {
    const moved = (by: number) => {
      const values = operand.values.slice();
      values[row * operand.shape[1] + column]! += by;
      return loss({ ...operand, values });
    };
    return (moved(step) - moved(-step)) / (2 * step);
  });
}

const SMALL = randomCase(5, [6, 7], [[0, 2, 3], [2, 4, 1, 4]], "f32");

function differencesOf({ dy, x, w, adapters }: Case): Map<string, Matrix> {
  const zeroBias = reference.matrix(1, w.shape[0], () => 0);
  const loss = ({ input = x, weight = w, bias = zeroBias, rows = adapters }) =>
    reference.linear(input, weight, { bias, adapters: rows }).values.reduce((sum, y, i) => sum + y * dy.values[i]!, 0);
  const replaced = (range: number, index: number, part: Partial<Branch>) =>
    adapters.map((rows, i) => ({
      ...rows,
      branches: rows.branches.map((branch, j) => i === range && j === index ? { ...branch, ...part } : branch),
    }));
  return listed({
    dx: differences(x, (input) => loss({ input })),
    dw: differences(w, (weight) => loss({ weight })),
    dbias: differences(zeroBias, (bias) => loss({ bias })),
    adapters: adapters.map(({ branches }, range) =>
      branches.map(({ a, b }, i) => ({
        da: differences(a, (moved) => loss({ rows: replaced(range, i, { a: moved }) })),
        db: differences(b, (moved) => loss({ rows: replaced(range, i, { b: moved }) })),
      }))
    ),
  });
}

function assertWithin(got: ArrayLike<number>, want: Matrix, tolerance: number, label: string): void {
  assert.equal(got.length, want.values.length, label);
  want.values.forEach((value, i) => {
    const allowed = tolerance * Math.max(1, Math.abs(value));
    assert.ok(Math.abs(got[i]! - value) <= allowed, `${label}: got ${got[i]}, differences give ${value} at ${i}`);
  });
}

test("the reference's linearBackward() agrees with central differences of its linear()", () => {
  const { dy, x, w, adapters } = SMALL;
  const gradients = listed(reference.linearBackward(dy, x, w, adapters));
  for (const [name, want] of differencesOf(SMALL)) assertWithin(gradients.get(name)!.values, want, 1e-6, name);
});

forEachBackend("linearBackward() agrees with central differences of linear()", async (backend) => {
  const { preset, results } = await runOn(backend, SMALL);
  for (const [name, want] of differencesOf(SMALL)) {
    const before = preset.get(name)!.values;
    assertWithin(results.get(name)!.map((value, i) => value - before[i]!), want, 2e-3, name);
  }
});
