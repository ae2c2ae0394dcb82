/**
 * The Rust kernels as WebAssembly: choosing a build, compiling it, and the type of its exports.
 * Sources and meanings of the parameters: `rust-kernels/src/<operation>.rs`.
 *
 * @module
 */

import { BackendUnavailableError } from "../errors.ts";

/** The two builds: relaxed SIMD (fused multiply-add), and plain SIMD128. */
export type KernelVariant = "relaxed" | "simd";

type Kernel = (...parameters: number[]) => void;
type Measure = (...parameters: number[]) => number;

/** What a kernel module exports. Addresses and sizes are numbers; a dtype is a code of `dtypes.ts`. */
export interface Kernels {
  /** Linear memory, grown by the heap alone. */
  readonly memory: WebAssembly.Memory;
  /** First address that the kernels' own data and stack leave free. */
  readonly __heap_base: WebAssembly.Global;
  /** Where the stack of this instance begins; it grows down. */
  readonly __stack_pointer: WebAssembly.Global;
  /** (dst, src, n, k, srcDtype, dstDtype, transposed): row-major matrix to panels. */
  readonly pack: Kernel;
  /** (dst, src, n, k, dtype): f32 panels to panels of f16, f8, int8, int4 or nf4; 1 when all values fit. */
  readonly quantize: Measure;
  /** (dst, src, n, k, dtype): rows of ggml's blocks to panels that keep their bits; 1 when all scales are finite. */
  readonly pack_blocks: Measure;
  /** (k, dtype): bytes of a panel. */
  readonly panel_size: Measure;
  /** (128): 1 if the relaxed dot product means here what the kernels need. */
  readonly dot_is_exact: Measure;
  /** (dst, src, n, k, dtype): panels to a row-major f32 matrix. */
  readonly unpack: Kernel;
  /** (y, x, w, dtype, bias, h, b, m, n, k, r, from, columns, accumulate, scratch): some columns of y. */
  readonly linear: Kernel;
  /** (dst, x, m, k, dtype, first, rows): some rows of x as `linear` wants them in its scratch, for weights of integers. */
  readonly round_activations: Kernel;
  /** (m, n, k, dtype): scratch bytes of `linear`. */
  readonly linear_scratch: Measure;
  /** (y, factor, count). */
  readonly scale: Kernel;
  /** (dx, dy, w, dtype, m, n, k, from, columns, scratch): dx += dy W, some columns of it. */
  readonly linear_backward_input: Kernel;
  /** (m, n, k, dtype). */
  readonly linear_backward_input_scratch: Measure;
  /** (dw, dy, x, m, n, k, nStride, kStride, scratch): dw += dyᵀ x. */
  readonly linear_backward_weight: Kernel;
  /** (m, n, k). */
  readonly linear_backward_weight_scratch: Measure;
  /** (sums, x, y, factor, rows, dim): sums += factor · column sums of x ∘ y; y is 0 for ones. */
  readonly column_sums: Kernel;
  /** (y, x, scale, shift, factor, rows, dim); scale and shift are 0 for none. */
  readonly affine_rows: Kernel;
  /** (y, x, offsets, rows, weights, count, dim); weights are 0 for ones. */
  readonly gather_sum: Kernel;
  /** (y, x, batch, rows, columns). */
  readonly transpose_each: Kernel;
  /** (sums, w, delta, rows, k, byColumn): sums (f64) += (w + delta)². */
  readonly add_squares: Kernel;
  /** (out, sums, count). */
  readonly inverse_roots: Kernel;
  /** (out, a, b, scaling, n, k, r, scratch). */
  readonly delta_weight: Kernel;
  /** (n, k, r). */
  readonly delta_weight_scratch: Measure;
  /** (dst, w, dtype, branches, count, totalRank, k, from, panels, scratch, squares): 0 when all results are finite. */
  readonly merge: Measure;
  /** (k, totalRank, dtype). */
  readonly merge_scratch: Measure;
  /** (dst, dstDtype, w, dtype, branches, count, n, k, from, scratch), row-major: 0 when all results are finite. */
  readonly merge_rows: Measure;
  /** (n, k, totalRank). */
  readonly merge_rows_scratch: Measure;
  /** (y, ids, w, dtype, count, n, k). */
  readonly embedding: Kernel;
  /** (y, x, rows, count, dim). */
  readonly take_rows: Kernel;
  /** (y, x, gain, rows, dim, eps). */
  readonly rms_norm: Kernel;
  /** (y, x, gain, bias, rows, dim, eps). */
  readonly layer_norm: Kernel;
  /** (y, x, count). */
  readonly gelu: Kernel;
  /** (y, x, count). */
  readonly gelu_tanh: Kernel;
  /** (y, x, count). */
  readonly tanh: Kernel;
  /** (y, x, cos, sin, rows, heads, half). */
  readonly rope: Kernel;
  /** (cache, x, batch, length, capacity, dim, past). */
  readonly append: Kernel;
  /** (cache, x, batch, length, capacity, heads, dim, past, dtype): into a cache, rounded. */
  readonly append_heads: Kernel;
  /** (y, q, keys, values, length, capacity, heads, kvHeads, dim, past, window, dtype, from, count, scratch): some heads. */
  readonly attention: Kernel;
  /** (length, past, heads, kvHeads, dim). */
  readonly attention_scratch: Measure;
  /** (y, gate, up, count). */
  readonly silu_mul: Kernel;
  /** (y, a, b, count). */
  readonly add: Kernel;
  /** (loss, logits, targets, rows, classes). */
  readonly cross_entropy: Kernel;
  /** (ids, logits, rows, classes). */
  readonly argmax: Kernel;
  /** (ids, logits, random, rows, classes, 1 / temperature, topK, topP, minP, scratch). */
  readonly sample: Kernel;
  /** (classes). */
  readonly sample_scratch: Measure;
  /** (iterations): runs independent multiply-add chains, for `lora bench`. */
  readonly peak_fma: Measure;
  /** FLOP of one iteration of `peak_fma`. */
  readonly peak_fma_flops: Measure;
  /** (address, bytes): sums a buffer, for `lora bench`. */
  readonly peak_read: Measure;
}

/** Which kernels to load. */
export interface KernelOptions {
  /** A compiled module or its bytes, where the runtime cannot compile (workerd) or should cache it (browsers). */
  readonly wasm?: WebAssembly.Module | BufferSource;
  /** The build to use; the default is the best one that this runtime accepts. */
  readonly variant?: KernelVariant;
}

/** -128 as a byte, from which `dot_is_exact` makes its factors. */
const LEAST = 128;

/** Compiled and instantiated kernels. */
export interface LoadedKernels {
  /** Which build; of a module that the caller passed, what its code needs is not known: `"given"`. */
  readonly variant: KernelVariant | "given";
  /** The exports. */
  readonly kernels: Kernels;
  /** The threads that share the calls. */
  readonly pool?: Threads;
  /** Why there is one thread though more were asked for. */
  readonly oneThread?: string;
}

/** Threads, as far as a backend has to know. */
export interface Threads {
  /** How many. */
  readonly threads: number;
  /** What there is to say about them. */
  readonly reason: string;
  /** Throws once one of them is lost. */
  check(): void;
  /** Starts them, and resolves when it is known whether they work. */
  whenReady(): Promise<boolean>;
  /** Ends them. */
  dispose(): void;
}

/** `(module (func (result v128) i32.const 0 i8x16.splat i32.const 0 i8x16.splat i8x16.relaxed_swizzle))`. */
const RELAXED_PROBE = "0061736d010000000105016000017b030201000a0f010d004100fd0f4100fd0ffd80020b";

/** Whether this runtime accepts relaxed SIMD. One unknown opcode refuses a whole module, hence the probe. */
export function hasRelaxedSimd(): boolean {
  const bytes = RELAXED_PROBE.match(/../g)!.map((pair) => parseInt(pair, 16));
  return WebAssembly.validate(Uint8Array.from(bytes));
}

/**
 * Compiles the kernels, on first use, and instantiates them in a memory of their own.
 *
 * @throws {BackendUnavailableError} If this runtime cannot compile or run them.
 */
export async function loadKernels(options: KernelOptions = {}): Promise<LoadedKernels> {
  const variant = options.variant ?? (hasRelaxedSimd() ? "relaxed" : "simd");
  const kernels = await instantiate(options, variant);
  if (hasExactDot(kernels)) return { variant: options.wasm ? "given" : variant, kernels };
  if (!options.wasm && !options.variant) return await loadKernels({ variant: "simd" });
  throw inexactDot(variant);
}

/** Whether the relaxed dot product is exact here in the range that the kernels use; no engine is known where not. */
export function hasExactDot(kernels: Kernels): boolean {
  return kernels.dot_is_exact(LEAST) === 1;
}

/** The error where it is not. */
export function inexactDot(variant: string): BackendUnavailableError {
  const message =
    `Cannot use the "${variant}" kernels: expected dot products that are exact for factors of 8 and 7 bits`;
  return new BackendUnavailableError(message);
}

async function instantiate({ wasm }: KernelOptions, variant: KernelVariant): Promise<Kernels> {
  const module = wasm instanceof WebAssembly.Module ? wasm : await compile(wasm, variant);
  try {
    const instance = await WebAssembly.instantiate(module);
    return instance.exports as unknown as Kernels;
  } catch (cause) {
    throw new BackendUnavailableError(`Cannot instantiate the "${variant}" kernels: ${messageOf(cause)}`, { cause });
  }
}

async function compile(bytes: BufferSource | undefined, variant: KernelVariant): Promise<WebAssembly.Module> {
  try {
    return await WebAssembly.compile(bytes ?? await embeddedKernels(variant));
  } catch (cause) {
    throw new BackendUnavailableError(
      "Cannot compile WebAssembly in this runtime: pass the module as `wasm`, imported from " +
        `"@lowrank/lora/kernels.wasm" (${messageOf(cause)})`,
      { cause },
    );
  }
}

/** The bytes of a build. */
export async function embeddedKernels(variant: KernelVariant): Promise<Uint8Array<ArrayBuffer>> {
  const { KERNELS } = variant === "relaxed" ? await import("./kernels_relaxed.ts") : await import("./kernels_simd.ts");
  // Uint8Array.fromBase64 is missing before Node 26; Uint8Array.from takes 8 ms where this takes 1.5
  const characters = atob(KERNELS);
  const bytes = new Uint8Array(characters.length);
  for (let index = 0; index < bytes.length; index++) bytes[index] = characters.charCodeAt(index);
  return bytes;
}

function messageOf(cause: unknown): string {
  return cause instanceof Error ? cause.message : String(cause);
}
