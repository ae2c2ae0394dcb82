/**
 * Runs fuzz targets: makes files, reads them, and fails on anything but a value or a typed error in time and within
 * memory.
 *
 * @module
 */
import process from "node:process";
import fc from "fast-check";
import * as errors from "../src/errors.ts";

/** Files by name. */
export type Files = ReadonlyMap<string, Uint8Array>;

/** One kind of input. `E` is what fast-check makes and shrinks. */
export interface Target<E> {
  readonly name: string;
  readonly edits: fc.Arbitrary<E>;
  /** The files that the edits give. */
  build(edits: E): Files;
  /** Reads them, and throws an untyped error where what was read is wrong. */
  read(files: Files, edits: E): Promise<void>;
}

/** How the cases of a target ended. */
export interface Tally {
  accepted: number;
  readonly refused: Map<string, number>;
  slowest: number;
  /** Most bytes that a case allocated beyond the size of its files. */
  largest: number;
}

/** A tally of no cases. */
export function emptyTally(): Tally {
  return { accepted: 0, refused: new Map(), slowest: 0, largest: 0 };
}

/** Which cases are run. */
export interface RunOptions {
  readonly cases: number;
  /** Decides the cases. */
  readonly seed: number;
  /** Way to one case, as a failure tells it. */
  readonly path?: string;
  /** Longest time of a case in milliseconds; a second if absent. */
  readonly maxMs?: number;
}

/** What a failing case looks like. */
export interface Failure {
  readonly seed: number;
  /** fast-check's way to the case from the seed. */
  readonly path: string;
  readonly report: string;
  readonly files: Files;
}

const MAX_EXTRA = 2 ** 26;
/** Values, paths and lists in a message are shortened, so it stays one that can be read. */
const MAX_MESSAGE = 2000;
const TYPED = [errors.FormatError, errors.MismatchError, errors.LimitError, errors.NumericError, errors.ShapeError];
const ARRAYS = ["Uint8Array", "Uint16Array", "Uint32Array", "Int32Array", "Float32Array", "Float64Array"] as const;

/** Counts the bytes of every buffer that is made by its length while it is on. */
function meterAllocations(): { bytes: number; stop(): void } {
  const realm = globalThis as unknown as Record<string, unknown>;
  const kept = new Map(["ArrayBuffer", ...ARRAYS].map((name) => [name, realm[name]]));
  const meter = {
    bytes: 0,
    stop: () => kept.forEach((own, name) => realm[name] = own),
  };
  for (const [name, own] of kept) {
    const width = name === "ArrayBuffer" ? 1 : (own as { BYTES_PER_ELEMENT: number }).BYTES_PER_ELEMENT;
    realm[name] = new Proxy(own as new (...args: unknown[]) => object, {
      construct(target, args, self) {
        const [first] = args;
        const isView = first instanceof (kept.get("ArrayBuffer") as typeof ArrayBuffer);
        const length = typeof first === "number" ? first : isView ? 0 : (first as { length?: number })?.length ?? 0;
        meter.bytes += width * length;
        return Reflect.construct(target, args, self);
      },
    });
  }
  return meter;
}

/**
 * Runs cases of a target.
 *
 * @param target The target.
 * @param options How many, and the seed that decides them.
 * @param tally What is counted.
 * @returns The smallest failing case, or null.
 */
export async function runTarget<E>(
  target: Target<E>,
  { cases: numRuns, maxMs = 1000, ...options }: RunOptions,
  tally: Tally,
): Promise<Failure | null> {
  const meter = meterAllocations();
  try {
    const property = fc.asyncProperty(target.edits, (edits) => runCase(target, edits, { tally, meter, maxMs }));
    const details = await fc.check(property, { numRuns, ...options });
    if (!details.failed) return null;
    const [smallest] = details.counterexample!;
    const error = details.errorInstance;
    return {
      seed: options.seed,
      path: details.counterexamplePath!,
      report: `${target.name}: ${fc.stringify(smallest)}\n${error instanceof Error ? withCause(error) : String(error)}`,
      files: target.build(smallest),
    };
  } finally {
    meter.stop();
  }
}

function withCause(error: Error): string {
  const { cause } = error;
  return `${error.stack}${cause instanceof Error ? `\ncaused by ${withCause(cause)}` : ""}`;
}

async function runCase<E>(
  target: Target<E>,
  edits: E,
  { tally, meter, maxMs }: { readonly tally: Tally; readonly meter: { bytes: number }; readonly maxMs: number },
): Promise<void> {
  const files = target.build(edits);
  const size = files.values().reduce((sum, { length }) => sum + length, 0);
  let ms = Infinity;
  // A case is slow if it is so twice: others use the machine too.
  for (let attempt = 0; attempt < 2 && ms > maxMs; attempt++) {
    meter.bytes = 0;
    const [start, used] = [performance.now(), process.cpuUsage()];
    const name = await outcome(() => target.read(files, edits));
    // What other processes take is no fault of the case.
    const { user, system } = process.cpuUsage(used);
    ms = Math.min(performance.now() - start, (user + system) / 1000);
    if (attempt > 0) continue;
    if (name === "") tally.accepted++;
    else tally.refused.set(name, (tally.refused.get(name) ?? 0) + 1);
  }
  tally.slowest = Math.max(tally.slowest, ms);
  tally.largest = Math.max(tally.largest, meter.bytes - size);
  if (ms > maxMs) throw new Error(`took ${ms} ms`);
  if (meter.bytes > size + MAX_EXTRA) throw new Error(`allocated ${meter.bytes} bytes for files of ${size}`);
}

/** Name of the typed error, or nothing; throws on any other end. */
async function outcome(read: () => Promise<void>): Promise<string> {
  try {
    await read();
    return "";
  } catch (error) {
    const isTyped = TYPED.some((type) => error instanceof type);
    if (!isTyped) throw new Error("ended with an untyped error", { cause: error });
    const { name, message } = error as Error;
    if (!/^Cannot [^]+: [^]+/.test(message) || message.length > MAX_MESSAGE) {
      throw new Error(`a message of ${message.length} characters in another form`, { cause: error });
    }
    return name;
  }
}
