/**
 * The WebAssembly kernels as a helper of the GPU: they quantize, dequantize and merge the panels that it stores below
 * bf16, so that both backends hold the same bits. WGSL cannot: its division may be wrong by 2.5 ulp.
 *
 * @module
 */

import type { MatrixValues } from "../backend.ts";
import type { Kernels } from "../wasm/kernels.ts";
import { instantiateNow } from "../wasm/kernels_now.ts";
import { LinearMemory } from "../wasm/memory.ts";
import { RECORD_BYTES, writeRecord } from "../wasm/merge.ts";
import { packRows, refuseValues } from "../wasm/pack.ts";
import { codeOf, type Form, panelBytes } from "./forms.ts";

/** Some panels of a matrix: their depth, and how they store elements. */
export interface PanelKind {
  /** Inputs. */
  readonly k: number;
  /** The storage. */
  readonly form: Form;
}

/** One branch's factors, as f32 panels. */
export interface HostBranch {
  /** A (rank, in). */
  readonly a: Uint8Array;
  /** B (out, rank), from the panel on that is merged. */
  readonly b: Uint8Array;
  /** r. */
  readonly rank: number;
  /** s. */
  readonly scaling: number;
}

/** ‖lost‖² and ‖added‖² of a merge. */
export interface Squares {
  /** What quantizing again lost. */
  lost: number;
  /** What the branches added. */
  added: number;
}

/** Kernels in a small memory of their own, compiled at the first call. */
export class HostKernels {
  #loaded: { readonly kernels: Kernels; readonly memory: LinearMemory } | null = null;

  get #live(): { readonly kernels: Kernels; readonly memory: LinearMemory } {
    if (this.#loaded) return this.#loaded;
    const kernels = instantiateNow();
    return this.#loaded = { kernels, memory: new LinearMemory(kernels) };
  }

  /**
   * Packs row-major values (n, k), or with `transposed` (k, n), whole.
   *
   * @throws {NumericError} If the form cannot hold a value.
   */
  pack(values: MatrixValues, { k, form, transposed }: PanelKind & { transposed: boolean }): Uint8Array<ArrayBuffer> {
    const { kernels, memory } = this.#live;
    const n = values.shape[transposed ? 1 : 0];
    const bytes = Math.ceil(n / 8) * panelBytes(k, form);
    return this.#lend(values.bytes, (staging) =>
      memory.scratch(bytes, (target) => {
        const rows = { target, staging, n, k, code: codeOf(form), dtype: values.dtype, transposed };
        if (!packRows(kernels, memory, rows)) throw refuseValues(values);
        return memory.bytes(target, bytes).slice();
      }));
  }

  /** Panels as row-major values (n, k). */
  unpack(panels: Uint8Array, target: Float32Array, { k, form }: PanelKind): void {
    const { kernels, memory } = this.#live;
    this.#lend(panels, (source) =>
      memory.scratch(target.byteLength, (address) => {
        kernels.unpack(address, source, target.length / k, k, codeOf(form));
        target.set(new Float32Array(kernels.memory.buffer, address, target.length));
      }));
  }

  /** W + Σ s B A of some panels, or null if a result is not finite; the squares grow by theirs. */
  merge(
    panels: Uint8Array,
    branches: readonly HostBranch[],
    { k, form, squares }: PanelKind & { squares: Squares },
  ): Uint8Array<ArrayBuffer> | null {
    const { kernels, memory } = this.#live;
    const code = codeOf(form);
    const ranks = branches.reduce((sum, { rank }) => sum + rank, 0);
    const factors = branches.flatMap(({ a, b }) => [a, b]);
    return this.#lendAll(
      [panels, ...factors],
      ([w, ...addresses]) =>
        memory.scratch(
          16 + branches.length * RECORD_BYTES,
          (sums) =>
            memory.scratch(kernels.merge_scratch(k, ranks, code), (scratch) => {
              const view = new DataView(kernels.memory.buffer, sums, 16 + branches.length * RECORD_BYTES);
              view.setFloat64(0, 0, true);
              view.setFloat64(8, 0, true);
              branches.forEach(({ rank, scaling }, i) => {
                const record = { a: addresses[2 * i]!, b: addresses[2 * i + 1]!, rank, scaling };
                writeRecord(view, 16 + i * RECORD_BYTES, record);
              });
              const count = panels.length / panelBytes(k, form);
              const sizes = [branches.length, ranks, k, 0, count] as const;
              if (kernels.merge(w!, w!, code, sums + 16, ...sizes, scratch, sums) !== 0) {
                return null;
              }
              squares.lost += view.getFloat64(0, true);
              squares.added += view.getFloat64(8, true);
              return memory.bytes(w!, panels.length).slice();
            }),
        ),
    );
  }

  #lend<T>(bytes: Uint8Array, body: (address: number) => T): T {
    const { memory } = this.#live;
    return memory.scratch(bytes.length, (address) => {
      memory.bytes(address, bytes.length).set(bytes);
      return body(address);
    });
  }

  #lendAll<T>(all: readonly Uint8Array[], body: (addresses: readonly number[]) => T): T {
    const [first, ...rest] = all;
    if (!first) return body([]);
    return this.#lend(first, (address) => this.#lendAll(rest, (others) => body([address, ...others])));
  }
}
