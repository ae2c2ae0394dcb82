import type { Adapter } from "../adapter/adapter.ts";
import { isBaseTable } from "../adapter/base_tables.ts";
import { ownerPath } from "../adapter/paths.ts";
import { MismatchError } from "../errors.ts";
import { quote } from "../formats/quote.ts";
import type { MergeDraft } from "./draft.ts";
import type { Places } from "./places.ts";

/** Plans the tensors that an adapter has in full. */
export function planReplacements(draft: MergeDraft, adapter: Adapter, { naming }: Places, lastFile: string): void {
  for (const [own, values] of adapter.replacements) {
    const name = naming.toBase(own);
    if (draft.has(name)) {
      const meant = { isAlone: isTrainedAlone(adapter, own), module: own, adapter };
      // A tied table that is saved beside the factors of the head is the base's, which the embedding has too.
      const isTable = draft.tied?.head === name && isBaseTable(adapter, own);
      for (const tensor of followers(draft, isTable ? draft.tied!.table : name, meant)) draft.replace(tensor, values);
      continue;
    }
    if (naming.what && naming.toAdapter(name) !== own) throw refuseName(adapter, own);
    draft.add(name, { file: lastFile, values });
    draft.report.push({ module: own, what: "the base has no such tensor", why: "it is added" });
  }
}

/** A part of the model beside that which the base's names leave out cannot be told from a part inside. */
function refuseName(adapter: Adapter, name: string): MismatchError {
  const message =
    `Cannot add tensor ${quote(name)} of ${quote(adapter.name)} to a base whose tensors lack the model's ` +
    "name before them: save the base as the whole model first";
  return new MismatchError(message, { tensor: name, unexpected: [name] });
}

/** Plans the new rows of embeddings. A tied head follows unless it has rows of its own. */
export function planTokenRows(draft: MergeDraft, adapter: Adapter, { naming }: Places): void {
  const names = new Map([...adapter.tokenRows].map(([path, rows]) => [naming.toBase(`${path}.weight`), rows]));
  for (const [name, rows] of names) {
    if (!draft.has(name)) {
      const message = `Cannot merge the token rows of ${quote(adapter.name)}: the base has no ${quote(name)}`;
      throw new MismatchError(message, { tensor: name, field: "trainable_token_indices", unexpected: [name] });
    }
    const isAlone = names.has(draft.tied?.head ?? "");
    for (const tensor of followers(draft, name, { isAlone, module: name, adapter })) draft.addRows(tensor, rows);
  }
}

/**
 * The tensors that change with one: a tied table and its head go together, unless only one of them is meant.
 *
 * @throws {MismatchError} If only the table is meant, and the base's names do not tell that of the head.
 */
export function followers(
  draft: MergeDraft,
  name: string,
  { isAlone, module, adapter }: { readonly isAlone: boolean; readonly module: string; readonly adapter: Adapter },
): readonly string[] {
  const { tied } = draft;
  if (!tied || name !== tied.table) return [name];
  if (!isAlone) return tied.head === null ? [name] : [name, tied.head];
  if (tied.head !== null) return [name];
  const message =
    `Cannot merge ${quote(module)} of ${quote(adapter.name)} into ${quote(name)}, which is also the head, ` +
    "whose name the base's names do not tell: untie the base first";
  const details = { field: "tie_word_embeddings", found: true, expected: false };
  throw new MismatchError(message, { code: "unsupported", tensor: module, ...details });
}

/** Modules that are trained in full are copies of their own; PEFT's tying keeps them together. */
function isTrainedAlone({ config }: Adapter, name: string): boolean {
  const path = ownerPath(name);
  return !config.ensureWeightTying && (config.modulesToSave?.some((entry) => path.endsWith(entry)) ?? false);
}
