/**
 * What the tests of bad input share: rows that must be refused, and files that lie.
 *
 * @module
 */
import assert from "node:assert/strict";
import process from "node:process";
import { text } from "./adapter_fixtures.ts";

export type Files = Map<string, Uint8Array>;

/** What a refusal must say: its class, and the place by file, tensor or field. */
export interface Refusal {
  readonly name: string;
  readonly code?: string;
  readonly file?: string;
  readonly tensor?: string;
  readonly field?: string;
  readonly limit?: number;
  readonly message?: RegExp;
}

export interface Row {
  readonly what: string;
  readonly run: () => unknown;
  readonly refusal: Refusal;
}

/** Three times what is promised: others share the machine. */
export const MAX_MS = 300;
/** What all rows together may add to the process; the bombs among them claim petabytes. */
const MAX_GROWTH = 100e6;

/** A safetensors file whose header is the text given, or claims another length. */
export function safetensors(header: unknown, data = 0, claimed?: bigint): Uint8Array {
  const body = text(header);
  const bytes = new Uint8Array(8 + body.length + data);
  new DataView(bytes.buffer).setBigUint64(0, claimed ?? BigInt(body.length), true);
  bytes.set(body, 8);
  return bytes;
}

export function entry(begin: number, end: number, shape: readonly unknown[] = [(end - begin) / 4]): unknown {
  return { dtype: "F32", shape, data_offsets: [begin, end] };
}

/** Bytes of a GGUF file: u32 as numbers, u64 as bigints, strings with their length before them. */
export function gguf(...parts: readonly (number | bigint | string)[]): Uint8Array {
  const chunks = parts.map((part) => {
    if (typeof part === "number") return new Uint8Array(Uint32Array.of(part).buffer);
    if (typeof part === "bigint") return new Uint8Array(BigUint64Array.of(part).buffer);
    const bytes = text(part);
    return Uint8Array.of(...new Uint8Array(BigUint64Array.of(BigInt(bytes.length)).buffer), ...bytes);
  });
  return Uint8Array.from([0x47, 0x47, 0x55, 0x46, ...chunks.flatMap((chunk) => [...chunk]), ...new Uint8Array(64)]);
}

/** Runs a row and fails unless it is refused as it must be, in time. */
export async function check({ what, run, refusal }: Row): Promise<void> {
  const { message, ...place } = refusal;
  const start = performance.now();
  await assert.rejects(async () => await run(), (error: Error & Record<string, unknown>) => {
    const ms = performance.now() - start;
    assert.ok(ms < MAX_MS, `${what}: refused after ${ms} ms`);
    const found = Object.fromEntries(Object.keys(place).map((key) => [key, error[key]]));
    assert.deepEqual(found, place, `${what}: ${error.stack}`);
    assert.ok(typeof error.code === "string", `${what}: it has a code`);
    assert.match(error.message, message ?? /^Cannot /, what);
    assert.ok(error.message.length < 1000, `${what}: a message of ${error.message.length} characters`);
    return true;
  });
}

/** Checks every row; the process may not grow by what they claim. */
export async function checkAll(rows: readonly Row[]): Promise<void> {
  for (const row of rows.slice(0, 5)) await check(row);
  const before = process.memoryUsage().rss;
  for (const row of rows) await check(row);
  const growth = process.memoryUsage().rss - before;
  assert.ok(growth < MAX_GROWTH, `${growth} bytes more`);
}
