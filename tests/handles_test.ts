import assert from "node:assert/strict";
import type { Backend, Cache, Tensor, Weight } from "../src/backend.ts";
import { DisposedError } from "../src/errors.ts";
import { BACKENDS, forEachBackend } from "./backends.ts";
import { matrix } from "./reference.ts";
import { weightOf } from "./values.ts";

// deno-lint-ignore no-explicit-any -- tensors and weights in the order that each row of the table names
type Handles = any[];

interface Operation {
  readonly name: string;
  /** Shapes of the handles; a weight's is written after a "w", an int8 cache's after a "c". */
  readonly handles: readonly (readonly (number | "w" | "c")[])[];
  readonly run: (backend: Backend, handles: Handles) => unknown;
}

const ids = Uint32Array.of(0, 1);

const OPERATIONS: readonly Operation[] = [
  { name: "read", handles: [[2]], run: (b, [t]) => b.read(t) },
  { name: "write", handles: [[2]], run: (b, [t]) => b.write(t, new Float32Array(2)) },
  { name: "reshape", handles: [[2]], run: (b, [t]) => b.reshape(t, [1, 2]) },
  { name: "readWeight", handles: [["w", 3, 4]], run: (b, [w]) => b.readWeight(w) },
  {
    name: "linear",
    handles: [[2, 4], ["w", 3, 4], [3], ["w", 2, 4], ["w", 3, 2]],
    run: (backend, [x, w, bias, a, b]) =>
      backend.linear(x, w, { bias, adapters: [{ start: 0, end: 1, branches: [{ a, b, scaling: 1 }] }] }),
  },
  {
    name: "linearBackward",
    handles: [[2, 3], [2, 4], ["w", 3, 4], [2, 4], [3, 4], [3], ["w", 2, 4], ["w", 3, 2], [2, 4], [3, 2]],
    run: (backend, [dy, x, w, dx, dw, dbias, a, b, da, db]) =>
      backend.linearBackward(dy, x, w, {
        dx,
        dw,
        dbias,
        adapters: [{ start: 0, end: 2, branches: [{ a, b, scaling: 1, da, db }] }],
      }),
  },
  {
    name: "deltaWeight",
    handles: [["w", 2, 4], ["w", 3, 2]],
    run: (backend, [a, b]) => backend.deltaWeight({ a, b, scaling: 1 }),
  },
  {
    name: "merge",
    handles: [["w", 3, 4], ["w", 2, 4], ["w", 3, 2]],
    run: (backend, [w, a, b]) => backend.merge(w, [{ a, b, scaling: 1 }]),
  },
  { name: "embedding", handles: [["w", 3, 4]], run: (b, [table]) => b.embedding(ids, table) },
  { name: "takeRows", handles: [[3, 4]], run: (b, [x]) => b.takeRows(x, ids) },
  { name: "rmsNorm", handles: [[3, 4], [4]], run: (b, [x, gain]) => b.rmsNorm(x, gain, 1e-5) },
  { name: "rope", handles: [[3, 4], [3, 2], [3, 2]], run: (b, [x, cos, sin]) => b.rope(x, cos, sin) },
  { name: "append", handles: [[1, 5, 2], [2, 2]], run: (b, [cache, x]) => b.append(cache, x, 1) },
  {
    name: "attention",
    handles: [[2, 4], [1, 3, 4], [1, 3, 4]],
    run: (b, [q, keys, values]) => b.attention(q, keys, values, { heads: 2, kvHeads: 2, batch: 1, past: 1 }),
  },
  { name: "append to a cache", handles: [["c", 1, 5, 2, 4], [2, 8]], run: (b, [cache, x]) => b.append(cache, x, 1) },
  {
    name: "append of a cache",
    handles: [["c", 1, 5, 2, 4], ["c", 1, 3, 2, 4]],
    run: (b, [cache, x]) => b.append(cache, x, 1),
  },
  {
    name: "attention over caches",
    handles: [[2, 4], ["c", 1, 3, 2, 2], ["c", 1, 3, 2, 2]],
    run: (b, [q, keys, values]) => b.attention(q, keys, values, { heads: 2, kvHeads: 2, batch: 1, past: 1 }),
  },
  { name: "siluMul", handles: [[3], [3]], run: (b, [gate, up]) => b.siluMul(gate, up) },
  { name: "add", handles: [[3], [3]], run: (b, [x, y]) => b.add(x, y) },
  { name: "crossEntropy", handles: [[2, 3]], run: (b, [logits]) => b.crossEntropy(logits, ids) },
];

function make(backend: Backend, shape: readonly (number | "w" | "c")[]): Tensor | Weight | Cache {
  const lengths = shape.filter((length) => typeof length === "number");
  if (shape[0] === "c") return backend.cache(lengths as [number, number, number, number], "int8");
  if (shape[0] === "w") return weightOf(backend, matrix(lengths[0]!, lengths[1]!, () => 1));
  return backend.tensor(lengths);
}

forEachBackend("every operation refuses a disposed handle and changes nothing", async (backend) => {
  for (const { name, handles, run } of OPERATIONS) {
    await run(backend, handles.map((shape) => make(backend, shape)));
    for (const i of handles.keys()) {
      const made = handles.map((shape) => make(backend, shape));
      made[i]!.dispose();
      const held = backend.bytes;
      const label = `${name}() with handle ${i} disposed`;
      await assert.rejects(async () => await run(backend, made), DisposedError, label);
      assert.equal(backend.bytes, held, `${label} holds memory`);
    }
  }
});

forEachBackend("unmerge() refuses a disposed weight", async (backend) => {
  const [weight, a, b] = [[3, 4], [2, 4], [3, 2]].map((shape) => make(backend, ["w", ...shape]) as Weight);
  await backend.merge(weight!, [{ a: a!, b: b!, scaling: 1 }]);
  weight!.dispose();
  const held = backend.bytes;
  assert.throws(() => backend.unmerge(weight!), DisposedError);
  assert.equal(backend.bytes, held);
});

forEachBackend("every operation refuses a handle of another backend and changes nothing", async (backend) => {
  const other = await BACKENDS.find(({ skip }) => skip === undefined)!.open();
  try {
    for (const { name, handles, run } of OPERATIONS) {
      for (const i of handles.keys()) {
        const made = handles.map((shape, j) => make(i === j ? other : backend, shape));
        const held = [backend.bytes, other.bytes];
        const label = `${name}() with handle ${i} of another backend`;
        await assert.rejects(async () => await run(backend, made), TypeError, label);
        assert.deepEqual([backend.bytes, other.bytes], held, `${label} holds memory`);
      }
    }
  } finally {
    other.dispose();
  }
});

forEachBackend("every operation refuses to run after the backend was disposed", async (backend) => {
  const made = OPERATIONS.map(({ handles }) => handles.map((shape) => make(backend, shape)));
  backend.dispose();
  backend.dispose();
  for (const [i, { name, run }] of OPERATIONS.entries()) {
    await assert.rejects(async () => await run(backend, made[i]!), DisposedError, `${name}()`);
  }
  assert.throws(() => backend.tensor([1]), DisposedError);
  assert.throws(() => make(backend, ["w", 1, 1]), DisposedError);
  for (const handle of made.flat()) handle.dispose();
  assert.equal(backend.bytes, 0);
});
