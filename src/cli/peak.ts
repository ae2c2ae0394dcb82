import { loadKernels } from "../wasm/kernels.ts";

/** A limit of the silicon: multiply-adds in registers, reading memory, reading and writing it. */
export type PeakKind = "fma" | "read" | "copy";

/** A limit that can be measured. */
export interface Peak {
  /** FLOP, or bytes that cross the memory bus, of one `run()`. */
  readonly work: number;
  /** About a millisecond of it, or more. */
  run(): void;
}

/** What this machine can do at best, in one thread of WebAssembly. */
export type Peaks = Readonly<Record<PeakKind, Peak>>;

const PAGE = 1 << 16;
const BUFFER_BYTES = 64 << 20;
const FMA_FLOPS = 1e8;

/** Loads the measuring kernels into a memory of their own: the buffer is far larger than a core's caches. */
export async function openPeaks(): Promise<Peaks> {
  const { kernels } = await loadKernels();
  const start = kernels.memory.grow(BUFFER_BYTES / PAGE) * PAGE;
  new Float32Array(kernels.memory.buffer, start, BUFFER_BYTES / 4).fill(1e-3);
  const buffer = new Uint8Array(kernels.memory.buffer, start, BUFFER_BYTES);
  const iterations = Math.ceil(FMA_FLOPS / kernels.peak_fma_flops());
  return {
    fma: { work: iterations * kernels.peak_fma_flops(), run: () => void kernels.peak_fma(iterations) },
    read: { work: BUFFER_BYTES, run: () => void kernels.peak_read(start, BUFFER_BYTES) },
    copy: { work: BUFFER_BYTES, run: () => void buffer.copyWithin(BUFFER_BYTES / 2, 0, BUFFER_BYTES / 2) },
  };
}
