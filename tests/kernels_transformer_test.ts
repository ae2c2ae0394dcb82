/** The kernels around the linear layers against double precision, for both committed builds. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { assertClose, KernelMemory, random, roundBf16, VARIANTS } from "./kernels_memory.ts";

function everywhere(body: (memory: KernelMemory, label: string) => void): void {
  for (const variant of VARIANTS) body(new KernelMemory(variant), variant);
}

const COUNTS = [0, 1, 2, 3, 4, 5, 7, 8, 17, 67];

test("scale(), add() and silu_mul() work on every count", () => {
  everywhere((memory, label) => {
    for (const count of COUNTS) {
      const [a, b] = [random(count, 1).map((v) => v * 20), random(count, 2)];
      const [pa, pb, sum, product] = [memory.floats(a), memory.floats(b), memory.floats(count), memory.floats(count)];
      memory.call.add!(sum.at, pa.at, pb.at, count);
      memory.call.silu_mul!(product.at, pa.at, pb.at, count);
      memory.call.scale!(pb.at, -1.5, count);
      assertClose(memory.read(sum), a.map((v, i) => v + b[i]!), 1, label, 20);
      assertClose(memory.read(product), Float64Array.from(a, (v, i) => v / (1 + Math.exp(-v)) * b[i]!), 2, label, 20);
      assertClose(memory.read(pb), b.map((v) => -1.5 * v), 1, label);
      memory.release(label);
    }
  });
});

test("silu_mul() has e^x within 2 ulp from underflow to overflow", () => {
  everywhere((memory, label) => {
    const x = Float32Array.from({ length: 40_000 }, (_, i) => -100 + i / 200);
    const values = [memory.floats(x), memory.floats(x.map(() => 1)), memory.floats(x.length)] as const;
    memory.call.silu_mul!(values[2].at, values[0].at, values[1].at, x.length);
    memory.read(values[2]).forEach((got, i) => {
      const want = x[i]! / (1 + Math.exp(-x[i]!));
      if (x[i]! < -87) return assert.ok(Math.abs(got - want) < 1e-35, `${label}: silu(${x[i]}) is ${got}`);
      assert.ok(
        Math.abs(got - want) <= 4 * 2 ** -23 * Math.abs(want),
        `${label}: silu(${x[i]}) is ${got}, not ${want}`,
      );
    });
    memory.release(label);
  });
});

test("rms_norm() divides by the root of the mean square", () => {
  everywhere((memory, label) => {
    for (const [rows, dim] of [[1, 1], [3, 5], [2, 64], [4, 67], [0, 3]] as const) {
      for (const size of [1, 1e18, 1e-18]) {
        const [x, gain] = [random(rows * dim, 1).map((v) => v * size), random(dim, 2)];
        const [y, px, pg] = [memory.floats(rows * dim), memory.floats(x), memory.floats(gain)];
        memory.call.rms_norm!(y.at, px.at, pg.at, rows, dim, 1e-5);
        const want = Float64Array.from(x, (v, i) => {
          const row = x.subarray(Math.floor(i / dim) * dim, (Math.floor(i / dim) + 1) * dim);
          return v / Math.sqrt(row.reduce((sum, u) => sum + u ** 2, 0) / dim + Math.fround(1e-5)) * gain[i % dim]!;
        });
        assertClose(memory.read(y), want, 1, `${label} ${[rows, dim, size]}`, size < 1 ? 1e-14 : 1);
        memory.release(label);
      }
    }
  });
});

test("rope() rotates the halves of every head", () => {
  everywhere((memory, label) => {
    for (const [rows, heads, half] of [[1, 1, 1], [3, 2, 5], [2, 3, 32], [4, 1, 7]] as const) {
      const [x, cos, sin] = [random(rows * heads * 2 * half, 1), random(rows * half, 2), random(rows * half, 3)];
      const [y, px] = [memory.floats(x.length), memory.floats(x)];
      memory.call.rope!(y.at, px.at, memory.floats(cos).at, memory.floats(sin).at, rows, heads, half);
      const want = x.map((v, i) => {
        const [c, t] = [i % (2 * half), Math.floor(i / (heads * 2 * half)) * half + i % (2 * half) % half];
        return c < half ? v * cos[t]! - x[i + half]! * sin[t]! : v * cos[t]! + x[i - half]! * sin[t]!;
      });
      assertClose(memory.read(y), want, 1, `${label} ${[rows, heads, half]}`);
      memory.release(label);
    }
  });
});

test("embedding() and take_rows() gather rows, append() places them", () => {
  everywhere((memory, label) => {
    const [n, k, ids] = [19, 13, [18, 0, 7, 8, 7, 3, 4]];
    const table = random(n * k, 1);
    const at = memory.indices(ids).at;
    for (const dtype of [0, 1]) {
      const [panels, y] = [memory.panels(table, n, k, dtype), memory.floats(ids.length * k)];
      memory.call.embedding!(y.at, at, panels.at, dtype, ids.length, n, k);
      const want = ids.flatMap((id) => [...table.subarray(id * k, id * k + k)].map((v) => dtype ? roundBf16(v) : v));
      assert.deepEqual([...memory.read(y)], want, label);
    }
    const [source, taken] = [memory.floats(table), memory.floats(ids.length * k)];
    memory.call.take_rows!(taken.at, source.at, at, ids.length, k);
    assert.deepEqual([...memory.read(taken)], ids.flatMap((id) => [...table.subarray(id * k, id * k + k)]), label);

    const [batch, length, capacity, dim, past] = [2, 3, 7, 5, 2];
    const [cache, x] = [memory.floats(new Float32Array(batch * capacity * dim)), random(batch * length * dim, 2)];
    memory.call.append!(cache.at, memory.floats(x).at, batch, length, capacity, dim, past);
    const want = new Float32Array(batch * capacity * dim);
    want.set(x.subarray(0, length * dim), past * dim);
    want.set(x.subarray(length * dim), (capacity + past) * dim);
    assert.deepEqual(memory.read(cache), want, label);
    memory.release(label);
  });
});

test("cross_entropy() is stable for large logits", () => {
  everywhere((memory, label) => {
    for (const [rows, classes] of [[1, 1], [3, 2], [2, 7], [4, 67], [1, 4099]] as const) {
      for (const size of [1, 80, 1e4]) {
        const logits = random(rows * classes, 1).map((v) => v * size);
        const targets = Array.from({ length: rows }, (_, i) => (i * 31) % classes);
        const [loss, pl, pt] = [memory.floats(rows), memory.floats(logits), memory.indices(targets)];
        memory.call.cross_entropy!(loss.at, pl.at, pt.at, rows, classes);
        const want = targets.map((target, i) => {
          const row = Array.from(logits.subarray(i * classes, (i + 1) * classes));
          const most = Math.max(...row);
          return Math.log(row.reduce((sum, v) => sum + Math.exp(v - most), 0)) + most - row[target]!;
        });
        assertClose(memory.read(loss), want, 2, `${label} ${[rows, classes, size]}`);
        memory.release(label);
      }
    }
  });
});

interface Shape {
  batch: number;
  length: number;
  capacity: number;
  heads: number;
  kvHeads: number;
  dim: number;
  past: number;
  window: number;
}

/** Attention by its definition, one query at a time. */
function attend(q: Float32Array, keys: Float32Array, values: Float32Array, shape: Shape): Float64Array {
  const { batch, length, capacity, heads, kvHeads, dim, past, window } = shape;
  const y = new Float64Array(q.length);
  for (let row = 0; row < batch * length; row++) {
    const end = past + row % length + 1;
    const first = window ? Math.max(0, end - window) : 0;
    for (let h = 0; h < heads; h++) {
      const kv = Math.floor(h / (heads / kvHeads));
      const cell = (t: number) => ((Math.floor(row / length) * capacity + t) * kvHeads + kv) * dim;
      const scores = [];
      for (let t = first; t < end; t++) {
        let sum = 0;
        for (let c = 0; c < dim; c++) sum += q[(row * heads + h) * dim + c]! * keys[cell(t) + c]!;
        scores.push(sum / Math.sqrt(dim));
      }
      const most = Math.max(...scores);
      const total = scores.reduce((sum, s) => sum + Math.exp(s - most), 0);
      scores.forEach((s, i) => {
        for (let c = 0; c < dim; c++) {
          y[(row * heads + h) * dim + c]! += Math.exp(s - most) / total * values[cell(first + i) + c]!;
        }
      });
    }
  }
  return y;
}

const ATTENTION: [
  batch: number,
  length: number,
  heads: number,
  kvHeads: number,
  dim: number,
  past: number,
  window: number,
][] = [
  [1, 1, 1, 1, 1, 0, 0],
  [2, 1, 4, 2, 64, 13, 0],
  [1, 1, 3, 1, 33, 40, 8],
  [2, 3, 2, 2, 10, 5, 0],
  [1, 4, 2, 1, 8, 0, 0],
  [2, 5, 4, 2, 7, 3, 0],
  [1, 37, 3, 1, 12, 0, 0],
  [1, 31, 2, 2, 64, 22, 11],
  [1, 61, 1, 1, 5, 9, 1],
  [1, 9, 1, 1, 4, 1100, 0],
  [0, 4, 1, 1, 4, 0, 0],
  [1, 0, 1, 1, 4, 0, 0],
];

test("attention() sees the past, itself and no more, within its window", () => {
  everywhere((memory, label) => {
    for (const [batch, length, heads, kvHeads, dim, past, window] of ATTENTION) {
      const capacity = past + length + 3;
      const shape = { batch, length, capacity, heads, kvHeads, dim, past, window };
      const q = random(batch * length * heads * dim, 1).map((v) => v * 4);
      const cache = [2, 3].map((seed) => {
        const values = random(batch * capacity * kvHeads * dim, seed);
        const free = Math.floor((past + length) * kvHeads * dim);
        for (let b = 0; b < batch; b++) {
          values.fill(NaN, b * capacity * kvHeads * dim + free, (b + 1) * capacity * kvHeads * dim);
        }
        return values;
      });
      const [y, pq, pk, pv] = [memory.floats(q.length), memory.floats(q), ...cache.map((c) => memory.floats(c))];
      const scratch = memory.bytes(memory.call.attention_scratch!(length, past, heads, kvHeads, dim));
      const sizes = [length, capacity, heads, kvHeads, dim, past, window] as const;
      memory.call.attention!(y.at, pq!.at, pk!.at, pv!.at, ...sizes, 0, 0, batch * heads, scratch.at);
      assertClose(memory.read(y), attend(q, cache[0]!, cache[1]!, shape), dim + 20, `${label} ${sizes}`);
      memory.release(label);
    }
  });
});

test("peak_fma() and peak_read() return finite sums", () => {
  everywhere((memory, label) => {
    const buffer = memory.floats(random(1024, 1).fill(0.5));
    assert.equal(memory.call.peak_read!(buffer.at, 4096), 512, label);
    assert.ok(Number.isFinite(memory.call.peak_fma!(1000)), label);
    assert.equal(memory.call.peak_fma_flops!(), 96, label);
  });
});
