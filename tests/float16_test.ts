import assert from "node:assert/strict";
import { test } from "node:test";
import { decodeBf16, encodeBf16 } from "../src/formats/bfloat16.ts";
import { toFloat32 } from "../src/formats/dtype.ts";
import { decodeF16, encodeF16 } from "../src/formats/float16.ts";

interface Codec {
  readonly name: string;
  readonly exponentBits: number;
  readonly mantissaBits: number;
  readonly decode: (bytes: Uint8Array) => Float32Array;
  readonly encode: (values: Float32Array) => Uint8Array;
}

const CODECS: readonly Codec[] = [
  { name: "F16", exponentBits: 5, mantissaBits: 10, decode: decodeF16, encode: encodeF16 },
  { name: "BF16", exponentBits: 8, mantissaBits: 7, decode: decodeBf16, encode: encodeBf16 },
];

/** The value of a pattern, straight from IEEE 754. */
function valueOf(pattern: number, { exponentBits, mantissaBits }: Codec): number {
  const sign = pattern >= 0x8000 ? -1 : 1;
  const exponent = (pattern & 0x7fff) >> mantissaBits;
  const mantissa = pattern & (2 ** mantissaBits - 1);
  const bias = 2 ** (exponentBits - 1) - 1;
  if (exponent === 2 ** exponentBits - 1) return mantissa === 0 ? sign * Infinity : NaN;
  if (exponent === 0) return sign * mantissa * 2 ** (1 - bias - mantissaBits);
  return sign * (2 ** mantissaBits + mantissa) * 2 ** (exponent - bias - mantissaBits);
}

function bytesOf(patterns: Iterable<number>): Uint8Array {
  return new Uint8Array(Uint16Array.from(patterns).buffer);
}

function patternsOf(bytes: Uint8Array): Uint16Array {
  return new Uint16Array(bytes.buffer, bytes.byteOffset, bytes.length / 2);
}

const ALL = Array.from({ length: 65536 }, (_, i) => i);

for (const codec of CODECS) {
  test(`decoding ${codec.name} gives the exact value of all 65,536 patterns`, () => {
    const values = codec.decode(bytesOf(ALL));
    for (const pattern of ALL) {
      if (!Object.is(values[pattern], valueOf(pattern, codec))) {
        assert.fail(`pattern ${pattern}: ${values[pattern]} is not ${valueOf(pattern, codec)}`);
      }
    }
  });

  test(`encoding ${codec.name} gives back every pattern, and a quiet NaN for every NaN`, () => {
    const patterns = patternsOf(codec.encode(codec.decode(bytesOf(ALL))));
    const quiet = 2 ** (codec.mantissaBits - 1);
    for (const pattern of ALL) {
      const wanted = Number.isNaN(valueOf(pattern, codec)) ? pattern | quiet : pattern;
      if (patterns[pattern] !== wanted) assert.fail(`pattern ${pattern} became ${patterns[pattern]}`);
    }
  });

  test(`encoding ${codec.name} rounds to nearest, ties to even, between all neighbours`, () => {
    const largest = 0x7fff - 2 ** codec.mantissaBits;
    const inputs: number[] = [];
    const wanted: number[] = [];
    for (let low = 0; low <= largest; low++) {
      // Above the largest finite value, the next step of the same size stands in for infinity.
      const below = valueOf(low, codec);
      const above = low < largest ? valueOf(low + 1, codec) : 2 * below - valueOf(low - 1, codec);
      const middle = Math.fround((below + above) / 2);
      assert.equal(middle, (below + above) / 2);
      const [justBelow, justAbove] = neighbours(middle);
      inputs.push(justBelow, middle, justAbove, -justBelow, -middle, -justAbove);
      const even = low % 2 === 0 ? low : low + 1;
      wanted.push(low, even, low + 1, 0x8000 | low, 0x8000 | even, 0x8000 | (low + 1));
    }
    const patterns = patternsOf(codec.encode(new Float32Array(inputs)));
    assert.equal(wanted.findIndex((pattern, i) => pattern !== patterns[i]), -1);
  });

  test(`encoding ${codec.name} of the extremes`, () => {
    const infinity = 0x7fff + 1 - 2 ** codec.mantissaBits;
    const values = new Float32Array([3.4028234663852886e38, Infinity, -Infinity, 0, -0, 1.401298464324817e-45]);
    assert.deepEqual(
      [...patternsOf(codec.encode(values))],
      [infinity, infinity, 0x8000 | infinity, 0, 0x8000, 0],
    );
    const signalling = new Float32Array(new Uint32Array([0x7f800001, 0xff800001]).buffer);
    assert.ok(codec.decode(codec.encode(signalling)).every(Number.isNaN));
  });

  test(`decoding ${codec.name} takes bytes at an odd offset, and none`, () => {
    const shifted = new Uint8Array(5);
    shifted.set(bytesOf([1, 0x8001]), 1);
    assert.deepEqual(codec.decode(shifted.subarray(1)), codec.decode(bytesOf([1, 0x8001])));
    assert.equal(codec.decode(new Uint8Array()).length, 0);
    assert.equal(codec.encode(new Float32Array()).length, 0);
  });
}

test("encoding takes a view into a longer array", () => {
  const values = new Float32Array([9, 1, 2, 9]).subarray(1, 3);
  assert.deepEqual(decodeF16(encodeF16(values)), values.slice());
  assert.deepEqual(decodeBf16(encodeBf16(values)), values.slice());
});

test("toFloat32() converts F32 at any offset and rounds F64", () => {
  const bytes = new Uint8Array(9);
  bytes.set(new Uint8Array(new Float32Array([1.5, -2]).buffer), 1);
  assert.deepEqual(
    toFloat32({ dtype: "F32", shape: [2], bytes: bytes.subarray(1) }),
    new Float32Array([1.5, -2]),
  );
  const doubles = new Uint8Array(new Float64Array([0.1]).buffer);
  assert.deepEqual(toFloat32({ dtype: "F64", shape: [1], bytes: doubles }), new Float32Array([0.1]));
});

test("toFloat32() refuses other dtypes by name", () => {
  assert.throws(() => toFloat32({ dtype: "I8", shape: [1], bytes: new Uint8Array(1) }), {
    name: "FormatError",
    message: /dtype I8 /,
    found: "I8",
  });
});

/** The 32-bit floats next to a positive one. */
function neighbours(value: number): [number, number] {
  const bits = new Uint32Array(new Float32Array([value]).buffer)[0]!;
  const [below, above] = new Float32Array(new Uint32Array([bits - 1, bits + 1]).buffer);
  return [below!, above!];
}
