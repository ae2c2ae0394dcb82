import assert from "node:assert/strict";
import type { Backend, Tensor, Weight } from "../src/backend.ts";
import { OutOfMemoryError } from "../src/errors.ts";
import { forEachBackend } from "./backends.ts";
import { assertSameBits } from "./compare.ts";
import { random, randomMatrix, tensorOf, vectorOf, weightOf } from "./values.ts";

const [ROWS, IN, OUT, RANK] = [7, 20, 12, 3];

/** Tensors and weights by the names of the formulas. */
interface Operands {
  readonly x: Tensor;
  readonly dy: Tensor;
  readonly bias: Tensor;
  readonly gain: Tensor;
  readonly angles: Tensor;
  readonly w: Weight;
  readonly a: Weight;
  readonly b: Weight;
  readonly dx: Tensor;
  readonly dw: Tensor;
  readonly da: Tensor;
  readonly db: Tensor;
  readonly dbias: Tensor;
  readonly cache: Tensor;
}

function makeOperands(backend: Backend): Operands {
  const next = random(1);
  const tensor = (rows: number, columns: number) => tensorOf(backend, randomMatrix(next, rows, columns));
  const weight = (rows: number, columns: number) => weightOf(backend, randomMatrix(next, rows, columns));
  return {
    x: tensor(ROWS, IN),
    dy: tensor(ROWS, OUT),
    bias: vectorOf(backend, randomMatrix(next, 1, OUT)),
    gain: vectorOf(backend, randomMatrix(next, 1, IN)),
    angles: tensor(ROWS, IN / 2),
    w: weight(OUT, IN),
    a: weight(RANK, IN),
    b: weight(OUT, RANK),
    dx: tensor(ROWS, IN),
    dw: tensor(OUT, IN),
    da: tensor(RANK, IN),
    db: tensor(OUT, RANK),
    dbias: vectorOf(backend, randomMatrix(next, 1, OUT)),
    cache: backend.tensor([1, ROWS, IN], new Float32Array(ROWS * IN).fill(0.5)),
  };
}

const rows = Uint32Array.of(0, 3, 1);

/** Every operation that allocates; what it returns is disposed. */
const OPERATIONS: Readonly<Record<string, (backend: Backend, o: Operands) => Tensor | Weight | Promise<void> | void>> =
  {
    tensor: (backend) => backend.tensor([ROWS, IN]),
    weight: (backend) => weightOf(backend, randomMatrix(random(2), OUT, IN), "bf16"),
    linear: (backend, { x, w, bias }) => backend.linear(x, w, { bias }),
    "linear with branches": (backend, { x, w, a, b }) => {
      const branches = [{ a, b, scaling: 0.5 }, { a, b, scaling: 2 }];
      return backend.linear(x, w, { adapters: [{ start: 0, end: 2, branches }, { start: 2, end: 7, branches }] });
    },
    linearBackward: (backend, { dy, x, w, a, b, dx, dw, da, db, dbias }) => {
      const adapters = [{ start: 0, end: ROWS, branches: [{ a, b, scaling: 0.5, da, db }] }];
      backend.linearBackward(dy, x, w, { dx, dw, dbias, adapters });
    },
    deltaWeight: (backend, { a, b }) => backend.deltaWeight({ a, b, scaling: 1 }),
    merge: async (backend, { w, a, b }) => {
      await backend.merge(w, [{ a, b, scaling: 1 }]);
      backend.unmerge(w);
    },
    embedding: (backend, { w }) => backend.embedding(rows, w),
    takeRows: (backend, { x }) => backend.takeRows(x, rows),
    rmsNorm: (backend, { x, gain }) => backend.rmsNorm(x, gain, 1e-5),
    rope: (backend, { x, angles }) => backend.rope(x, angles, angles),
    attention: (backend, { x, cache }) =>
      backend.attention(x, cache, cache, { heads: 2, kvHeads: 2, batch: 1, past: 0 }),
    siluMul: (backend, { x }) => backend.siluMul(x, x),
    add: (backend, { x }) => backend.add(x, x),
    crossEntropy: (backend, { x }) => backend.crossEntropy(x, new Uint32Array(ROWS)),
  };

/** Runs `body` while at most one free run of `bytes` is left and WebAssembly memory does not grow. */
async function withFreeBytes(backend: Backend, bytes: number, body: () => Promise<void>): Promise<void> {
  const prototype = WebAssembly.Memory.prototype;
  const grow = prototype.grow;
  const room = backend.tensor([Math.max(bytes / 4, 1)]);
  const wall = backend.tensor([1]);
  prototype.grow = () => {
    throw new RangeError("memory would not grow");
  };
  const fillers = fill(backend);
  try {
    if (bytes > 0) room.dispose();
    await body();
  } finally {
    prototype.grow = grow;
    for (const tensor of [room, wall, ...fillers]) tensor.dispose();
  }
}

function fill(backend: Backend): Tensor[] {
  const fillers: Tensor[] = [];
  for (let size = 1 << 18; size >= 16; size /= 2) {
    try {
      for (let i = 0; i < 40; i++) fillers.push(backend.tensor([size]));
    } catch (error) {
      assert.ok(error instanceof OutOfMemoryError, String(error));
    }
  }
  return fillers;
}

function isTensor(handle: Tensor | Weight): handle is Tensor {
  return "size" in handle;
}

async function tryWith(backend: Backend, name: string, bytes: number): Promise<boolean> {
  const operands = makeOperands(backend);
  const tensors = Object.values(operands).filter(isTensor);
  const before = await Promise.all(tensors.map((tensor) => backend.read(tensor)));
  let succeeded = false;
  await withFreeBytes(backend, bytes, async () => {
    const held = backend.bytes;
    try {
      const result = await OPERATIONS[name]!(backend, operands);
      if (result) result.dispose();
      succeeded = true;
    } catch (error) {
      assert.ok(error instanceof OutOfMemoryError, `${name} with ${bytes} bytes free: ${error}`);
      for (const [i, tensor] of tensors.entries()) {
        assertSameBits(await backend.read(tensor), before[i]!, `${name} with ${bytes} bytes free: operand ${i}`);
      }
    }
    assert.equal(backend.bytes, held, `${name} with ${bytes} bytes free holds memory`);
  });
  assert.equal(operands.w.merged, false);
  for (const handle of Object.values(operands)) handle.dispose();
  return succeeded;
}

for (const name of Object.keys(OPERATIONS)) {
  forEachBackend(`${name}() without enough memory throws, changes nothing, and works with more`, async (backend) => {
    let bytes = 0;
    while (!await tryWith(backend, name, bytes)) {
      bytes += 64 * Math.max(1, Math.floor(bytes / 640));
      assert.ok(bytes < 1 << 22, `${name} still fails with ${bytes} bytes free`);
    }
    assert.equal(backend.bytes, 0);
  });
}
