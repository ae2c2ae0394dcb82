import { MismatchError } from "../../errors.ts";
import { isSameTensor } from "../../formats/dtype.ts";
import type { JsonValue } from "../../formats/json.ts";
import { quote } from "../../formats/quote.ts";
import type { Adapter, LoraKind, LoraModule, ReportLine } from "../adapter.ts";
import { isBaseTable } from "../base_tables.ts";
import { type LoraConfig, readLoraConfig } from "../lora_config.ts";
import { baseFieldOf } from "../variant_fields.ts";
import { transposeStored } from "./matrix_bytes.ts";
import type { WriteDialectOptions } from "./options.ts";
import { isTokenTable } from "./refusals.ts";

/** What a dialect has a place for, beside A and B of linear layers. */
export interface Holds {
  /** Name of the dialect, for messages. */
  readonly dialect: string;
  /** Kinds of layers; linear ones alone if absent. */
  readonly kinds?: readonly LoraKind[];
  /** Parts of modules. */
  readonly parts?: readonly ("magnitude" | "loraBias")[];
  /** Whether it can hold the tokens that switch an adapter on. */
  readonly invocationTokens?: boolean;
  /** Where factors of an embedding that is the head too act: in both, or nowhere; as PEFT says if absent. */
  readonly tiedTable?: "both" | "nowhere";
}

/** What is written of an adapter. */
export interface Held {
  /** The modules. */
  readonly modules: readonly LoraModule[];
  /** The config, without what is left out. */
  readonly config: LoraConfig;
  /** What is left out. */
  readonly report: readonly ReportLine[];
}

/** Something that a dialect has no place for. */
interface Loss {
  /** Name of the tensor or field. */
  readonly name: string;
  /** What it is, in the plural. */
  readonly what: string;
  /** What becomes of the adapter without it; another function if absent. */
  readonly left?: string;
}

const INVOCATION = "alora_invocation_tokens";
const PARAMETERS = "target_parameters";
/** Fields of the config that are not what they were when their tensors are left out. */
const CLEARED: ReadonlyMap<string, JsonValue> = new Map<string, JsonValue>([
  ["bias", "none"],
  ["modules_to_save", null],
  ["trainable_token_indices", null],
  [INVOCATION, null],
  ["ensure_weight_tying", false],
  [PARAMETERS, null],
]);

/**
 * Takes what a dialect can hold of an adapter. What it cannot is refused by name, or left out and reported where the
 * caller allows the loss; an adapter whose meaning is bound to a changed base is always refused.
 *
 * @param adapter The adapter.
 * @param holds What the dialect can hold.
 * @param options `allowLoss`, `tied`.
 * @returns What is to be written.
 * @throws {MismatchError} If something would be lost without leave, or nothing would be left.
 */
export function requireHeld(adapter: Adapter, holds: Holds, options: WriteDialectOptions): Held {
  refuseChangedBase(adapter, holds);
  const { allowLoss = false } = options;
  const tie = tieOf(adapter, holds, options);
  const losses = adapterLosses(adapter, holds, tie);
  const modules: LoraModule[] = [];
  const turned: ReportLine[] = [];
  const own = [...adapter.modules.values()];
  const table = tie === "kept" ? own.find(({ name }) => isTokenTable(name)) : undefined;
  for (const module of own) {
    if (table && isTurned(module, table)) {
      const why = `they are those of ${quote(table.name)}, transposed, which act in both there`;
      turned.push({ module: module.name, what: "its factors are left out", why });
      continue;
    }
    const { held, lost } = reduceModule(module, holds, tie);
    losses.push(...lost);
    if (held) modules.push(held);
  }
  if (losses.length === 0) return { modules, config: adapter.config, report: turned };
  if (!allowLoss || modules.length === 0) throw refuseLoss(adapter, losses, holds);
  const raw = new Map(adapter.config.raw);
  const kept = [holds.invocationTokens ? INVOCATION : null, holds.kinds?.includes("experts") ? PARAMETERS : null];
  for (const [field, value] of CLEARED) if (raw.has(field) && !kept.includes(field)) raw.set(field, value);
  raw.set("use_dora", modules.some(({ magnitude }) => magnitude));
  raw.set("lora_bias", modules.some(({ loraBias }) => loraBias));
  const report = Array.from(Map.groupBy(losses, ({ what }) => what), ([what, names]): ReportLine => ({
    module: names[0]!.name,
    what: `${names.length} ${what} left out, this one first`,
    why: `${holds.dialect} has no place for them: ${names[0]!.left ?? "what is written is another function"}`,
  }));
  return { modules, config: readLoraConfig(raw), report: [...turned, ...report] };
}

function refuseChangedBase({ name, baseChange, config }: Adapter, { dialect }: Holds): void {
  const field = config.layerReplication ? "layer_replication" : baseChange === null ? null : baseFieldOf(baseChange);
  if (field === null) return;
  const found = baseChange ?? "layers that stand several times";
  const message = `Cannot write ${quote(name)} as ${dialect} with ${field} ${quote(found)}`;
  const remedy = baseChange === null ? "merge it into a checkpoint instead" : "lora convert --plain or --initial";
  throw new MismatchError(`${message}: expected an adapter of the base as it was published; ${remedy}`, {
    code: "unsupported",
    file: name,
    field,
    found,
  });
}

/** What becomes of the factors of a tied embedding; of one that is not, "apart". */
type Tie = "apart" | "kept" | "lost";

function tieOf({ config }: Adapter, { tiedTable }: Holds, { tied = false }: WriteDialectOptions): Tie {
  if (!tied || tiedTable === undefined) return "apart";
  return tiedTable === "both" && config.ensureWeightTying ? "kept" : "lost";
}

/** Whether a head's factors are those of the table, transposed. */
function isTurned(head: LoraModule, table: LoraModule): boolean {
  return head.kind === "linear" && head.scaling === table.scaling &&
    isSameTensor(transposeStored(head.loraA), table.loraB) && isSameTensor(transposeStored(head.loraB), table.loraA);
}

/** Whether the dialect's tool would take the factors for those of the other side of the tie too, or for nothing. */
function isLostTie({ name }: LoraModule, tie: Tie): boolean {
  if (tie === "apart") return false;
  return isTokenTable(name) ? tie === "lost" : name === "lm_head" || name.endsWith(".lm_head");
}

/** PEFT saves the table of an embedding beside its factors, whether or not the published base has another one. */
const BASE_TABLE = { what: "tables of the base are", left: "over the base that has them it is the same function" };

function adapterLosses(adapter: Adapter, holds: Holds, tie: Tie): Loss[] {
  const { replacements, tokenRows, invocationTokens, config } = adapter;
  const losses: Loss[] = [];
  for (const name of replacements.keys()) {
    losses.push({ name, ...(isBaseTable(adapter, name) ? BASE_TABLE : { what: "full tensors are" }) });
  }
  for (const name of tokenRows.keys()) losses.push({ name, what: "tables of new token rows are" });
  if (invocationTokens !== null && !holds.invocationTokens) {
    losses.push({ name: INVOCATION, what: "lists of invocation tokens are" });
  }
  if (config.ensureWeightTying && tie !== "kept") {
    losses.push({ name: "ensure_weight_tying", what: "ties of embedding and head are" });
  }
  return losses;
}

function reduceModule(
  module: LoraModule,
  { kinds = ["linear"], parts = [] }: Holds,
  tie: Tie,
): { readonly held?: LoraModule; readonly lost: readonly Loss[] } {
  const { name, kind, magnitude, loraBias, ...plain } = module;
  if (isLostTie(module, tie)) return { lost: [{ name, what: "factors of a tied embedding or head are" }] };
  const isGrouped = kind === "conv" && module.loraB.shape[1] !== module.rank;
  if (!kinds.includes(kind) || isGrouped) {
    const what = isGrouped ? "grouped convolutions are" : `modules of kind ${kind} are`;
    return { lost: [{ name, what }] };
  }
  const lost: Loss[] = [];
  if (magnitude && !parts.includes("magnitude")) {
    lost.push({ name: `${name}.lora_magnitude_vector`, what: "magnitudes of DoRA are" });
  }
  if (loraBias && !parts.includes("loraBias")) lost.push({ name: `${name}.lora_B.bias`, what: "biases of B are" });
  const held: LoraModule = {
    ...plain,
    name,
    kind,
    ...(magnitude && parts.includes("magnitude") && { magnitude }),
    ...(loraBias && parts.includes("loraBias") && { loraBias }),
  };
  return { held, lost };
}

function refuseLoss({ name }: Adapter, losses: readonly Loss[], { dialect }: Holds): MismatchError {
  const kinds = [...new Set(losses.map(({ what }) => what.replace(/ are$/, "")))].join(", ");
  const first = losses[0]!.name;
  const message = `Cannot write ${quote(name)} as ${dialect}, which has no place for ${kinds}, first ${quote(first)}`;
  const expected = "--allow-loss (allowLoss), which leaves them out, or a dialect that holds them";
  return new MismatchError(`${message}: expected ${expected}`, {
    code: "loss",
    file: name,
    tensor: first,
    unexpected: losses.map((loss) => loss.name),
  });
}
