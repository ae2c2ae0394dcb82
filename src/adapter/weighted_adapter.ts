import type { Adapter } from "./adapter.ts";

/** An adapter with the factor of its contribution. */
export interface WeightedAdapter {
  /** The adapter. */
  readonly adapter: Adapter;
  /** Its factor; any finite number, 1 if absent. */
  readonly weight?: number;
}
