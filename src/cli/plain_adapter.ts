import { Adapter } from "../adapter/adapter.ts";
import { CONFIG_FILE } from "../adapter/lora_config.ts";
import { toPlainLora } from "../adapter/to_plain.ts";
import { settleBaseChanges } from "../checkpoint/base_changes.ts";
import { openCheckpoint } from "../formats/checkpoint.ts";
import type { ReadOptions } from "../formats/source.ts";
import { adapterArguments, loadArgument, modelArgument } from "./arguments.ts";
import { UsageError } from "./command.ts";

/** How the base changed before training. */
export interface PlainOptions {
  /** The adapter before training. */
  readonly initial?: string;
  /** Whether the base tells. */
  readonly plain: boolean;
  /** The base. */
  readonly base?: string;
}

/**
 * Makes plain LoRA of an adapter whose initialisation changed the base, where that is asked for.
 *
 * @throws {UsageError} If the base is needed and not given.
 */
export async function asPlain(adapter: Adapter, given: PlainOptions, options: ReadOptions): Promise<Adapter> {
  const { initial, plain, base } = given;
  if (adapter.baseChange === null) return initial !== undefined || plain ? unchanged(adapter) : adapter;
  if (initial !== undefined) {
    const [argument] = adapterArguments([initial], false);
    return await toPlainLora(adapter, { initial: await loadArgument(argument!, options) });
  }
  if (!plain) return adapter;
  const folder = base === undefined ? undefined : await modelArgument(base);
  if (!folder || !("open" in folder)) {
    throw new UsageError("Cannot make plain LoRA without --base or --initial: a Hugging Face folder is wanted");
  }
  const { adapters } = await settleBaseChanges(await openCheckpoint(folder, options), [{ adapter }], options);
  return adapters[0]!.adapter;
}

/** Says that there is nothing to make plain: a magnitude or a full tensor is no change of the base. */
function unchanged(adapter: Adapter): Adapter {
  const what = "it is written as it is: nothing of it was made plain";
  const why = "its training began with the base unchanged; of DoRA or full tensors merge and extract make plain LoRA";
  return new Adapter({ ...adapter, report: [...adapter.report, { module: CONFIG_FILE, what, why }] });
}
