import type { ReportLine } from "../adapter/adapter.ts";
import { isRepeatable } from "../adapter/variant_fields.ts";
import { toPlainLora } from "../adapter/to_plain.ts";
import type { WeightedAdapter } from "../adapter/weighted_adapter.ts";
import { MismatchError } from "../errors.ts";
import type { Checkpoint } from "../formats/checkpoint.ts";
import { quote } from "../formats/quote.ts";
import type { ReadOptions } from "../formats/source.ts";
import { MergeDraft } from "./draft.ts";
import { squareOrientation } from "./orientation.ts";
import { placeModules } from "./places.ts";

/** Adapters that fit the base as it is. */
export interface SettledAdapters {
  /** The adapters. */
  readonly adapters: readonly WeightedAdapter[];
  /** What was computed. */
  readonly report: readonly ReportLine[];
}

/**
 * Makes plain LoRA of adapters whose initialisation changed the base, where the base tells how: PiSSA, OLoRA and KaSA.
 *
 * @param checkpoint The base as it was published.
 * @param adapters The adapters.
 * @param options A signal.
 * @returns The adapters for that base; those of other initialisations are left for the plan to refuse.
 * @throws {MismatchError} If a module has no weight there.
 */
export async function settleBaseChanges(
  checkpoint: Checkpoint,
  adapters: readonly WeightedAdapter[],
  options: ReadOptions,
): Promise<SettledAdapters> {
  const settled: WeightedAdapter[] = [];
  const report: ReportLine[] = [];
  for (const weighted of adapters) {
    const { adapter } = weighted;
    if (!isRepeatable(adapter.baseChange)) {
      settled.push(weighted);
      continue;
    }
    const draft = new MergeDraft(checkpoint.tensors, null);
    const places = placeModules(adapter, draft);
    const weightOf = async (module: string) => {
      const tensor = places.tensorOf(module);
      if (tensor !== undefined) return await checkpoint.read(tensor, options);
      const message = `Cannot merge ${quote(adapter.name)}: the base has no weight for ${quote(module)}`;
      throw new MismatchError(message, { tensor: module, unexpected: [module] });
    };
    const isTransposed = squareOrientation(adapter, places, draft);
    const plain = await toPlainLora(adapter, { weightOf, isTransposed });
    settled.push({ ...weighted, adapter: plain });
    report.push(...plain.report.slice(-1));
  }
  return { adapters: settled, report };
}
