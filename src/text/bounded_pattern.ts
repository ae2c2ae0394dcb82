import { PatternMachine } from "./pattern_machine.ts";
import { isSteady, parseTree } from "./pattern_tree.ts";

/**
 * Makes a pattern of a tokenizer.json one that no text holds up. Engines try again what they have tried before, so that
 * `(a+)+b` takes hours for forty letters.
 *
 * @param pattern The pattern as the engine takes it, of flags "gu".
 * @returns The same pattern, where the engine needs time in proportion to the text; else one that matches alike.
 * @throws {RangeError} If it refers back to what it matched, looks behind at texts of several lengths, or repeats what may
 * be empty.
 * @throws {LimitError} If it is too long.
 */
export function boundedPattern(pattern: RegExp): RegExp {
  const tree = parseTree(pattern.source);
  return isSteady(tree) ? pattern : new BoundedPattern(pattern, pattern.flags, new PatternMachine(tree));
}

/** `match`, `matchAll`, `replaceAll` and `split` all come down to `exec`. */
class BoundedPattern extends RegExp {
  readonly #machine: PatternMachine;

  /** Engines copy patterns by these first two arguments. */
  constructor(pattern: RegExp | string, flags: string, machine?: PatternMachine) {
    super(pattern, flags);
    this.#machine = machine ?? (pattern as BoundedPattern).#machine;
  }

  override exec(text: string): RegExpExecArray | null {
    for (let at = this.lastIndex; at <= text.length; at += text.codePointAt(at)! > 0xffff ? 2 : 1) {
      const end = this.#machine.match(text, at);
      if (end >= 0) {
        this.lastIndex = end;
        return Object.assign([text.slice(at, end)] as RegExpExecArray, { index: at, input: text, groups: undefined });
      }
      if (this.sticky) break;
    }
    this.lastIndex = 0;
    return null;
  }
}
