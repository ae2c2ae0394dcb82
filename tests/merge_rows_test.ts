import assert from "node:assert/strict";
import type { Backend, MatrixValues, MergeRowsOptions } from "../src/backend.ts";
import { NumericError, ShapeError } from "../src/errors.ts";
import { decodeBf16, encodeBf16 } from "../src/formats/bfloat16.ts";
import { decodeF16, encodeF16 } from "../src/formats/float16.ts";
import { forEachBackend } from "./backends.ts";
import { absoluteBranch, assertClose } from "./compare.ts";
import * as reference from "./reference.ts";
import { absolute } from "./reference.ts";
import { branchOf, random, randomBranch, randomMatrix } from "./values.ts";

type StoredDtype = MergeRowsOptions["dtype"];
const DTYPES: readonly StoredDtype[] = ["f32", "bf16", "f16"];

/** [rows, columns, ranks of the branches]. */
const SIZES: readonly (readonly [number, number, readonly number[]])[] = [
  [1, 1, [1]],
  [0, 5, [2]],
  [5, 0, [2]],
  [7, 5, [1]],
  [8, 6, [8]],
  [13, 9, []],
  [4, 9, [3]],
  [12, 10, [2, 1]],
  [5, 24, [2, 16, 5]],
  [3, 259, [4]],
  [258, 5, [1, 1]],
];

function encode(values: Float32Array, dtype: StoredDtype): Uint8Array {
  if (dtype === "f32") return new Uint8Array(values.slice().buffer);
  return dtype === "bf16" ? encodeBf16(values) : encodeF16(values);
}

function decode(bytes: Uint8Array, dtype: StoredDtype): Float32Array {
  if (dtype === "f32") return new Float32Array(bytes.slice().buffer);
  return dtype === "bf16" ? decodeBf16(bytes) : decodeF16(bytes);
}

function rowsOf(values: Float32Array, shape: readonly [number, number], dtype: StoredDtype): MatrixValues {
  return { shape, dtype, bytes: encode(values, dtype) };
}

forEachBackend("mergeRows() is W + Σ s B A from and to every stored type", async (backend) => {
  if (!backend.mergeRows) return;
  const next = random(1);
  for (const [rows, columns, ranks] of SIZES) {
    for (const from of DTYPES) {
      const stored = rowsOf(Float32Array.from(randomMatrix(next, rows, columns).values), [rows, columns], from);
      const w = reference.matrix(rows, columns, (i, j) => decode(stored.bytes, from)[i * columns + j]!);
      const branches = ranks.map((rank, i) =>
        randomBranch(next, { inFeatures: columns, outFeatures: rows, rank, scaling: [2, -0.5, 0.75][i]! })
      );
      const uploaded = branches.map((branch) => branchOf(backend, branch));
      const held = backend.bytes;
      const exact = decode(await backend.mergeRows(stored, uploaded, { dtype: "f32" }), "f32");
      const label = `W [${rows}, ${columns}] ${from}, ranks [${ranks}]`;
      assertClose(exact, reference.merge(w, branches), {
        k: ranks.reduce((sum, rank) => sum + rank, 1),
        scale: reference.merge(absolute(w), branches.map(absoluteBranch)),
        label,
      });
      for (const to of DTYPES) {
        const got = await backend.mergeRows(stored, uploaded, { dtype: to });
        assert.deepEqual(got, encode(exact, to), `${label} to ${to}`);
      }
      assert.equal(backend.bytes, held, label);
    }
  }
});

/** Every f16, and its neighbours and middles in f32; every exponent of f32. */
function borderValues(): Float32Array {
  const values: number[] = [];
  const every = decodeF16(new Uint8Array(Uint16Array.from({ length: 0x7c00 }, (_, i) => i).buffer));
  for (let i = 1; i < every.length; i++) {
    const middle = (every[i]! + every[i - 1]!) / 2;
    values.push(every[i]!, -every[i]!, middle, middle * (1 + 2 ** -20), middle * (1 - 2 ** -20));
  }
  for (let exponent = -149; exponent <= 15; exponent++) values.push(2 ** exponent, -1.4999 * 2 ** exponent);
  return Float32Array.from(values).filter((value) => value !== 0);
}

forEachBackend("mergeRows() rounds to nearest even, subnormals included", async (backend) => {
  if (!backend.mergeRows) return;
  const values = borderValues();
  for (const to of DTYPES) {
    const got = await backend.mergeRows(rowsOf(values, [1, values.length], "f32"), [], { dtype: to });
    assert.deepEqual(got, encode(values, to), to);
  }
});

forEachBackend("mergeRows() refuses what is not finite in the type asked for, wherever it stands", async (backend) => {
  if (!backend.mergeRows) return;
  const size = [7, 13] as const;
  const plain = new Float32Array(size[0] * size[1]).fill(1);
  for (const [value, to] of [[NaN, "f32"], [Infinity, "bf16"], [65520, "f16"], [3.4e38, "bf16"]] as const) {
    for (let at = 0; at < plain.length; at++) {
      const rows = rowsOf(plain.with(at, value), size, "f32");
      await assert.rejects(backend.mergeRows(rows, [], { dtype: to }), NumericError, `${value} at ${at} to ${to}`);
    }
  }
  assert.ok(await backend.mergeRows(rowsOf(plain.fill(65519), size, "f32"), [], { dtype: "f16" }));
});

forEachBackend("mergeRows() refuses wrong arguments", async (backend: Backend) => {
  if (!backend.mergeRows) return;
  const rows = rowsOf(new Float32Array(6), [2, 3], "f32");
  const branch = branchOf(backend, randomBranch(random(2), { inFeatures: 3, outFeatures: 3, rank: 1 }));
  await assert.rejects(backend.mergeRows(rows, [branch], { dtype: "f32" }), ShapeError);
  await assert.rejects(backend.mergeRows({ ...rows, shape: [2, 2] }, [], { dtype: "f32" }), RangeError);
  await assert.rejects(backend.mergeRows(rows, [], { dtype: "f16", into: new Uint8Array(11) }), RangeError);
  const into = new Uint8Array(13).fill(7);
  const result = await backend.mergeRows(rows, [], { dtype: "f16", into });
  assert.deepEqual([result.buffer === into.buffer, result.length, [...into]], [true, 12, [...new Uint8Array(12), 7]]);
  await assert.rejects(backend.mergeRows(rows, [], { dtype: "f64" as never }), TypeError);
});
