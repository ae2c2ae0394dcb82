/** Embeddings whose adapters have factors, a magnitude, rows or a table of their own. */
import assert from "node:assert/strict";
import type { Backend, Tensor, WeightDtype } from "../src/backend.ts";
import { DisposedError, ShapeError } from "../src/errors.ts";
import type { SparseRows } from "../src/lora/embedding_rows.ts";
import { LoraEmbedding } from "../src/lora/lora_embedding.ts";
import type { AdapterSelection } from "../src/lora/selection.ts";
import { forEachBackend } from "./backends.ts";
import { assertSameBits } from "./compare.ts";
import { assertNear } from "./models_support.ts";
import { at, type Branch, type Matrix, matrix, transpose } from "./reference.ts";
import { differences, effectiveWeight, type Part, type PartTerm } from "./reference_layers.ts";
import { inverseNorms } from "./reference_rows.ts";
import { random, randomBranch, randomMatrix, storedF32, weightOf } from "./values.ts";

const [VOCAB, DIM, SCALE, PADDING] = [13, 6, 1.5, 2];
const IDS = Uint32Array.of(4, 2, 4, 12, 0, 7, 2, 9);

const stored = (m: Matrix, shape: readonly number[] = m.shape) => ({ ...storedF32(m), dtype: "F32" as const, shape });

/** As the adapter of a linear layer over the table: A is (rank, dim), B (vocab, rank), both turned in files. */
const factorsOf = ({ branch, magnitude }: Part) => ({
  loraA: stored(transpose(branch.b)),
  loraB: stored(transpose(branch.a)),
  scaling: branch.scaling,
  ...(magnitude && { magnitude: stored(magnitude, [DIM]) }),
});

function setUp(backend: Backend, dtype: WeightDtype = "f32") {
  const next = random(1);
  const branch = (rank: number, scaling: number): Branch => {
    return randomBranch(next, { inFeatures: DIM, outFeatures: VOCAB, rank, scaling });
  };
  const magnitude = () => matrix(1, DIM, () => Math.fround(2 + next()));
  const parts: Readonly<Record<string, Part>> = {
    plain: { branch: branch(2, 1.5) },
    dora: { branch: branch(3, 0.5), magnitude: magnitude() },
    other: { branch: branch(1, -1), magnitude: magnitude() },
  };
  const [table, rows] = [randomMatrix(next, VOCAB, DIM, { dtype }), randomMatrix(next, 2, DIM, { dtype })];
  const layer = new LoraEmbedding(backend, {
    weight: weightOf(backend, table, dtype),
    scale: SCALE,
    paddingId: PADDING,
    adapters: Object.fromEntries(Object.entries(parts).map(([name, part]) => [name, factorsOf(part)])),
  });
  layer.replaceFor("rows", { rows: { indices: [12, 4], rows: stored(rows) } });
  const own = matrix(VOCAB, DIM, (i, j) => i === 12 ? at(rows, 0, j) : i === 4 ? at(rows, 1, j) : at(table, i, j));
  return { layer, parts, table, rows, own };
}

const SELECTIONS: readonly AdapterSelection[] = [
  null,
  "plain",
  "dora",
  { dora: 0.4 },
  { plain: -0.5, dora: 1 },
  { dora: 1, plain: 1, other: 0.3 },
  "rows",
  { rows: 0.3, plain: 1 },
  ["plain", null, "dora", "dora", "rows", { dora: 1, plain: 1 }, null, "other"],
];

function choiceAt(selection: AdapterSelection, row: number): Readonly<Record<string, number>> {
  const choice = Array.isArray(selection) ? selection[row] : selection;
  if (choice === null) return {};
  return typeof choice === "string" ? { [choice]: 1 } : choice as Record<string, number>;
}

type Norms = ReadonlyMap<string, Matrix>;

/** y of one id: scale · row of the table with the adapters in it. */
function rowOf(setup: ReturnType<typeof setUp>, choice: Readonly<Record<string, number>>, id: number, norms?: Norms[]) {
  const names = Object.keys(choice).filter((name) => name in setup.parts);
  const terms = names.map((name): PartTerm => [setup.parts[name]!, choice[name]!]);
  const given = norms ?? names.map((name) => new Map([[name, normOf(setup, name, choice[name]!)]]));
  const constants = names.map((name, i) => given[i]!.get(name)!);
  const base = "rows" in choice ? setup.own : setup.table;
  const whole = effectiveWeight(base, terms, { columns: true, norms: constants });
  return matrix(1, DIM, (_, j) => SCALE * at(whole, id, j));
}

function normOf({ parts, table }: ReturnType<typeof setUp>, name: string, weight: number): Matrix {
  const { branch } = parts[name]!;
  return inverseNorms(table, { ...branch, scaling: branch.scaling * weight }, true);
}

forEachBackend("forward() applies factors, DoRA and rows, alone, mixed and per id", async (backend) => {
  const setup = setUp(backend);
  for (const adapter of SELECTIONS) {
    const got = await backend.read(setup.layer.forward(IDS, { adapter }));
    const want = [...IDS].flatMap((id, i) => [...rowOf(setup, choiceAt(adapter, i), id).values]);
    assertNear(got, want, 2e-6, JSON.stringify(adapter));
  }
  assert.deepEqual(setup.layer.forward(new Uint32Array(), { adapter: "plain" }).shape, [0, DIM]);
});

forEachBackend("backward() has sparse gradients, none of them for the padding", async (backend) => {
  for (const adapter of SELECTIONS) {
    const setup = setUp(backend);
    const { layer, parts, own, rows } = setup;
    const dy = randomMatrix(random(2), IDS.length, DIM);
    const gradients = new Map(Object.keys(parts).map((name) => [name, layer.gradients(name)]));
    layer.backward(backend.tensor(dy.shape, Float32Array.from(dy.values)), IDS, { adapter, gradients });
    const norms = [...IDS].map((_, i) => {
      const choice = choiceAt(adapter, i);
      const names = Object.keys(choice).filter((name) => name in parts);
      return names.map((name) => new Map([[name, normOf(setup, name, choice[name]!)]]));
    });
    const loss = () => {
      let sum = 0;
      IDS.forEach((id, i) => {
        const y = rowOf(setup, choiceAt(adapter, i), id, norms[i]!);
        for (let j = 0; j < DIM; j++) sum += at(dy, i, j) * at(y, 0, j);
      });
      return sum;
    };
    for (const [name, { db, dMagnitude, factorRows }] of gradients) {
      const { branch, magnitude } = parts[name]!;
      const label = `${JSON.stringify(adapter)} ${name}`;
      await assertGradient(backend, db, transpose(differences(branch.a, loss)), `${label} dB`);
      if (magnitude) await assertGradient(backend, dMagnitude!, differences(magnitude, loss), `${label} dm`);
      const want = differences(branch.b, loss);
      for (let r = 0; r < branch.b.shape[1]; r++) want.values[PADDING * branch.b.shape[1] + r] = 0;
      await assertNearDense(await densely(backend, factorRows, want.shape), want, `${label} dA`);
    }
    assert.equal(own.shape[0], VOCAB);
    assert.equal(rows.shape[0], 2);
    layer.dispose();
  }
});

async function assertGradient(backend: Backend, got: Tensor, want: Matrix, label: string): Promise<void> {
  await assertNearDense(await backend.read(got), want, label);
}

// deno-lint-ignore require-await -- awaited like the other check
async function assertNearDense(got: ArrayLike<number>, want: Matrix, label: string): Promise<void> {
  want.values.forEach((value, i) => assert.ok(Math.abs(value - got[i]!) < 5e-5, `${label}: ${got[i]}, not ${value}`));
}

async function densely(backend: Backend, pieces: readonly SparseRows[], shape: readonly [number, number]) {
  const dense = new Float64Array(shape[0] * shape[1]);
  for (const { ids, rows } of pieces) {
    assert.deepEqual([...ids], [...new Set(ids)].sort((a, b) => a - b), "each id once, ascending");
    const values = await backend.read(rows);
    ids.forEach((id, i) => {
      for (let j = 0; j < shape[1]; j++) dense[id * shape[1] + j]! += values[i * shape[1] + j]!;
    });
  }
  return dense;
}

forEachBackend("backward() sums the gradients of an adapter's own rows over their positions", async (backend) => {
  const { layer, parts } = setUp(backend);
  layer.addAdapter("both", factorsOf(parts["plain"]!));
  layer.replaceFor("both", { rows: { indices: [4], rows: stored(matrix(1, DIM, () => 1)) } });
  const gradients = new Map([["both", layer.gradients("both")]]);
  const dy = matrix(IDS.length, DIM, (i, j) => i + j / 8);
  layer.backward(backend.tensor(dy.shape, Float32Array.from(dy.values)), IDS, { adapter: "both", gradients });
  const [{ ids, rows }] = gradients.get("both")!.ownRows as [SparseRows];
  assert.deepEqual([...ids], [4]);
  assertNear(await backend.read(rows), matrix(1, DIM, (_, j) => SCALE * (2 + j / 4)).values, 1e-6, "row 4");
});

forEachBackend("merge() answers as the adapters do, and unmerge() restores every bit", async (backend) => {
  for (const dtype of ["f32", "bf16"] as const) {
    for (const adapter of SELECTIONS) {
      if (adapter === null || Array.isArray(adapter)) continue;
      const { layer, table } = setUp(backend, dtype);
      const want = await backend.read(layer.forward(IDS, { adapter }));
      await layer.merge(adapter as string);
      const label = `${dtype} ${JSON.stringify(adapter)}`;
      assertNear(await backend.read(layer.forward(IDS)), want, dtype === "f32" ? 2e-6 : 2 ** -8, label);
      assert.throws(() => layer.forward(IDS, { adapter }), RangeError);
      await assert.rejects(layer.merge("plain"), RangeError);
      layer.unmerge();
      assertSameBits(await backend.readWeight(layer.weight), table, label);
      layer.dispose();
    }
  }
});

forEachBackend("LoraEmbedding refuses what does not fit, and frees what adapters brought", (backend) => {
  const { layer, parts } = setUp(backend);
  const { loraA, loraB, scaling } = factorsOf(parts["plain"]!);
  const held = backend.bytes;
  assert.throws(() => layer.addAdapter("plain", { loraA: loraB, loraB: loraA, scaling }), ShapeError);
  const short = stored(matrix(1, DIM - 1, () => 1));
  assert.throws(() => layer.addAdapter("plain", { loraA, loraB, scaling, magnitude: short }), ShapeError);
  assert.throws(() => layer.replaceFor("rows", { rows: { indices: [1], rows: short } }), ShapeError);
  const row = stored(matrix(1, DIM, () => 1));
  assert.throws(() => layer.replaceFor("rows", { rows: { indices: [VOCAB], rows: row } }), ShapeError);
  assert.throws(() => layer.replaceFor("rows", { weight: short }), ShapeError);
  assert.equal(backend.bytes, held);
  layer.dispose();
  layer.weight.dispose();
  assert.equal(backend.bytes, 0);
  assert.throws(() => layer.forward(IDS), DisposedError);
});
