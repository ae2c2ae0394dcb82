/**
 * The part of Python's `re` syntax that PEFT configs use, as a tree: literals, `.`, classes, groups, `|`, `^`, `$`,
 * `*`, `+`, `?`, `{m,n}`, and the escapes `\d \w \s \D \W \S`. All else is refused by name.
 *
 * @module
 */

import { FormatError, LimitError } from "../errors.ts";
import { quote } from "../formats/quote.ts";

/** Where a pattern stands, for error messages. */
export interface PatternPlace {
  /** Name of the config file. */
  readonly file?: string;
  /** Field of the config. */
  readonly field?: string;
}

/** Tells whether a character, one code point, matches. */
export type CharacterTest = (character: string) => boolean;

/** A parsed pattern. */
export type PatternNode =
  | { readonly kind: "character"; readonly test: CharacterTest }
  | { readonly kind: "start" | "end" }
  | { readonly kind: "sequence"; readonly items: readonly PatternNode[] }
  | { readonly kind: "choice"; readonly options: readonly PatternNode[] }
  | { readonly kind: "repeat"; readonly body: PatternNode; readonly min: number; readonly max: number };

/** Longest pattern, in characters. */
const MAX_PATTERN_LENGTH = 1024;
/** Largest number in `{m,n}`. */
const MAX_REPEAT = 255;

const CLASSES: ReadonlyMap<string, CharacterTest> = new Map([
  ["d", (c) => /^\p{Nd}$/u.test(c)],
  ["D", (c) => !/^\p{Nd}$/u.test(c)],
  ["w", (c) => /^[\p{L}\p{N}_]$/u.test(c)],
  ["W", (c) => !/^[\p{L}\p{N}_]$/u.test(c)],
  ["s", (c) => /^\s$/u.test(c)],
  ["S", (c) => !/^\s$/u.test(c)],
]);
const CONTROLS: ReadonlyMap<string, string> = new Map([
  ["n", "\n"],
  ["r", "\r"],
  ["t", "\t"],
  ["f", "\f"],
  ["v", "\v"],
]);

/**
 * Parses a pattern.
 *
 * @param source The pattern in Python's syntax.
 * @param place Where it stands.
 * @returns Its tree.
 * @throws {FormatError} If it is malformed or uses a construct outside the subset; the message names it.
 * @throws {LimitError} If it is longer than 1024 characters.
 */
export function parsePattern(source: string, place: PatternPlace): PatternNode {
  return new PatternReader(source, place).read();
}

class PatternReader {
  readonly #source: string;
  readonly #place: PatternPlace;
  readonly #characters: readonly string[];
  #at = 0;

  constructor(source: string, place: PatternPlace) {
    if (source.length > MAX_PATTERN_LENGTH) {
      throw new LimitError(
        `Cannot read pattern ${quote(source)} of ${source.length} characters: expected at most ${MAX_PATTERN_LENGTH}`,
        { ...place, limit: MAX_PATTERN_LENGTH, value: source.length },
      );
    }
    this.#source = source;
    this.#place = place;
    this.#characters = Array.from(source);
  }

  read(): PatternNode {
    const node = this.#choice();
    if (this.#at < this.#characters.length) throw this.#refuse(")", "a group that was opened");
    return node;
  }

  #choice(): PatternNode {
    const options = [this.#sequence()];
    while (this.#take("|")) options.push(this.#sequence());
    return options.length === 1 ? options[0]! : { kind: "choice", options };
  }

  #sequence(): PatternNode {
    const items: PatternNode[] = [];
    for (;;) {
      const c = this.#characters[this.#at];
      if (c === undefined || c === "|" || c === ")") return { kind: "sequence", items };
      items.push(this.#repeated());
    }
  }

  #repeated(): PatternNode {
    const body = this.#atom();
    const range = this.#quantifier();
    if (!range) return body;
    if (body.kind === "start" || body.kind === "end") throw this.#refuse("a quantifier after an anchor");
    this.#take("?"); // Lazy or greedy, the same texts match.
    const next = this.#characters[this.#at];
    if (next === "+" || next === "*" || next === "?") throw this.#refuse(next, "one quantifier after each atom");
    return { kind: "repeat", body, ...range };
  }

  #quantifier(): { min: number; max: number } | undefined {
    if (this.#take("*")) return { min: 0, max: Infinity };
    if (this.#take("+")) return { min: 1, max: Infinity };
    if (this.#take("?")) return { min: 0, max: 1 };
    // As in Python, a brace that is no quantifier is a literal.
    const text = this.#characters.slice(this.#at, this.#at + 12).join("");
    const [all, low = "", comma, high = ""] = /^\{([0-9]*)(?:(,)([0-9]*))?\}/.exec(text) ?? [];
    if (all === undefined || all === "{}") return undefined;
    this.#at += all.length;
    const min = Number(low);
    const max = comma === undefined ? min : high === "" ? Infinity : Number(high);
    if (min > max || min > MAX_REPEAT || (max > MAX_REPEAT && max !== Infinity)) {
      throw this.#refuse(all, `a range in order, up to ${MAX_REPEAT}`);
    }
    return { min, max };
  }

  #atom(): PatternNode {
    const c = this.#characters[this.#at++]!;
    switch (c) {
      case "(":
        return this.#group();
      case "[":
        return { kind: "character", test: this.#class() };
      case ".":
        return { kind: "character", test: (found) => found !== "\n" };
      case "^":
        return { kind: "start" };
      case "$":
        return { kind: "end" };
      case "\\":
        return { kind: "character", test: asTest(this.#escape()) };
      case "*":
      case "+":
      case "?":
        throw this.#refuse(c, "something before it to repeat");
      default:
        return { kind: "character", test: asTest(c) };
    }
  }

  #group(): PatternNode {
    if (this.#take("?") && !this.#take(":")) {
      throw this.#refuse(`(?${this.#characters.slice(this.#at, this.#at + 2).join("")}`);
    }
    const node = this.#choice();
    if (!this.#take(")")) throw this.#refuse("(", '")" to end the group');
    return node;
  }

  #class(): CharacterTest {
    const negated = this.#take("^");
    const tests: CharacterTest[] = [];
    for (let first = true; first || this.#characters[this.#at] !== "]"; first = false) {
      tests.push(this.#classItem());
    }
    this.#at++;
    return (c) => tests.some((test) => test(c)) !== negated;
  }

  #classItem(): CharacterTest {
    const low = this.#classMember();
    if (this.#characters[this.#at] !== "-" || this.#characters[this.#at + 1] === "]") return asTest(low);
    this.#at++;
    const high = this.#classMember();
    if (typeof low !== "string" || typeof high !== "string" || low.codePointAt(0)! > high.codePointAt(0)!) {
      throw this.#refuse("-", "two characters in order on its sides");
    }
    const [from, to] = [low.codePointAt(0)!, high.codePointAt(0)!];
    return (c) => c.codePointAt(0)! >= from && c.codePointAt(0)! <= to;
  }

  #classMember(): string | CharacterTest {
    const c = this.#characters[this.#at++];
    if (c === undefined) throw this.#refuse("[", '"]" to end the class');
    return c === "\\" ? this.#escape() : c;
  }

  #escape(): string | CharacterTest {
    const c = this.#characters[this.#at++];
    const known = c === undefined ? undefined : CLASSES.get(c) ?? CONTROLS.get(c);
    if (known !== undefined) return known;
    if (c === undefined || /^[0-9A-Za-z]$/.test(c)) throw this.#refuse(`\\${c ?? ""}`);
    return c;
  }

  #take(character: string): boolean {
    if (this.#characters[this.#at] !== character) return false;
    this.#at++;
    return true;
  }

  #refuse(construct: string, expected = "literals, classes, groups, alternatives, repeats and anchors"): FormatError {
    const { file, field } = this.#place;
    const where = (field ? ` of ${quote(field)}` : "") + (file ? ` in ${quote(file)}` : "");
    return new FormatError(
      `Cannot read pattern ${quote(this.#source)}${where} with ${quote(construct)}: expected ${expected}`,
      { ...this.#place, found: construct, expected },
    );
  }
}

function asTest(item: string | CharacterTest): CharacterTest {
  return typeof item === "string" ? (c) => c === item : item;
}
