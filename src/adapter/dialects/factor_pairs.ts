import { FormatError, LimitError, MismatchError } from "../../errors.ts";
import type { StoredTensor } from "../../formats/dtype.ts";
import { quote } from "../../formats/quote.ts";
import { type AdapterLimits, DEFAULT_LIMITS } from "../limits.ts";
import type { NamedTensor } from "../full_tensors.ts";
import { measureFactors, type ModuleFactors } from "../module_shapes.ts";
import { isEmbedding, type OtherKinds, requireKind } from "./refusals.ts";

/** The tensors of a module, as PEFT has them. */
export interface FactorPair extends Omit<ModuleFactors, "diagonal"> {
  /** E, where they are those of fused experts. */
  readonly experts?: number;
}

/** r: the rows of A, divided by the number of experts. */
export function rankOf({ a, experts = 1 }: FactorPair): number {
  return a.shape[0]! / experts;
}

/** A pair of factors with its alpha: s = alpha / rank. */
export interface ScaledPair extends FactorPair {
  /** The alpha that the file means. */
  readonly alpha: number;
}

/** What a tensor is to its module. */
export type FactorPart = "a" | "b" | "magnitude" | "loraBias";

/** Options of {@linkcode FactorPairs}. */
export interface FactorPairsOptions {
  /** Caps; what is absent has its default. */
  readonly limits?: AdapterLimits | undefined;
  /** Paths of the base's layers, the only ones allowed; all are if absent. */
  readonly modules?: Iterable<string> | undefined;
  /** What the dialect has beside linear layers. */
  readonly kinds?: OtherKinds;
}

/** Collects the tensors of a file by module; whatever has no place is refused by tensor name. */
export class FactorPairs {
  readonly #file: string;
  readonly #limits: typeof DEFAULT_LIMITS;
  readonly #allowed: ReadonlySet<string> | null;
  readonly #kinds: OtherKinds;
  readonly #factors = new Map<string, { -readonly [part in FactorPart]?: NamedTensor }>();

  /** Collects from a file. */
  constructor(file: string, { limits, modules, kinds = {} }: FactorPairsOptions = {}) {
    this.#file = file;
    this.#limits = { ...DEFAULT_LIMITS, ...limits };
    this.#allowed = modules === undefined ? null : new Set(modules);
    this.#kinds = kinds;
  }

  /**
   * Adds one tensor in PEFT's orientation.
   *
   * @throws {FormatError} If it is of a kind of layer that the dialect does not have, or the module has it already.
   * @throws {MismatchError} If the base has no such module.
   * @throws {LimitError} If there are too many modules.
   */
  add(module: string, part: FactorPart, tensor: string, stored: StoredTensor): void {
    const file = this.#file;
    if (part === "a" || part === "b") requireKind({ module, tensor, stored, file }, this.#kinds);
    if (this.#allowed && !this.#allowed.has(module)) {
      const message = `Cannot place tensor ${quote(tensor)} of ${quote(file)}: the base has no layer`;
      throw new MismatchError(`${message} ${quote(module)}`, { file, tensor, unexpected: [module] });
    }
    const pair = this.#factors.get(module) ?? {};
    const twin = pair[part];
    if (twin) {
      const message = `Cannot read ${quote(file)} with both ${quote(twin.name)} and ${quote(tensor)}`;
      throw new FormatError(`${message}: expected one, as they are one part of one module`, { file, tensor });
    }
    pair[part] = { name: tensor, dtype: stored.dtype, shape: stored.shape, bytes: stored.bytes };
    this.#factors.set(module, pair);
    const limit = this.#limits.modules;
    if (this.#factors.size <= limit) return;
    const message = `Cannot read ${quote(file)} with more than ${limit} modules: expected at most ${limit}`;
    throw new LimitError(message, { file, field: "modules", limit, value: this.#factors.size });
  }

  /** Whether nothing was added. */
  get isEmpty(): boolean {
    return this.#factors.size === 0;
  }

  /**
   * Gives all modules.
   *
   * @throws {FormatError} If there is none, or a factor has a shape that none has.
   * @throws {MismatchError} If a factor lacks its partner, or their ranks differ.
   * @throws {LimitError} If a rank is above its cap.
   */
  complete(): readonly FactorPair[] {
    if (this.#factors.size === 0) {
      const message = `Cannot read ${quote(this.#file)} without adapted modules: expected pairs of factors`;
      throw new FormatError(message, { file: this.#file });
    }
    return Array.from(this.#factors, ([name, { a, b, ...extras }]) => {
      if (a === undefined || b === undefined) {
        const found = (a ?? b ?? extras.magnitude ?? extras.loraBias)!.name;
        const message = `Cannot read tensor ${quote(found)} of ${quote(this.#file)} without its partner`;
        const missing = `${a ? "B" : "A"} of ${quote(name)}`;
        throw new MismatchError(`${message}: expected the ${missing}`, {
          file: this.#file,
          tensor: found,
          missing: [missing],
        });
      }
      const factors = { name, a, b, isEmbedding: isEmbedding(name), ...extras };
      this.#checkRank(a, measureFactors(factors, [], this.#file).rank);
      return factors;
    });
  }

  #checkRank(a: NamedTensor, rank: number): void {
    const file = this.#file;
    const limit = this.#limits.rank;
    if (rank <= limit) return;
    const message = `Cannot read tensor ${quote(a.name)} of ${quote(file)} and rank ${rank}: expected at most ${limit}`;
    throw new LimitError(message, { file, tensor: a.name, field: "rank", limit, value: rank });
  }
}
