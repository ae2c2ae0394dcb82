import type { ReportLine, TokenRows } from "../adapter/adapter.ts";
import { isFloatTensor } from "../formats/float_bits.ts";
import { MismatchError } from "../errors.ts";
import { type Dtype, isSameTensor, type StoredTensor } from "../formats/dtype.ts";
import { quote } from "../formats/quote.ts";
import { sizeOf } from "../shape.ts";
import type { ConfigEdits, MergeStep, MergeTarget } from "./merge_plan.ts";
import type { BaseTensors } from "./naming.ts";
import type { TiedTable } from "./tied.ts";

/** The view of rows in which a step is computed. */
export interface StepView {
  /** Elements per row. */
  readonly columns: number;
  /** Groups of a convolution that loses them; 1 if absent. */
  readonly groups?: number;
  /** Shape of the output where it is another than the base's. */
  readonly shape?: readonly number[];
}

/** A tensor that does not change yet. */
export interface NewTensor {
  /** File that it goes to. */
  readonly file: string;
  /** Its values. */
  readonly values: StoredTensor;
}

type Entry = { -readonly [Field in keyof MergeTarget]: MergeTarget[Field] } & {
  readonly rows: TokenRows[];
  readonly steps: MergeStep[];
};

/** The tensors of the output while a merge is being planned. */
export class MergeDraft {
  /** The base, by the names of the output. */
  readonly tensors: BaseTensors;
  /** Its tied table, if it has one. */
  readonly tied: TiedTable | null;
  /** What was chosen on the way. */
  readonly report: ReportLine[] = [];
  readonly #entries: Map<string, Entry> = new Map();
  #vocabSize: number | undefined;

  /** Begins with a base. */
  constructor(tensors: BaseTensors, tied: TiedTable | null) {
    this.tensors = tensors;
    this.tied = tied;
  }

  /** Whether there is such a tensor, or will be. */
  has(name: string): boolean {
    return this.tensors.has(name) || this.#entries.has(name) || name === this.tied?.head;
  }

  /** The shape of a tensor as it will be. */
  shapeOf(name: string): readonly number[] {
    return this.#entry(name).shape;
  }

  /** The element type of a tensor. */
  dtypeOf(name: string): Dtype {
    return this.#entry(name).dtype;
  }

  /** The file that a tensor goes to. */
  fileOf(name: string): string {
    return this.#entry(name).file;
  }

  /** Begins a tensor that the base has not. */
  add(name: string, { file, values }: NewTensor): void {
    const { dtype, shape } = values;
    const sizes = { shape, columns: columnsOf(shape), groups: 1 };
    this.#entries.set(name, { source: null, values, file, dtype, ...sizes, rows: [], steps: [] });
  }

  /** Puts other values in the place of a tensor's. */
  replace(name: string, values: StoredTensor): void {
    const entry = this.#entry(name);
    if (entry.values && !isSameTensor(entry.values, values)) throw refuseTwo(name, "replace it by different values");
    const isTable = values.shape.length === 2 && values.shape[1] === entry.shape[1];
    if (values.shape.join() !== entry.shape.join()) {
      if (!isTable || !/(?:embed|wte|lm_head)/.test(name)) throw refuseShape(name, values.shape, entry.shape);
      this.#vocabSize = values.shape[0]!;
      const what = `its ${entry.shape[0]} rows become ${values.shape[0]}`;
      this.report.push({ module: name, what, why: "the adapter was trained with a vocabulary of that size" });
    }
    if (!entry.values && !isFloatTensor(entry)) entry.dtype = values.dtype;
    Object.assign(entry, { values, shape: values.shape, columns: columnsOf(values.shape) });
  }

  /** Replaces rows of a table. */
  addRows(name: string, rows: TokenRows): void {
    const entry = this.#entry(name);
    requireFloat(name, entry);
    const [count, dim] = entry.shape;
    const outside = rows.indices.find((index) => index >= count!);
    if (entry.shape.length !== 2 || rows.rows.shape[1] !== dim) throw refuseShape(name, rows.rows.shape, entry.shape);
    if (outside !== undefined) {
      const message = `Cannot merge row ${outside} into ${quote(name)} with ${count} rows: resize the base first`;
      throw new MismatchError(message, {
        tensor: name,
        field: "trainable_token_indices",
        found: outside,
        expected: count,
      });
    }
    for (const other of entry.rows) {
      if (other === rows || isSameRows(other, rows)) return;
      const both = rows.indices.find((index) => other.indices.includes(index));
      if (both !== undefined) throw refuseTwo(name, `replace row ${both}`);
    }
    entry.rows.push(rows);
  }

  /** Whether a tensor has steps by now. */
  hasSteps(name: string): boolean {
    return (this.#entries.get(name)?.steps.length ?? 0) > 0;
  }

  /** Adds a step. */
  addStep(name: string, step: MergeStep, view?: StepView): void {
    const entry = this.#entry(name);
    requireFloat(name, entry);
    entry.steps.push(step);
    if (!view) return;
    const { columns, groups = 1, shape = entry.shape } = view;
    Object.assign(entry, { columns, groups, shape });
  }

  /** The tensors that are no plain copies, and what that means for the config. */
  finish(): { readonly targets: ReadonlyMap<string, MergeTarget>; readonly config: ConfigEdits } {
    const targets = new Map<string, MergeTarget>(this.#entries);
    for (const [name, target] of targets) {
      if (target.source?.name === name && isUntouched(target)) targets.delete(name);
    }
    const vocabSize = this.#vocabSize === undefined ? {} : { vocabSize: this.#vocabSize };
    const { tied } = this;
    if (!tied || (!targets.has(tied.table) && !this.#entries.has(tied.head ?? ""))) {
      return { targets, config: vocabSize };
    }
    const [table, head] = [this.#entry(tied.table), this.#entry(tied.head ?? tied.table)];
    if (isSameTarget(table, head)) {
      if (tied.head !== null && !this.tensors.has(tied.head)) targets.delete(tied.head);
      return { targets, config: vocabSize };
    }
    targets.set(tied.head!, head);
    const why = "one of the two changes, or both in different ways: tie_word_embeddings is false now";
    this.report.push({ module: tied.head!, what: "the head is no longer the input embedding", why });
    return { targets, config: { ...vocabSize, tied: false } };
  }

  #entry(name: string): Entry {
    const known = this.#entries.get(name);
    if (known) return known;
    const tensor = this.tensors.get(name === this.tied?.head ? this.tied.table : name)!;
    const { file, dtype, shape } = tensor;
    const sizes = { shape, columns: columnsOf(shape), groups: 1 };
    const entry: Entry = { source: tensor, values: null, file, dtype, ...sizes, rows: [], steps: [] };
    this.#entries.set(name, entry);
    return entry;
  }
}

/** A vector is one row; all else has a row for each index of its first dimension. */
function columnsOf(shape: readonly number[]): number {
  return sizeOf(shape.slice(shape.length > 1 ? 1 : 0));
}

function isUntouched({ values, rows, steps }: MergeTarget): boolean {
  return !values && rows.length === 0 && steps.length === 0;
}

function isSameTarget(a: MergeTarget, b: MergeTarget): boolean {
  const isSameValues = a.values === b.values ||
    (a.values !== null && b.values !== null && isSameTensor(a.values, b.values));
  const isSameList = <T>(x: readonly T[], y: readonly T[]) =>
    x.length === y.length && x.every((one, i) => one === y[i]);
  return isSameValues && isSameList(a.rows, b.rows) && isSameList(a.steps, b.steps);
}

function isSameRows(a: TokenRows, b: TokenRows): boolean {
  return a.indices.join() === b.indices.join() && isSameTensor(a.rows, b.rows);
}

function refuseTwo(name: string, what: string): MismatchError {
  const message = `Cannot merge two adapters into ${quote(name)} that ${what}: expected one that does`;
  return new MismatchError(message, { tensor: name });
}

function refuseShape(name: string, found: readonly number[], expected: readonly number[]): MismatchError {
  const message = `Cannot replace tensor ${quote(name)} by one of shape [${found.join(", ")}]`;
  return new MismatchError(`${message}: the base has [${expected.join(", ")}]`, { tensor: name, found, expected });
}

function requireFloat(name: string, { dtype, file }: Entry): void {
  if (isFloatTensor({ dtype })) return;
  const expected = ["F32", "F16", "BF16"];
  const message = `Cannot merge into tensor ${quote(name)} of dtype ${dtype}: expected F32, F16 or BF16`;
  throw new MismatchError(message, { file, tensor: name, field: "dtype", found: dtype, expected });
}
