import { Adapter } from "../adapter/adapter.ts";
import type { LoadAdapterOptions } from "../adapter/load.ts";
import { CONFIG_FILE } from "../adapter/lora_config.ts";
import { toPlainLora } from "../adapter/to_plain.ts";
import { settleBaseChanges } from "../checkpoint/base_changes.ts";
import { openCheckpoint } from "../formats/checkpoint.ts";
import type { ReadOptions } from "../formats/source.ts";
import { type AdapterArgument, adapterArguments, checkAdapterPath, loadArgument, modelArgument } from "./arguments.ts";
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
  if (initial !== undefined) {
    const [argument] = adapterArguments([initial], false);
    return await toPlainLora(adapter, { initial: await loadArgument(argument!, options) });
  }
  if (adapter.baseChange === null) return plain ? unchanged(adapter) : adapter;
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

/** What `--initial` and `--residual-base` say. */
export interface BaseArguments {
  /** The adapters as they were before training, in the order of `--adapter`. */
  readonly initial: readonly string[];
  /** Whether the base is the changed one. */
  readonly residualBase: boolean;
}

/** An adapter to load, and over which base. */
export type AdapterOverBase = AdapterArgument & Pick<LoadAdapterOptions, "initial" | "residualBase">;

/**
 * Gives each adapter its initial one.
 *
 * @throws {UsageError} If there are more or fewer, or the base is said to be the changed one.
 */
export async function overBase(
  adapters: readonly AdapterArgument[],
  { initial, residualBase }: BaseArguments,
): Promise<AdapterOverBase[]> {
  if (initial.length === 0) return adapters.map((argument) => ({ ...argument, residualBase }));
  if (residualBase) throw new UsageError("Cannot use --initial and --residual-base: one of them is wanted");
  if (initial.length !== adapters.length) {
    const found = `${initial.length} --initial for ${adapters.length} --adapter`;
    throw new UsageError(
      `Cannot use ${found}: one for each is wanted, in their order; lora convert makes others plain`,
    );
  }
  const initials = adapterArguments(initial, false);
  for (const argument of initials) await checkAdapterPath(argument);
  return adapters.map((argument, i) => ({ ...argument, initial: initials[i]!.source }));
}
