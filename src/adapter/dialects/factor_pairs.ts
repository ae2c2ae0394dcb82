import { FormatError, LimitError, MismatchError } from "../../errors.ts";
import type { StoredTensor } from "../../formats/dtype.ts";
import { quote } from "../../formats/quote.ts";
import { type AdapterLimits, DEFAULT_LIMITS } from "../limits.ts";
import type { NamedTensor } from "../full_tensors.ts";
import { requireLinear } from "./refusals.ts";

/** Both factors of a module, as PEFT has them. */
export interface FactorPair {
  /** Path of the module. */
  readonly name: string;
  /** A (rank, in), under its name in the file. */
  readonly a: NamedTensor;
  /** B (out, rank), under its name in the file. */
  readonly b: NamedTensor;
}

/** Collects the factors of a file by module; whatever has no place is refused by tensor name. */
export class FactorPairs {
  readonly #file: string;
  readonly #limits: typeof DEFAULT_LIMITS;
  readonly #allowed: ReadonlySet<string> | null;
  readonly #factors = new Map<string, { a?: NamedTensor; b?: NamedTensor }>();

  /** Collects from a file; with `modules`, only for these. */
  constructor(
    file: string,
    options: { readonly limits?: AdapterLimits; readonly modules?: Iterable<string> | undefined } = {},
  ) {
    this.#file = file;
    this.#limits = { ...DEFAULT_LIMITS, ...options.limits };
    this.#allowed = options.modules === undefined ? null : new Set(options.modules);
  }

  /**
   * Adds one factor in PEFT's orientation.
   *
   * @throws {FormatError} If it is no linear layer's, or the module has it already.
   * @throws {MismatchError} If the base has no such module.
   * @throws {LimitError} If there are too many modules.
   */
  add(module: string, part: "a" | "b", tensor: string, stored: StoredTensor): void {
    const file = this.#file;
    requireLinear({ module, tensor, stored, file });
    if (this.#allowed && !this.#allowed.has(module)) {
      const message = `Cannot place tensor ${quote(tensor)} of ${quote(file)}: the base has no linear layer`;
      throw new MismatchError(`${message} ${quote(module)}`, { file, tensor, unexpected: [module] });
    }
    const pair = this.#factors.get(module) ?? {};
    const twin = pair[part];
    if (twin) {
      const message = `Cannot read ${quote(file)} with both ${quote(twin.name)} and ${quote(tensor)}`;
      throw new FormatError(`${message}: they are one factor of one module`, { file, tensor });
    }
    pair[part] = { name: tensor, dtype: stored.dtype, shape: stored.shape, bytes: stored.bytes };
    this.#factors.set(module, pair);
    const limit = this.#limits.modules;
    if (this.#factors.size <= limit) return;
    const message = `Cannot read ${quote(file)} with more than ${limit} modules: expected at most ${limit}`;
    throw new LimitError(message, { file, field: "modules", limit, value: this.#factors.size });
  }

  /**
   * Gives all pairs.
   *
   * @throws {FormatError} If there is none, or a factor is no matrix.
   * @throws {MismatchError} If a factor lacks its partner, or their ranks differ.
   * @throws {LimitError} If a rank is above its cap.
   */
  complete(): readonly FactorPair[] {
    if (this.#factors.size === 0) {
      const message = `Cannot read ${quote(this.#file)} without adapted modules: expected pairs of factors`;
      throw new FormatError(message, { file: this.#file });
    }
    return Array.from(this.#factors, ([name, { a, b }]) => {
      if (a === undefined || b === undefined) {
        const found = (a ?? b)!.name;
        const message = `Cannot read tensor ${quote(found)} of ${quote(this.#file)} without its partner`;
        const missing = `${a ? "B" : "A"} of ${quote(name)}`;
        throw new MismatchError(`${message}: expected the ${missing}`, {
          file: this.#file,
          tensor: found,
          missing: [missing],
        });
      }
      this.#checkRank(a, b);
      return { name, a, b };
    });
  }

  #checkRank(a: NamedTensor, b: NamedTensor): void {
    const file = this.#file;
    for (const { name, shape } of [a, b]) {
      if (shape.length === 2 && shape[0]! >= 1 && shape[1]! >= 1) continue;
      const message = `Cannot read tensor ${quote(name)} of ${quote(file)} and shape [${shape.join(", ")}]`;
      const details = { file, tensor: name, found: shape, expected: "two dimensions" };
      throw new FormatError(`${message}: expected a matrix with at least one element`, details);
    }
    const [rank, columns] = [a.shape[0]!, b.shape[1]!];
    if (columns !== rank) {
      const message = `Cannot read tensor ${quote(b.name)} of ${quote(file)} and rank ${columns}`;
      throw new MismatchError(`${message}: expected ${rank}, that of ${quote(a.name)}`, {
        file,
        tensor: b.name,
        found: columns,
        expected: rank,
      });
    }
    const limit = this.#limits.rank;
    if (rank <= limit) return;
    const message = `Cannot read tensor ${quote(a.name)} of ${quote(file)} and rank ${rank}: expected at most ${limit}`;
    throw new LimitError(message, { file, tensor: a.name, field: "rank", limit, value: rank });
  }
}
