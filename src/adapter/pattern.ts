/**
 * Patterns of adapter configs, matched in time linear in the name: all alternatives advance together (Thompson 1968),
 * so no pattern can make the matcher backtrack.
 *
 * @module
 */

import { LimitError } from "../errors.ts";
import { quote } from "../formats/quote.ts";
import { type CharacterTest, parsePattern, type PatternNode, type PatternPlace } from "./pattern_syntax.ts";

/** Steps that the patterns of one config may still take together. */
export interface MatchingWork {
  /** Steps left; compiling and matching subtract from it. */
  steps: number;
}

/** Options of {@linkcode Pattern}. */
export interface PatternOptions extends PatternPlace {
  /** Steps shared with other patterns; {@linkcode MAX_STEPS} of its own if absent. */
  readonly work?: MatchingWork;
}

/** Longest name that is matched, in characters. */
const MAX_NAME_LENGTH = 512;
const MAX_INSTRUCTIONS = 4096;
/** Steps of all patterns of one config together: far above what real configs need, about a second at most. */
export const MAX_STEPS = 5e7;
/** What an instruction costs of them: thousands of patterns that unfold would else take gigabytes. */
const STEPS_PER_INSTRUCTION = 64;

interface Fork {
  readonly op: "fork";
  targets: readonly number[];
}

type Instruction =
  | { readonly op: "character"; readonly test: CharacterTest }
  | { readonly op: "start" | "end" | "accept" }
  | Fork;

/**
 * A pattern in the subset of Python's `re` that PEFT configs use.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * const pattern = new Pattern(".*\\.(q|v)_proj");
 * assert(pattern.fullMatch("model.layers.0.self_attn.q_proj"));
 * assert(!pattern.fullMatch("model.layers.0.self_attn.q_proj.bias"));
 * ```
 */
export class Pattern {
  /** The pattern as written. */
  readonly source: string;
  readonly #program: readonly Instruction[];
  readonly #place: PatternPlace;
  readonly #work: MatchingWork;

  /**
   * Compiles a pattern.
   *
   * @throws {FormatError} If it is malformed or uses a construct outside the subset; the message names it.
   * @throws {LimitError} If it is longer than 1024 characters or its repeats unfold to more than 4096 instructions, or
   * the steps are used up.
   */
  constructor(source: string, options: PatternOptions = {}) {
    const { work = { steps: MAX_STEPS }, ...place } = options;
    this.source = source;
    this.#place = place;
    this.#work = work;
    this.#program = new Compiler(source, place, work).compile(parsePattern(source, place));
  }

  /**
   * Tells whether the whole name matches, as Python's `re.fullmatch` does.
   *
   * @throws {LimitError} If the name is longer than 512 characters, or the steps are used up.
   */
  fullMatch(name: string): boolean {
    return this.#run(name, true);
  }

  /**
   * Tells whether the name starts with a match, as Python's `re.match` does.
   *
   * @throws {LimitError} If the name is longer than 512 characters, or the steps are used up.
   */
  match(name: string): boolean {
    return this.#run(name, false);
  }

  #run(name: string, whole: boolean): boolean {
    if (name.length > MAX_NAME_LENGTH) throw this.#limit(name, MAX_NAME_LENGTH, name.length, "characters");
    const characters = Array.from(name);
    const seenAt = new Int32Array(this.#program.length).fill(-1);
    let threads = [0];
    for (let at = 0;; at++) {
      threads = this.#follow(threads, at, characters, seenAt);
      const isEnd = at === characters.length;
      if ((isEnd || !whole) && threads.some((pc) => this.#program[pc]!.op === "accept")) return true;
      if (isEnd || threads.length === 0) return false;
      threads = this.#step(threads, characters[at]!);
    }
  }

  #step(threads: readonly number[], character: string): number[] {
    const next: number[] = [];
    for (const pc of threads) {
      const instruction = this.#program[pc]!;
      if (instruction.op === "character" && instruction.test(character)) next.push(pc + 1);
    }
    return next;
  }

  /** Follows forks and anchors to the instructions that wait for a character or accept. */
  #follow(open: number[], at: number, characters: readonly string[], seenAt: Int32Array): number[] {
    const waiting: number[] = [];
    for (let pc = open.pop(); pc !== undefined; pc = open.pop()) {
      if (seenAt[pc] === at) continue;
      seenAt[pc] = at;
      if (--this.#work.steps < 0) throw this.#limit(characters.join(""), MAX_STEPS, MAX_STEPS + 1, "steps");
      const instruction = this.#program[pc]!;
      if (instruction.op === "fork") open.push(...instruction.targets);
      else if (instruction.op === "character" || instruction.op === "accept") waiting.push(pc);
      else if (instruction.op === "start" ? at === 0 : isAtEnd(at, characters)) open.push(pc + 1);
    }
    return waiting;
  }

  #limit(name: string, limit: number, value: number, unit: string): LimitError {
    return new LimitError(
      `Cannot match ${quote(name)} with pattern ${quote(this.source)}: expected at most ${limit} ${unit}`,
      { ...this.#place, limit, value },
    );
  }
}

// Python's $ also matches before a line break at the very end.
function isAtEnd(at: number, characters: readonly string[]): boolean {
  return at === characters.length || (at === characters.length - 1 && characters[at] === "\n");
}

class Compiler {
  readonly #source: string;
  readonly #place: PatternPlace;
  readonly #work: MatchingWork;
  readonly #program: Instruction[] = [];
  #visits = 0;

  constructor(source: string, place: PatternPlace, work: MatchingWork) {
    this.#source = source;
    this.#place = place;
    this.#work = work;
  }

  compile(node: PatternNode): readonly Instruction[] {
    this.#emit(node);
    this.#program.push({ op: "accept" });
    return this.#program;
  }

  #emit(node: PatternNode): void {
    // Counts visits, not instructions: nested repeats of an empty group emit nothing, and would never end.
    if (++this.#visits > MAX_INSTRUCTIONS) throw this.#limit("", MAX_INSTRUCTIONS, this.#visits);
    this.#work.steps -= STEPS_PER_INSTRUCTION;
    if (this.#work.steps < 0) {
      const limit = MAX_STEPS / STEPS_PER_INSTRUCTION;
      throw this.#limit(" of all patterns together", limit, limit + 1);
    }
    if (node.kind === "character") this.#program.push({ op: "character", test: node.test });
    else if (node.kind === "sequence") node.items.forEach((item) => this.#emit(item));
    else if (node.kind === "choice") this.#choice(node.options);
    else if (node.kind === "repeat") this.#repeat(node.body, node.min, node.max);
    else this.#program.push({ op: node.kind });
  }

  #limit(whose: string, limit: number, value: number): LimitError {
    const message = `Cannot compile pattern ${quote(this.#source)}, whose repeats unfold: expected at most`;
    const details = { ...this.#place, limit, value };
    return new LimitError(`${message} ${limit} instructions${whose}, or a list of names`, details);
  }

  /** Emits a fork whose targets are set once they are known. */
  #fork(): Fork {
    const fork: Fork = { op: "fork", targets: [] };
    this.#program.push(fork);
    return fork;
  }

  #choice(options: readonly PatternNode[]): void {
    const fork = this.#fork();
    const starts: number[] = [];
    const jumps = options.map((option) => {
      starts.push(this.#program.length);
      this.#emit(option);
      return this.#fork();
    });
    fork.targets = starts;
    for (const jump of jumps) jump.targets = [this.#program.length];
  }

  #repeat(body: PatternNode, min: number, max: number): void {
    for (let i = 0; i < min; i++) this.#emit(body);
    const first = this.#program.length;
    const isLoop = max === Infinity;
    const skips: Fork[] = [];
    const starts: number[] = [];
    for (let i = 0; i < (isLoop ? 1 : max - min); i++) {
      skips.push(this.#fork());
      starts.push(this.#program.length);
      this.#emit(body);
    }
    if (isLoop) this.#fork().targets = [first];
    skips.forEach((skip, i) => skip.targets = [starts[i]!, this.#program.length]);
  }
}

/**
 * Compiles a key of `rank_pattern` or `alpha_pattern`: PEFT applies `re.match("(.*\.)?(key)$", path)`.
 *
 * Keys that are plain paths, as most are, need no pattern: their test costs a few comparisons.
 *
 * @param key The key as written.
 * @param options Where it stands.
 * @returns A test of module paths.
 * @throws {FormatError} If the key uses a construct outside the subset; the message names it.
 */
export function compilePatternKey(key: string, options: PatternOptions = {}): (path: string) => boolean {
  if (/^\^?(?:[A-Za-z0-9_.-]|\\\.)+$/.test(key)) return plainKey(key);
  const pattern = new Pattern(`(.*\\.)?(${key})$`, options);
  return (path) => pattern.match(path);
}

function plainKey(key: string): (path: string) => boolean {
  const anchored = key.startsWith("^");
  const units = key.slice(anchored ? 1 : 0).match(/\\\.|[^]/g) ?? [];
  return (path) => {
    const start = path.length - units.length;
    if (start < 0 || (start > 0 && (anchored || path[start - 1] !== "."))) return false;
    for (let i = units.length - 1; i >= 0; i--) {
      const unit = units[i]!;
      if (unit === "." ? path[start + i] === "\n" : path[start + i] !== unit.at(-1)) return false;
    }
    return true;
  };
}
