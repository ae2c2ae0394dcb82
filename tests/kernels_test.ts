/** Every export of both committed kernel builds against double precision, on shapes around the tiles. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { assertClose, KernelMemory, multiply, random, roundBf16, VARIANTS } from "./kernels_memory.ts";

const DTYPES = ["f32", "bf16"];

/** Runs `body` for both builds and both weight types. */
function everywhere(body: (memory: KernelMemory, dtype: number, label: string) => void): void {
  for (const variant of VARIANTS) {
    const memory = new KernelMemory(variant);
    for (const dtype of [0, 1]) body(memory, dtype, `${variant} ${DTYPES[dtype]}`);
  }
}

/** What a packed weight holds. */
function stored(values: Float32Array, dtype: number): Float32Array {
  return dtype === 0 ? values : values.map(roundBf16);
}

const SHAPES = [[1, 1], [3, 7], [8, 4], [9, 5], [7, 8], [17, 13], [64, 31], [0, 5], [5, 0]] as const;

test("pack() and unpack() restore every matrix, rounded once", () => {
  everywhere((memory, dtype, label) => {
    for (const [n, k] of SHAPES) {
      const values = random(n * k, n + k);
      for (const transposed of [0, 1]) {
        const turned = values.map((_, i) => values[(i % n) * k + Math.floor(i / n)]!);
        const source = memory.floats(transposed ? turned : values);
        const panels = memory.bytes(Math.ceil(n / 8) * 8 * k * (dtype === 0 ? 4 : 2));
        const back = memory.floats(n * k);
        memory.call.pack!(panels.at, source.at, n, k, 0, dtype, transposed);
        memory.call.unpack!(back.at, panels.at, n, k, dtype);
        assert.deepEqual(memory.read(back), stored(values, dtype), `${label} ${n} ${k} ${transposed}`);
        memory.release(label);
      }
    }
  });
});

test("pack() widens every f16 and bf16 exactly and keeps NaN", () => {
  everywhere((memory, dtype, label) => {
    for (const source of [1, 2]) {
      const bits = Uint16Array.from({ length: 65_536 }, (_, i) => i);
      const halves = memory.bytes(131_072, new Uint8Array(bits.buffer));
      const panels = memory.bytes(65_536 * 4);
      const back = memory.floats(65_536);
      memory.call.pack!(panels.at, halves.at, 64, 1024, source, dtype, 0);
      memory.call.unpack!(back.at, panels.at, 64, 1024, dtype);
      const want = Float32Array.from(bits, (h) => source === 1 ? fromBf16(h) : fromF16(h));
      const [got, rounded] = [memory.read(back), stored(want, dtype)];
      const wrong = got.findIndex((value, i) => !Object.is(value, rounded[i]));
      assert.equal(wrong, -1, `${label} from ${source}: bits ${wrong} give ${got[wrong]}, not ${rounded[wrong]}`);
      memory.release(label);
    }
  });
});

function fromBf16(bits: number): number {
  return new Float32Array(Uint32Array.of((bits << 16) >>> 0).buffer)[0]!;
}

function fromF16(bits: number): number {
  const [exponent, fraction] = [(bits >> 10) & 31, bits & 1023];
  const magnitude = exponent === 31
    ? (fraction ? NaN : Infinity)
    : exponent === 0
    ? fraction * 2 ** -24
    : (1024 + fraction) * 2 ** (exponent - 25);
  return bits & 0x8000 ? -magnitude : magnitude;
}

test("pack() pads rows to 8 with zeros", () => {
  everywhere((memory, dtype, label) => {
    const panels = memory.panels(random(3 * 5, 1), 3, 5, dtype);
    const back = memory.floats(8 * 5);
    memory.call.unpack!(back.at, panels.at, 8, 5, dtype);
    assert.deepEqual([...memory.read(back).subarray(15)].map(Math.abs), new Array(25).fill(0), label);
  });
});

const PRODUCTS = [
  // m, n, k, r
  ...[0, 1, 2, 3, 4, 5, 6, 7, 8, 11, 13].flatMap((m) => [[m, 9, 17, 1], [m, 16, 8, 17], [m, 1, 5, 0]]),
  [1, 8, 1, 1],
  [3, 0, 4, 2],
  [4, 7, 0, 3],
  [2, 5, 0, 0],
  [23, 65, 33, 5],
  [24, 67, 31, 17],
  [37, 130, 40, 8],
  [7, 13, 1031, 3],
  [25, 9, 1300, 2],
  [6, 523, 19, 4],
] as [number, number, number, number][];

test("linear() is x Wᵀ + bias + h Bᵀ and never reads y unless it accumulates", () => {
  everywhere((memory, dtype, label) => {
    for (const [m, n, k, r] of PRODUCTS) {
      for (const [bias, accumulate] of [[true, false], [false, true], [true, true], [false, false]]) {
        const [x, h, w, b] = [random(m * k, 1), random(m * r, 2), random(n * k, 3), random(n * r, 4)];
        const [bs, y0] = [random(n, 5), random(m * n, 6)];
        const y = memory.floats(accumulate ? y0 : m * n);
        const scratch = memory.bytes(memory.call.linear_scratch!(m, n, k, dtype));
        const [px, ph] = [memory.floats(x).at, r ? memory.floats(h).at : 0];
        const [pw, pb] = [memory.panels(w, n, k, dtype).at, memory.panels(b, n, r, 0).at];
        const pbias = bias ? memory.floats(bs).at : 0;
        memory.call.linear!(y.at, px, pw, dtype, pbias, ph, pb, m, n, k, r, 0, n, accumulate ? 1 : 0, scratch.at);
        const ws = stored(w, dtype);
        const want = multiply(
          m,
          n,
          k + r,
          (i, t) => t < k ? x[i * k + t]! : h[i * r + t - k]!,
          (j, t) => t < k ? ws[j * k + t]! : b[j * r + t - k]!,
        ).map((v, i) => v + (bias ? bs[i % n]! : 0) + (accumulate ? y0[i]! : 0));
        assertClose(memory.read(y), want, k + r + 2, `${label} ${[m, n, k, r]} ${bias} ${accumulate}`);
        memory.release(label);
      }
    }
  });
});

test("linear_backward_input() adds dy W", () => {
  everywhere((memory, dtype, label) => {
    for (const [m, k, n] of [...PRODUCTS, [8, 200, 70], [6, 64, 300], [2, 700, 20]]) {
      const [dy, w, dx0] = [random(m! * n!, 1), random(n! * k!, 2), random(m! * k!, 3)];
      const dx = memory.floats(dx0);
      const scratch = memory.bytes(memory.call.linear_backward_input_scratch!(m!, n!, k!, dtype));
      const [pdy, pw] = [memory.floats(dy).at, memory.panels(w, n!, k!, dtype).at];
      memory.call.linear_backward_input!(dx.at, pdy, pw, dtype, m!, n!, k!, 0, k!, scratch.at);
      const ws = stored(w, dtype);
      const want = multiply(m!, k!, n!, (i, t) => dy[i * n! + t]!, (j, t) => ws[t * k! + j]!).map((v, i) =>
        v + dx0[i]!
      );
      assertClose(memory.read(dx), want, n! + 1, `${label} ${[m, n, k]}`);
      memory.release(label);
    }
  });
});

test("linear_backward_weight() adds dyᵀ x, and column_sums() the column sums", () => {
  for (const variant of VARIANTS) {
    const memory = new KernelMemory(variant);
    for (const [m, n, k] of [...PRODUCTS, [300, 7, 70], [257, 17, 9]]) {
      const [dy, x, dw0, s0] = [random(m! * n!, 1), random(m! * k!, 2), random(n! * k!, 3), random(n!, 4)];
      const [dw, sums] = [memory.floats(dw0), memory.floats(s0)];
      const scratch = memory.bytes(memory.call.linear_backward_weight_scratch!(m!, n!, k!));
      const [pdy, px] = [memory.floats(dy).at, memory.floats(x).at];
      memory.call.linear_backward_weight!(dw.at, pdy, px, m!, n!, k!, n!, k!, scratch.at);
      memory.call.column_sums!(sums.at, pdy, 0, 1, m!, n!);
      const want = multiply(n!, k!, m!, (i, t) => dy[t * n! + i]!, (j, t) => x[t * k! + j]!).map((v, i) => v + dw0[i]!);
      const columns = multiply(1, n!, m!, () => 1, (j, t) => dy[t * n! + j]!).map((v, i) => v + s0[i]!);
      assertClose(memory.read(dw), want, m! + 1, `${variant} ${[m, n, k]}`);
      assertClose(memory.read(sums), columns, m! + 1, `${variant} ${[m, n, k]}`);
      memory.release(variant);
    }
  }
});

const ADAPTED = [[1, 1, [1]], [9, 7, [17]], [16, 31, [8, 1]], [23, 40, [3, 5, 16]], [8, 6, []], [64, 13, [4]]] as const;

test("merge() adds every branch and rounds once, in place too", () => {
  everywhere((memory, dtype, label) => {
    for (const [n, k, ranks] of ADAPTED) {
      const w = random(n * k, 1);
      const panels = memory.panels(w, n, k, dtype);
      const records = memory.bytes(ranks.length * 16);
      const want = Float64Array.from(stored(w, dtype));
      ranks.forEach((r, i) => {
        const [a, b, s] = [random(r * k, i + 2), random(n * r, i + 9), 0.5 + i];
        const place = [memory.panels(a, r, k, 0).at, memory.panels(b, n, r, 0).at, r];
        const view = new DataView(memory.call.memory.buffer, records.at + i * 16);
        place.forEach((value, word) => view.setUint32(word * 4, value, true));
        view.setFloat32(12, s, true);
        multiply(n, k, r, (i, t) => s * b[i * r + t]!, (j, t) => a[t * k + j]!).forEach((v, i) => want[i]! += v);
      });
      const total = ranks.reduce((sum, r) => sum + r, 0);
      const scratch = memory.bytes(memory.call.merge_scratch!(k, total, dtype));
      for (const target of [memory.bytes(panels.length), panels]) {
        const size = [ranks.length, total, k, 0, Math.ceil(n / 8), scratch.at, 0] as const;
        assert.equal(memory.call.merge!(target.at, panels.at, dtype, records.at, ...size), 0, label);
        const merged = memory.floats(n * k);
        memory.call.unpack!(merged.at, target.at, n, k, dtype);
        const [terms, magnitude] = dtype ? [2 ** 14 + total, 2 ** -10] : [total + 2, 4];
        assertClose(memory.read(merged), want, terms, `${label} ${[n, k]}`, magnitude);
      }
      memory.release(label);
    }
  });
});

test("delta_weight() is s B A", () => {
  for (const variant of VARIANTS) {
    const memory = new KernelMemory(variant);
    for (const [n, k, ranks] of ADAPTED) {
      for (const r of ranks) {
        const [a, b, delta] = [random(r * k, 2), random(n * r, 9), memory.floats(n * k)];
        const scratch = memory.bytes(memory.call.delta_weight_scratch!(n, k, r));
        const [pa, pb] = [memory.panels(a, r, k, 0).at, memory.panels(b, n, r, 0).at];
        memory.call.delta_weight!(delta.at, pa, pb, -1.5, n, k, r, scratch.at);
        const want = multiply(n, k, r, (i, t) => -1.5 * b[i * r + t]!, (j, t) => a[t * k + j]!);
        assertClose(memory.read(delta), want, r + 2, `${variant} ${[n, k, r]}`, 1.5);
        memory.release(variant);
      }
    }
  }
});

test("merge() returns 1 when a result is not finite, in its last element too", () => {
  everywhere((memory, dtype, label) => {
    const [n, k] = [9, 13];
    for (const bad of [0, n * k - 1]) {
      const w = random(n * k, 1);
      w[bad] = 3.3e38;
      const panels = memory.panels(w, n, k, dtype);
      const records = memory.bytes(16);
      const [a, b] = [
        memory.panels(random(k, 1).fill(1.5e19), 1, k, 0),
        memory.panels(random(n, 1).fill(1e18), n, 1, 0),
      ];
      const view = new DataView(memory.call.memory.buffer, records.at);
      [a.at, b.at, 1].forEach((value, word) => view.setUint32(word * 4, value, true));
      view.setFloat32(12, 1, true);
      const scratch = memory.bytes(memory.call.merge_scratch!(k, 1, dtype));
      const target = memory.bytes(panels.length);
      const size = [1, 1, k, 0, Math.ceil(n / 8), scratch.at, 0] as const;
      assert.equal(memory.call.merge!(target.at, panels.at, dtype, records.at, ...size), 1, label);
      memory.release(label);
    }
  });
});
