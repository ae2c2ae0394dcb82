import { loadKernels } from "../wasm/kernels.ts";

/** What this machine can do at best, in one thread of WebAssembly. */
export interface Peaks {
  /** FLOP of one `fma()`. */
  readonly fmaFlops: number;
  /** Bytes that one `read()` reads. */
  readonly readBytes: number;
  /** Independent multiply-adds in registers, about a millisecond of them. */
  fma(): void;
  /** Sums a buffer far larger than the caches. */
  read(): void;
}

const PAGE = 1 << 16;
const READ_BYTES = 64 << 20;
const FMA_FLOPS = 1e8;

/** Loads the two measuring kernels into a memory of their own. */
export async function openPeaks(): Promise<Peaks> {
  const { kernels } = await loadKernels();
  const start = kernels.memory.grow(READ_BYTES / PAGE) * PAGE;
  new Float32Array(kernels.memory.buffer, start, READ_BYTES / 4).fill(1e-3);
  const iterations = Math.ceil(FMA_FLOPS / kernels.peak_fma_flops());
  return {
    fmaFlops: iterations * kernels.peak_fma_flops(),
    readBytes: READ_BYTES,
    fma: () => kernels.peak_fma(iterations),
    read: () => kernels.peak_read(start, READ_BYTES),
  };
}
