/**
 * Tables of the base that PEFT saves beside the factors of an embedding or a head. They are frozen: part of the base that
 * the adapter was trained on, not of what was trained.
 *
 * @module
 */

import { MismatchError } from "../errors.ts";
import { isSameTensor, type StoredTensor } from "../formats/dtype.ts";
import { quote } from "../formats/quote.ts";
import type { Adapter } from "./adapter.ts";

/** Tells whether a full tensor of an adapter is the base's own weight of a layer that has factors. */
export function isBaseTable({ modules }: Pick<Adapter, "modules">, tensor: string): boolean {
  return tensor.endsWith(".weight") && modules.has(tensor.slice(0, -".weight".length));
}

/**
 * Collects the tables of adapters of one base.
 *
 * @param adapters The adapters.
 * @returns The tables by name.
 * @throws {MismatchError} If two adapters have different values for one.
 */
export function sharedTables(adapters: readonly Adapter[]): ReadonlyMap<string, StoredTensor> {
  const tables = new Map<string, readonly [adapter: Adapter, table: StoredTensor]>();
  for (const adapter of adapters) {
    for (const [tensor, table] of adapter.replacements) {
      if (!isBaseTable(adapter, tensor)) continue;
      const [first, known] = tables.get(tensor) ?? [adapter, table];
      if (known !== table && !isSameTensor(known, table)) throw refuseOther(tensor, first, adapter);
      tables.set(tensor, [first, known]);
    }
  }
  return new Map([...tables].map(([tensor, [, table]]) => [tensor, table]));
}

function refuseOther(tensor: string, first: Adapter, other: Adapter): MismatchError {
  const message = `Cannot combine ${quote(first.name)} with ${quote(other.name)}, which has another ${quote(tensor)}`;
  const details = { file: other.name, tensor, found: other.replacements.get(tensor)?.shape };
  return new MismatchError(`${message} of its base: expected adapters of one base`, details);
}
