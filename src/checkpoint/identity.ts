import type { WeightedAdapter } from "../adapter/weighted_adapter.ts";
import type { Backend } from "../backend.ts";
import { sha256, toHex } from "../formats/sha256.ts";
import type { Folder } from "../formats/source.ts";
import type { MergeIdentity } from "./journal.ts";
import type { MergeOptions } from "./merge_options.ts";

/** To be raised where a change of this package changes the bytes that a merge writes. */
const MERGE_VERSION = 1;

/** What the bytes of a merge's output depend on. */
export interface MergeInputs {
  /** The folder of the base. */
  readonly base: Folder;
  /** Its files that are read. */
  readonly files: readonly string[];
  /** The adapters. */
  readonly adapters: readonly WeightedAdapter[];
  /** What was asked for. */
  readonly options: MergeOptions & { readonly outType?: string };
  /** Where deltas are computed. */
  readonly backend: Backend;
}

/** Tells what the output depends on, so that a later run can see whether it is the same merge. */
export async function identify(inputs: MergeInputs): Promise<MergeIdentity> {
  const { base, files, adapters, options, backend } = inputs;
  const identity = new Map<string, string | null>([["this package", String(MERGE_VERSION)]]);
  for (const file of files) {
    if (!await base.has(file, options)) continue;
    identity.set(`base ${file}`, await base.open(file).version?.(options) ?? null);
  }
  adapters.forEach(({ adapter, weight = 1 }, i) => identity.set(`adapter ${i + 1}`, `${weight} ${adapter.id}`));
  identity.set("dtype", options.dtype ?? options.outType ?? "as stored");
  identity.set("groups", options.expandGroups ? "expanded" : "as stored");
  identity.set("engine", await probeArithmetic(backend));
  return identity;
}

/** Engines fuse multiply-adds or do not, and sum in their own order: one output has the sums of one kind. */
async function probeArithmetic(backend: Backend): Promise<string> {
  const [size, rank] = [13, 37];
  const weight = (rows: number, columns: number) => {
    const values = Float32Array.from({ length: rows * columns }, (_, i) => Math.fround((i * 7919 % 1009) / 1009 - 0.3));
    return backend.weight({ dtype: "f32", shape: [rows, columns], bytes: new Uint8Array(values.buffer) });
  };
  const handles: Disposable[] = [];
  try {
    const [a, b] = [weight(rank, size), weight(size, rank)];
    handles.push(a, b);
    const delta = backend.deltaWeight({ a, b, scaling: 1 / 3 });
    handles.push(delta);
    const values = await backend.read(delta);
    return toHex(await sha256(new Uint8Array(values.buffer, values.byteOffset, values.byteLength)));
  } finally {
    for (const handle of handles) handle[Symbol.dispose]();
  }
}
