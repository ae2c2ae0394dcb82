import { Adapter, type AdapterParts } from "./adapter.ts";
import { identify } from "./identity.ts";
import { encodeWeights } from "./save.ts";

/** What an adapter that is in no file yet is made of. */
export type NewAdapterParts =
  & Omit<AdapterParts, "trainingState" | "sha256" | "id" | "bytes">
  & Partial<Pick<AdapterParts, "trainingState">>;

/**
 * Makes an adapter that is in no file yet.
 *
 * @param parts Its parts.
 * @returns The adapter, with size and digests of the file that saving it would write.
 */
export async function newAdapter(parts: NewAdapterParts): Promise<Adapter> {
  const weights = encodeWeights(parts.modules.values(), parts);
  const { sha256, id } = await identify(weights, parts.config);
  return new Adapter({ trainingState: new Map(), ...parts, sha256, id, bytes: weights.length });
}
