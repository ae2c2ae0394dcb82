import { LimitError } from "../errors.ts";

/** Longest pattern, in UTF-16 units. */
const MAX_PATTERN = 16_384;
/** A repeat of more is one without end. */
const MANY = 16;

/** A parsed JavaScript pattern of flag "u". */
export type PatternTree =
  /** One character. */
  | { readonly kind: "set"; readonly source: string }
  | { readonly kind: "sequence"; readonly items: readonly PatternTree[] }
  | { readonly kind: "choice"; readonly options: readonly PatternTree[] }
  | {
    readonly kind: "repeat";
    readonly body: PatternTree;
    readonly min: number;
    readonly max: number;
    readonly lazy: boolean;
  }
  /** A look at what comes next, or at what came before. */
  | { readonly kind: "look"; readonly body: PatternTree; readonly behind: boolean; readonly negated: boolean };

/**
 * Parses a JavaScript pattern of flag "u" that the engine has accepted.
 *
 * @throws {RangeError} If it refers back to what it matched, or looks behind at texts of several lengths.
 * @throws {LimitError} If it has more than 16,384 characters.
 */
export function parseTree(source: string): PatternTree {
  if (source.length <= MAX_PATTERN) return new TreeReader(source).choice();
  throw new LimitError(`Cannot read a pattern of ${source.length} characters: expected at most ${MAX_PATTERN}`, {
    limit: MAX_PATTERN,
    value: source.length,
  });
}

class TreeReader {
  readonly #source: string;
  #at = 0;

  constructor(source: string) {
    this.#source = source;
  }

  choice(): PatternTree {
    const options = [this.#sequence()];
    while (this.#take("|")) options.push(this.#sequence());
    return options.length === 1 ? options[0]! : { kind: "choice", options };
  }

  #sequence(): PatternTree {
    const items: PatternTree[] = [];
    while (this.#at < this.#source.length && !/^[|)]/.test(this.#source.charAt(this.#at))) {
      items.push(this.#repeated(this.#atom()));
    }
    return items.length === 1 ? items[0]! : { kind: "sequence", items };
  }

  #repeated(body: PatternTree): PatternTree {
    const quantifier = this.#match(/(?:[*+?]|\{(\d+)(,?)(\d*)\})(\??)/y);
    if (!quantifier) return body;
    const [text, low, comma, high, lazy] = quantifier;
    const min = low === undefined ? (text.startsWith("+") ? 1 : 0) : Number(low);
    const bound = comma === "" ? min : high === "" ? Infinity : Number(high);
    const max = low === undefined ? (text.startsWith("?") ? 1 : Infinity) : bound;
    return { kind: "repeat", body, min, max, lazy: lazy !== "" };
  }

  #atom(): PatternTree {
    const group = this.#match(/\((?:\?(?:<?[=!]|:|<[^>=!]+>))?/y);
    if (group) return this.#group(group[0]);
    const back = this.#match(/\\(?:[1-9]|k<)/y);
    if (back) throw new RangeError("it refers back to what it matched");
    const set = this.#match(
      /\\[pPu]\{[^}]*\}|\\u[0-9a-fA-F]{4}|\\x[0-9a-fA-F]{2}|\\c.|\\.|\[(?:\\.|[^\]\\])*\]|[^]/suy,
    )!;
    if (/^(?:[\^$]|\\[bB])$/.test(set[0])) throw new RangeError(`it has "${set[0]}"`);
    return { kind: "set", source: set[0] };
  }

  #group(opening: string): PatternTree {
    const body = this.choice();
    this.#take(")");
    const look = /^\(\?(<?)([=!])/.exec(opening);
    if (!look) return body;
    const behind = look[1] === "<";
    if (behind) widthOf(body);
    return { kind: "look", body, behind, negated: look[2] === "!" };
  }

  #take(text: string): boolean {
    const found = this.#source.startsWith(text, this.#at);
    if (found) this.#at += text.length;
    return found;
  }

  #match(pattern: RegExp): RegExpExecArray | null {
    pattern.lastIndex = this.#at;
    const found = pattern.exec(this.#source);
    if (found) this.#at = pattern.lastIndex;
    return found;
  }
}

/**
 * Characters that a tree matches, always as many.
 *
 * @throws {RangeError} If they may be more or less.
 */
export function widthOf(tree: PatternTree): number {
  switch (tree.kind) {
    case "set":
      return 1;
    case "look":
      return 0;
    case "sequence":
      return tree.items.reduce((sum, item) => sum + widthOf(item), 0);
    case "repeat":
      if (tree.min === tree.max) return tree.min * widthOf(tree.body);
      break;
    case "choice": {
      const widths = new Set(tree.options.map(widthOf));
      if (widths.size === 1) return [...widths][0]!;
    }
  }
  throw new RangeError("it looks behind at texts of several lengths");
}

/** Whether a tree may match the empty text. */
export function isNullable(tree: PatternTree): boolean {
  switch (tree.kind) {
    case "set":
      return false;
    case "look":
      return true;
    case "sequence":
      return tree.items.every(isNullable);
    case "choice":
      return tree.options.some(isNullable);
    case "repeat":
      return tree.min === 0 || isNullable(tree.body);
  }
}

/**
 * Whether the engine's own matcher, which tries again what it has tried before, needs no more time than a few times the
 * text's length. So it is where a loop takes one character at a time and nothing after it can fail; or where a later
 * option takes the whole run that the loop went over in vain. All widespread tokenizers are of this kind.
 */
export function isSteady(tree: PatternTree): boolean {
  const options = tree.kind === "choice" ? tree.options : [tree];
  return options.every((option, index) => {
    const items = itemsOf(option);
    if (!items.every(isPlain)) return false;
    const vain = items.filter((item, i) => isLoop(item) && items.slice(i + 1).some(canFail));
    const later = options.slice(index + 1).map(runOf);
    return vain.length <= 1 && vain.every((loop) => later.includes(sourceOf(loop)));
  });
}

function itemsOf(tree: PatternTree): readonly PatternTree[] {
  return tree.kind === "sequence" ? tree.items : [tree];
}

type Repeat = PatternTree & { readonly kind: "repeat" };

function isLoop(tree: PatternTree): tree is Repeat {
  return tree.kind === "repeat" && tree.max > MANY;
}

/** Whether it has no loop but one over single characters. */
function isPlain(tree: PatternTree): boolean {
  // Engines write out what is repeated many times.
  const isPlainLoop = tree.kind === "repeat" && tree.body.kind === "set" && tree.max === Infinity && tree.min <= MANY;
  return isPlainLoop || isBounded(tree);
}

/** Whether it goes over few characters, in few ways. */
function isBounded(tree: PatternTree): boolean {
  switch (tree.kind) {
    case "set":
      return true;
    case "repeat":
      return tree.body.kind === "set" ? tree.max <= MANY : tree.max <= 1 && isBounded(tree.body);
    case "look":
      return isBounded(tree.body);
    case "sequence":
      return tree.items.every(isBounded) && tree.items.filter(({ kind }) => kind === "repeat").length <= 2;
    case "choice":
      return tree.options.every(isBounded);
  }
}

function canFail(tree: PatternTree): boolean {
  return tree.kind !== "repeat" || tree.min > 0;
}

/** The set over which a plain loop goes; it has no other. */
function sourceOf(loop: PatternTree): string {
  return loop.kind === "repeat" && loop.body.kind === "set" ? loop.body.source : "";
}

/** The set of which an option takes a whole run, whatever comes after. */
function runOf(option: PatternTree): string | null {
  const items = itemsOf(option);
  const first = items.findIndex(canFail);
  const loop = items[first];
  if (!loop || !isLoop(loop) || loop.min > 1 || loop.lazy || items.slice(first + 1).some(canFail)) return null;
  return sourceOf(loop);
}
