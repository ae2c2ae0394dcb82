/** What the three plain matrix libraries have in common: products and single rows, in f32 or what they compute in. */
import { attempt, engineName, openStopwatch, readJob, report } from "../child.ts";
import { flopOf, gemmShapes, gemvShapes, type Shape, shapeName, wants } from "../shapes.ts";
import type { Body } from "../../src/cli/bench_timing.ts";
import type { Job } from "../types.ts";

/** A product that is ready to run. */
export interface Product {
  readonly body: Body;
  dispose?(): void;
}

/** A library, and the forms of the product that it has. */
export interface PlainLibrary {
  readonly version: string;
  readonly forms: Readonly<Record<string, (shape: Shape) => Product | Promise<Product>>>;
}

/** Measures every form at every shape. */
export async function measurePlain(open: (job: Job) => Promise<PlainLibrary>): Promise<void> {
  const job = readJob();
  const { version, forms } = await open(job);
  report({ kind: "engine", engine: engineName(), version });
  const stopwatch = await openStopwatch(job);
  for (const shape of [...gemmShapes(job), ...gemvShapes(job)]) {
    const topic = shape.rows === 1 ? "gemv" : "gemm";
    if (!wants(job, topic)) continue;
    for (const [variant, form] of Object.entries(forms)) {
      await attempt(topic, variant, async () => {
        const { body, dispose } = await form(shape);
        const flop = flopOf(shape);
        const bytes = flop / 2 * (variant === "f64" ? 8 : 4);
        const isVector = shape.rows === 1;
        const timed = await stopwatch.timeAgainst(isVector ? "read" : "fma", isVector ? bytes : flop, body);
        dispose?.();
        const work = { flop, ...(isVector && { bytes }) };
        report({ kind: "figure", topic, name: shapeName(shape), variant, work, ...timed });
      });
    }
  }
}
