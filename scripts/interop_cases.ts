/**
 * What the checks with other tools share: the fixtures' cases with PEFT's logits in float64, and how far others are off.
 */
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { readTruth } from "../tests/models_support.ts";

/** The most that logits may be off, of the largest: twice what float32 takes of llama-rslora, which amplifies it. */
const TOLERANCE = 2e-5;

/** The folder of the fixtures. */
export const FIXTURES: string = fileURLToPath(new URL("../tests/fixtures/", import.meta.url));

/** Logits, row by row. */
export type Rows = readonly ArrayLike<number>[];

/** An adapter of the fixtures. */
export interface InteropCase {
  readonly name: string;
  /** Its base, a folder of the fixtures. */
  readonly base: string;
  /** The prompts. */
  readonly ids: readonly (readonly number[])[];
  /** The logits of all tokens of all prompts without it, and with it. */
  readonly plain: Rows;
  readonly adapted: Rows;
}

/** The cases of some of the bases. */
export async function readCases(bases: readonly string[]): Promise<InteropCase[]> {
  const index: { case: string; base: string }[] = JSON.parse(readFileSync(`${FIXTURES}index.json`, "utf8"));
  const cases = index.filter(({ base }) => bases.includes(base)).map(async ({ case: name, base }) => {
    const truth = await readTruth(name);
    const rows = async (tensor: string): Promise<Float64Array[]> => {
      const { shape, values } = await truth(tensor);
      const width = shape.at(-1)!;
      return Array.from({ length: values.length / width }, (_, i) => values.subarray(i * width, (i + 1) * width));
    };
    const ids = (await rows("input_ids")).map((row) => [...row]);
    return { name, base, ids, plain: await rows("base.output"), adapted: await rows("adapted.output") };
  });
  return await Promise.all(cases);
}

/** max |got − want| / max |want|; NaN where one is not finite or a row is missing. */
export function distance(got: Rows, want: Rows): number {
  let [error, scale] = [got.length === want.length ? 0 : NaN, 0];
  want.forEach((row, i) => {
    for (let j = 0; j < row.length; j++) {
      const difference = Math.abs(got[i]![j]! - row[j]!);
      if (!(difference <= error)) error = difference;
      scale = Math.max(scale, Math.abs(row[j]!));
    }
  });
  return error / scale;
}

/** How far they are off, as a text; throws where that is too far: the base's, without the adapter, are off by 1. */
export function requireNear(got: Rows, want: Rows, tolerance: number = TOLERANCE): string {
  const error = distance(got, want);
  if (error <= tolerance) return error.toExponential(0);
  throw new Error(`logits are off by ${error.toExponential(1)} of the largest, at most ${tolerance}`);
}

/** Counts, and prints a line per case. */
export class Tally {
  #cases = 0;
  #failed = 0;

  /** Runs one case: it gives what was found, or throws. */
  async run(name: string, check: () => Promise<string>): Promise<void> {
    this.#cases++;
    try {
      console.log(`${name}: ${await check()}`);
    } catch (error) {
      this.#failed++;
      console.log(`${name}: FAILED: ${error instanceof Error ? error.message : error}`);
    }
  }

  /** Prints the sum; the status for the end of the process. */
  end(what: string): number {
    console.log(`${what} ${this.#cases - this.#failed} of ${this.#cases} as PEFT does`);
    return this.#failed === 0 && this.#cases > 0 ? 0 : 1;
  }
}
