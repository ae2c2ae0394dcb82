/**
 * Matrices into panels and back, on the CPU: `[n/8][k][8]`, in bf16 with the columns in the order 0 4 1 5 2 6 3 7, so
 * that the low halves of four words are columns 0 to 3 (KERNELS §5). All by bits: no value changes but by rounding.
 *
 * @module
 */

import type { ElementDtype, MatrixValues } from "../backend.ts";

/** Bits of f32 of one row or column of stored values. */
type Line = Uint32Array<ArrayBuffer>;

/** Makes the panels `first` to `first + count` of an (n, k) matrix; the columns beyond n are zero. */
export function packPanels(
  values: MatrixValues,
  { first, count, form, transposed }: { first: number; count: number; form: "f32" | "bf16"; transposed: boolean },
): Uint8Array<ArrayBuffer> {
  const [rows, columns] = values.shape;
  const [n, k] = transposed ? [columns, rows] : [rows, columns];
  const read = lineReader(values, transposed);
  const target = form === "f32" ? new Uint32Array(count * k * 8) : new Uint16Array(count * k * 8);
  const line: Line = new Uint32Array(k);
  for (let row = first * 8; row < Math.min(n, (first + count) * 8); row++) {
    read(row, line);
    const panel = Math.floor(row / 8 - first) * k * 8;
    if (form === "f32") { for (let i = 0; i < k; i++) target[panel + i * 8 + row % 8] = line[i]!; }
    else for (let i = 0, at = panel + halfAt(row % 8); i < k; i++, at += 8) target[at] = roundToBf16(line[i]!);
  }
  return new Uint8Array(target.buffer);
}

/** Puts the panels from `first` on into row-major values (n, k). */
export function unpackPanels(
  panels: ArrayBuffer,
  target: Float32Array,
  { first, n, k, form }: { first: number; n: number; k: number; form: "f32" | "bf16" },
): void {
  const bits = new Uint32Array(target.buffer, target.byteOffset, target.length);
  const source = form === "f32" ? new Uint32Array(panels) : new Uint16Array(panels);
  const end = k === 0 ? 0 : Math.min(n, first * 8 + source.length / k);
  for (let row = first * 8; row < end; row++) {
    const panel = Math.floor(row / 8 - first) * k * 8;
    const at = panel + (form === "f32" ? row % 8 : halfAt(row % 8));
    const shift = form === "f32" ? 0 : 16;
    for (let i = 0; i < k; i++) bits[row * k + i] = source[at + i * 8]! << shift;
  }
}

/** The rows of an (n, k) matrix that lie in some panels, or its columns if it is stored (k, n). */
export function cutValues(
  values: MatrixValues,
  { first, count, transposed }: { first: number; count: number; transposed: boolean },
): MatrixValues {
  const [rows, columns] = values.shape;
  const [start, end] = [first * 8, Math.min(transposed ? columns : rows, (first + count) * 8)];
  const rowBytes = values.bytes.length / (rows || 1);
  if (!transposed) {
    return { ...values, shape: [end - start, columns], bytes: values.bytes.subarray(start * rowBytes, end * rowBytes) };
  }
  const width = rowBytes / (columns || 1);
  const bytes = new Uint8Array(rows * (end - start) * width);
  for (let row = 0; row < rows; row++) {
    const from = row * rowBytes;
    bytes.set(values.bytes.subarray(from + start * width, from + end * width), row * (end - start) * width);
  }
  return { ...values, shape: [rows, end - start], bytes };
}

/** Where a panel's column is among its halves. */
function halfAt(column: number): number {
  return column < 4 ? 2 * column : 2 * (column - 4) + 1;
}

/** Reads row `row` of the (n, k) matrix: a row of what is stored, or a column of it. */
function lineReader({ shape, dtype, bytes }: MatrixValues, transposed: boolean): (row: number, line: Line) => void {
  const [, columns] = shape;
  const width = dtype === "f32" ? 4 : 2;
  const widen = { f32: (bits: number) => bits, f16: widenF16, bf16: (bits: number) => bits << 16 }[
    dtype as ElementDtype
  ];
  // A typed array needs an aligned start.
  const aligned = bytes.byteOffset % width === 0 ? bytes : bytes.slice();
  const View = dtype === "f32" ? Uint32Array : Uint16Array;
  const stored = new View(aligned.buffer as ArrayBuffer, aligned.byteOffset, aligned.byteLength / width);
  return (row, line) => {
    const [start, step] = transposed ? [row, columns] : [row * columns, 1];
    for (let i = 0; i < line.length; i++) line[i] = widen(stored[start + i * step]!);
  };
}

/** Bits of f16 to bits of f32, exactly. */
function widenF16(bits: number): number {
  const sign = (bits & 0x8000) << 16;
  const exponent = (bits >>> 10) & 31;
  const mantissa = bits & 1023;
  if (exponent === 31) return sign | 0x7f800000 | (mantissa << 13);
  if (exponent > 0) return sign | ((exponent + 112) << 23) | (mantissa << 13);
  if (mantissa === 0) return sign;
  const shift = Math.clz32(mantissa) - 21;
  return sign | ((113 - shift) << 23) | (((mantissa << shift) & 1023) << 13);
}

/** Bits of f32 to bits of bf16, to nearest even; NaN stays NaN. */
function roundToBf16(bits: number): number {
  if ((bits & 0x7fffffff) > 0x7f800000) return (bits >>> 16) | 0x40;
  return (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16;
}
