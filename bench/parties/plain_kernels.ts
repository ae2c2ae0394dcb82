/** What the three plain matrix libraries have in common: products and single rows, in f32 or what they compute in. */
import { attempt, engineName, readJob, report, timePeer } from "../child.ts";
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
  for (const shape of [...gemmShapes(job), ...gemvShapes(job)]) {
    const topic = shape.rows === 1 ? "gemv" : "gemm";
    if (!wants(job, topic)) continue;
    for (const [variant, form] of Object.entries(forms)) {
      await attempt(topic, variant, async () => {
        const { body, dispose } = await form(shape);
        const [times] = await timePeer([body], job);
        dispose?.();
        const flop = flopOf(shape);
        const work = shape.rows === 1 ? { flop, bytes: flop / 2 * (variant === "f64" ? 8 : 4) } : { flop };
        report({ kind: "figure", topic, name: shapeName(shape), variant, work, times: times! });
      });
    }
  }
}
