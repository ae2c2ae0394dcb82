import { Adapter } from "./adapter.ts";

/** An adapter with the factor of its contribution. */
export interface WeightedAdapter {
  /** The adapter. */
  readonly adapter: Adapter;
  /** Its factor; any finite number, 1 if absent. */
  readonly weight?: number;
}

/**
 * Checks that every one holds an adapter.
 *
 * @param action What is done with them, as messages say it.
 * @param adapters What a caller gave.
 * @throws {TypeError} If one is something else, such as an adapter without its wrapping.
 */
export function checkWeighted(action: string, adapters: readonly WeightedAdapter[]): void {
  if (!Array.isArray(adapters)) {
    const found = (adapters as unknown) instanceof Adapter ? "an adapter" : `a ${typeof adapters}`;
    throw new TypeError(`Cannot ${action} ${found} in place of a list: expected [{ adapter, weight }]`);
  }
  for (const given of adapters) {
    if (given?.adapter instanceof Adapter) continue;
    const found = (given as unknown) instanceof Adapter ? "an adapter alone" : `an ${typeof given?.adapter} as adapter`;
    throw new TypeError(`Cannot ${action} ${found}: expected { adapter, weight }, with what loadAdapter() gives`);
  }
}
