import assert from "node:assert/strict";
import type { MatrixValues } from "../src/backend.ts";
import { forEachBackend } from "./backends.ts";
import { assertSameBits } from "./compare.ts";
import { matrix, transpose } from "./reference.ts";
import { random, randomMatrix, roundToBf16, storedF32, weightOf } from "./values.ts";

/** [out, in] around the panels of 8. */
const SIZES = [[0, 3], [3, 0], [1, 1], [1, 9], [7, 5], [8, 8], [9, 1], [15, 6], [16, 3], [17, 31], [5, 1025]] as const;

forEachBackend("readWeight() returns what weight() packed, in either order of storage", async (backend) => {
  const next = random(1);
  for (const dtype of ["f32", "bf16"] as const) {
    for (const [rows, columns] of SIZES) {
      const values = randomMatrix(next, rows, columns, { dtype });
      const label = `[${rows}, ${columns}] ${dtype}`;
      const weight = weightOf(backend, values, dtype);
      assert.deepEqual([[...weight.shape], weight.dtype, weight.merged], [[rows, columns], dtype, false], label);
      assertSameBits(await backend.readWeight(weight), values, label);
      const transposed = backend.weight(storedF32(transpose(values)), { dtype, transposed: true });
      assert.deepEqual([...transposed.shape], [rows, columns], label);
      assertSameBits(await backend.readWeight(transposed), values, `${label}, transposed`);
    }
  }
});

forEachBackend("weight() packs a matrix of several megabytes whole", async (backend) => {
  const values = matrix(1101, 1003, (i, j) => (i * 1003 + j) % 8191 - 4096);
  assertSameBits(await backend.readWeight(weightOf(backend, values)), values, "row-major");
  const transposed = backend.weight(storedF32(values), { transposed: true });
  assertSameBits(await backend.readWeight(transposed), transpose(values), "transposed");
});

/** Every bit pattern of a 16-bit type, as a matrix of an odd width. */
function allPatterns(dtype: "f16" | "bf16"): MatrixValues {
  const bytes = new Uint8Array(2 * 257 * 256);
  const view = new DataView(bytes.buffer);
  for (let pattern = 0; pattern < 65_536; pattern++) view.setUint16(2 * pattern, pattern, true);
  return { shape: [256, 257], dtype, bytes };
}

function decode(pattern: number, dtype: "f16" | "bf16"): number {
  const [exponentBits, mantissaBits] = dtype === "f16" ? [5, 10] : [8, 7];
  const sign = pattern >>> 15 ? -1 : 1;
  const exponent = (pattern >>> mantissaBits) & (2 ** exponentBits - 1);
  const mantissa = (pattern & (2 ** mantissaBits - 1)) / 2 ** mantissaBits;
  const bias = 2 ** (exponentBits - 1) - 1;
  if (exponent === 2 ** exponentBits - 1) return mantissa ? NaN : sign * Infinity;
  return sign * (exponent ? (1 + mantissa) * 2 ** (exponent - bias) : mantissa * 2 ** (1 - bias));
}

for (const dtype of ["f16", "bf16"] as const) {
  forEachBackend(`weight() widens every ${dtype} exactly, and rounds it to bf16`, async (backend) => {
    const stored = allPatterns(dtype);
    const exact = matrix(256, 257, (i, j) => i * 257 + j < 65_536 ? decode(i * 257 + j, dtype) : 0);
    assertSameBits(await backend.readWeight(backend.weight(stored)), exact, "in f32");
    const turned = backend.weight(stored, { transposed: true });
    assertSameBits(await backend.readWeight(turned), transpose(exact), "transposed");
    const rounded = matrix(256, 257, (i, j) => roundToBf16(exact.values[i * 257 + j]!));
    assertSameBits(await backend.readWeight(backend.weight(stored, { dtype: "bf16" })), rounded, "in bf16");
  });
}

/** Bits of f32 around every decision of the rounding to bf16. */
// deno-fmt-ignore
const PATTERNS = [
  0x00000000, 0x80000000, 0x00000001, 0x00007fff, 0x00008000, 0x00008001, 0x00018000, 0x007fffff, 0x00800000,
  0x3f800000, 0x3f807fff, 0x3f808000, 0x3f808001, 0x3f817fff, 0x3f818000, 0x3f818001, 0xbf808000, 0xbf818000,
  0x7f7f7fff, 0x7f7f8000, 0x7f7fffff, 0xff7fffff, 0x7f800000, 0xff800000, 0x7f800001, 0x7fffffff, 0xffffffff,
  0x7f808000, 0x7fc00000, 0xff808001,
];

forEachBackend("weight() rounds f32 to bf16 to nearest even; NaN stays NaN", async (backend) => {
  const bits = Uint32Array.from({ length: 31 * 33 }, (_, i) => PATTERNS[i] ?? Math.imul(i, 2654435761));
  const values = new Float32Array(bits.buffer);
  const stored = { shape: [31, 33], dtype: "f32", bytes: new Uint8Array(bits.buffer) } as const;
  const got = await backend.readWeight(backend.weight(stored, { dtype: "bf16" }));
  assertSameBits(got, values.map(roundToBf16), "rounded");
  const kept = await backend.readWeight(backend.weight(stored));
  assertSameBits(kept, values, "in f32");
});

forEachBackend("weight() reads bytes at any alignment, and keeps none of them", async (backend) => {
  const values = randomMatrix(random(2), 5, 7);
  const { bytes } = storedF32(values);
  for (const offset of [1, 2, 3]) {
    const file = new Uint8Array(bytes.length + offset + 5);
    file.set(bytes, offset);
    const stored = { shape: [5, 7], dtype: "f32", bytes: file.subarray(offset, offset + bytes.length) } as const;
    const weight = backend.weight(stored);
    file.fill(0xff);
    assertSameBits(await backend.readWeight(weight), values, `offset ${offset}`);
  }
});
