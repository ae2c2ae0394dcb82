/**
 * Kernels over shared memory. A module that owns its memory differs from one that imports it in two sections, so the
 * threads run the committed kernels themselves: no second pair of binaries, no second compiler run, nothing more to
 * load. The kernels need no atomic instruction, because one thread alone hands out work, between their calls.
 * Instances write the same constants to the same place when they start, which other threads may read meanwhile.
 *
 * @module
 */

/** A module that imports its memory. */
export interface SharedModule {
  /** Its bytes; the import is `env.memory`, shared. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** Pages of 64 KiB that the memory has at least. */
  readonly pages: number;
}

const HEADER_BYTES = 8;
const TYPES = 1;
const IMPORTS = 2;
const MEMORIES = 5;
/** Pages of the whole of wasm32, which any smaller memory may stand in for. */
const MOST_PAGES = 65_536;

/**
 * Moves the memory of a module to its imports: the import section goes behind the types, the memory section goes away.
 *
 * Rejects with a RangeError if the module has no memory of its own.
 */
export async function shareMemory(bytes: Uint8Array<ArrayBuffer>): Promise<SharedModule> {
  const parts: Uint8Array<ArrayBuffer>[] = [bytes.subarray(0, HEADER_BYTES)];
  let pages: number | undefined;
  let typesAt = 0;
  for (let at = HEADER_BYTES; at < bytes.length;) {
    const id = bytes[at];
    const [size, body] = readUnsigned(bytes, at + 1);
    if (id === IMPORTS) {
      throw new RangeError("Cannot share the memory of a module with imports: expected its own memory");
    }
    if (id === MEMORIES) pages = readUnsigned(bytes, body + 2)[0]; // behind their count, 1, and the flags of the first
    else parts.push(bytes.subarray(at, body + size));
    if (id === TYPES) typesAt = parts.length;
    at = body + size;
  }
  if (pages === undefined || typesAt === 0) throw new RangeError("Cannot share the memory of a module that has none");
  parts.splice(typesAt, 0, importSection(pages));
  return { bytes: new Uint8Array(await new Blob(parts).arrayBuffer()), pages };
}

/** One import: "env" "memory", a memory (2) that is shared and has a maximum (3). */
function importSection(pages: number): Uint8Array<ArrayBuffer> {
  const name = (text: string) => [text.length, ...new TextEncoder().encode(text)];
  const body = [1, ...name("env"), ...name("memory"), 2, 3, ...unsigned(pages), ...unsigned(MOST_PAGES)];
  return Uint8Array.of(IMPORTS, ...unsigned(body.length), ...body);
}

/** An unsigned LEB128 number, and where what follows it starts. */
function readUnsigned(bytes: Uint8Array, at: number): [value: number, next: number] {
  let value = 0;
  for (let shift = 0;; shift += 7) {
    const byte = bytes[at++]!;
    value += (byte & 127) * 2 ** shift;
    if (!(byte >= 128)) return [value, at]; // the end of the bytes ends a number too
  }
}

function unsigned(value: number): number[] {
  return value < 128 ? [value] : [value & 127 | 128, ...unsigned(value >>> 7)];
}
