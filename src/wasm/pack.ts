/**
 * Weights from row-major values or a file's blocks, and back.
 *
 * @module
 */

import type { MatrixValues, WeightOptions } from "../backend.ts";
import { NumericError } from "../errors.ts";
import { formatShape } from "../shape.ts";
import { DTYPE_CODES, EXACT, isBlocks } from "./dtypes.ts";
import { type Block, WasmWeight } from "./handles.ts";
import type { Kernels } from "./kernels.ts";
import type { LinearMemory } from "./memory.ts";

/** Rows are packed in pieces of about this size, so that loading needs little more memory than the weight. */
const STAGING_BYTES = 4 << 20;

/** Bytes of the panels of an (n, k) weight. */
export function weightBytes(kernels: Kernels, [n, k]: readonly [number, number], code: number): number {
  return Math.ceil(n / 8) * kernels.panel_size(k, code);
}

/**
 * Packs row-major (rows, columns) values, or their transpose, into panels.
 *
 * @throws {NumericError} If a quantized type cannot hold a value.
 */
export function packWeight(
  kernels: Kernels,
  memory: LinearMemory,
  values: MatrixValues,
  { dtype = "f32", transposed = false, exact = false }: WeightOptions,
): WasmWeight {
  const [rows, columns] = values.shape;
  const shape = transposed ? [columns, rows] as const : [rows, columns] as const;
  const code = DTYPE_CODES[isBlocks(values.dtype) ? values.dtype : dtype];
  const block = packPanels(kernels, memory, values, { shape, code, transposed });
  const isInteger = dtype === "int8" || dtype === "int4";
  return new WasmWeight(block, shape, { dtype, code: code + (exact && isInteger ? EXACT : 0) });
}

/** Packs values in the form that a weight has. */
export function packReplacement(
  kernels: Kernels,
  memory: LinearMemory,
  values: MatrixValues,
  { shape, code }: WasmWeight,
): Block {
  return packPanels(kernels, memory, values, { shape, code: code % EXACT, transposed: false });
}

interface Target {
  readonly shape: readonly [number, number];
  readonly code: number;
  readonly transposed: boolean;
}

function packPanels(kernels: Kernels, memory: LinearMemory, values: MatrixValues, target: Target): Block {
  const { shape: [n, k], code, transposed } = target;
  const block = memory.block(weightBytes(kernels, [n, k], code));
  const rowBytes = values.bytes.length / (n || 1);
  const step = transposed ? n : Math.max(8, Math.floor(STAGING_BYTES / Math.max(rowBytes, 1) / 8) * 8);
  try {
    memory.scratch(Math.min(step, n) * rowBytes, (staging) => {
      for (let row = 0; row < n; row += step) {
        const count = Math.min(step, n - row);
        const piece = values.bytes.subarray(row * rowBytes, (row + count) * rowBytes);
        memory.bytes(staging, piece.length).set(piece);
        const panels = block.address + weightBytes(kernels, [row, k], code);
        const rows = { target: panels, staging, n: count, k, code, dtype: values.dtype, transposed };
        if (!packRows(kernels, memory, rows)) throw refuseValues(values);
      }
    });
    return block;
  } catch (error) {
    block.release();
    throw error;
  }
}

/** A call of {@linkcode packRows}. */
export interface Rows {
  /** Where the panels go. */
  readonly target: number;
  /** Where the values are. */
  readonly staging: number;
  /** Outputs. */
  readonly n: number;
  /** Inputs. */
  readonly k: number;
  /** The type of the panels. */
  readonly code: number;
  /** The type of the values. */
  readonly dtype: MatrixValues["dtype"];
  /** The values are (k, n). */
  readonly transposed: boolean;
}

/** Packs some rows; false if a value does not fit. */
export function packRows(kernels: Kernels, memory: LinearMemory, rows: Rows): boolean {
  const { target, staging, n, k, code, dtype } = rows;
  const transposed = rows.transposed ? 1 : 0;
  if (isBlocks(dtype)) return kernels.pack_blocks(target, staging, n, k, code) === 1;
  if (code === DTYPE_CODES.f32 || code === DTYPE_CODES.bf16) {
    kernels.pack(target, staging, n, k, DTYPE_CODES[dtype], code, transposed);
    return true;
  }
  return memory.scratch(weightBytes(kernels, [n, k], DTYPE_CODES.f32), (panels) => {
    kernels.pack(panels, staging, n, k, DTYPE_CODES[dtype], DTYPE_CODES.f32, transposed);
    return kernels.quantize(target, panels, n, k, code) === 1;
  });
}

/** The error where a quantized type cannot hold values. */
export function refuseValues({ shape, dtype }: MatrixValues): NumericError {
  const found = `${dtype} values of shape ${formatShape(shape)}`;
  const what = isBlocks(dtype) ? "finite scales" : "finite values that its type can hold";
  return new NumericError(`Cannot create a quantized weight from ${found}: expected ${what}`, { field: "values" });
}

/** The elements of a weight, row-major. */
export function unpackWeight(kernels: Kernels, memory: LinearMemory, weight: WasmWeight): Float32Array {
  const [n, k] = weight.shape;
  return memory.scratch(n * k * 4, (address) => {
    kernels.unpack(address, weight.block.address, n, k, weight.code);
    return new Float32Array(kernels.memory.buffer as ArrayBuffer, address, n * k).slice();
  });
}
