import { LimitError } from "../errors.ts";
import { isNullable, type PatternTree, widthOf } from "./pattern_tree.ts";

const MAX_INSTRUCTIONS = 4096;
/** Longest text, in UTF-16 units. */
const MAX_TEXT = 1_000_000;
/** Bytes of what is known of forks, one for each at each place. */
const MAX_KNOWN = 1 << 26;
/** Places whose knowledge is kept together, a power of 2. */
const BLOCK = 1024;
/** Steps for one text, about two seconds. */
const MAX_STEPS = 50_000_000;

type Instruction =
  | { readonly op: "set"; readonly test: (code: number) => boolean }
  | { readonly op: "accept" }
  | { readonly op: "look"; readonly entry: number; readonly width: number; readonly negated: boolean; next: number }
  /** Tries one target after the other; `index` counts the forks. */
  | { readonly op: "fork"; readonly index: number; targets: readonly number[] };

// What is known of a fork at a place.
const UNKNOWN = 0;
const OPEN = 1;
const FAILS = 2;
const MATCHES = 3;

/**
 * A pattern that is matched as JavaScript does, in time linear in the text: no fork is tried twice at one place.
 */
export class PatternMachine {
  readonly #program: Instruction[] = [];
  readonly #entry: number;
  #forks = 0;
  #visits = 0;
  #text = "";
  /** By block of places, what is known of each fork at each of them. */
  #known: (Uint8Array | undefined)[] = [];
  #held = 0;
  /** No place before it is tried any more. */
  #from = 0;
  #steps = 0;

  /**
   * Compiles a pattern.
   *
   * @throws {RangeError} If it repeats what may be empty.
   * @throws {LimitError} If its repeats unfold to too much.
   */
  constructor(tree: PatternTree) {
    this.#entry = this.#body(tree);
  }

  /**
   * The end of the match that begins at a place; -1 if there is none. Places are to ascend from call to call.
   *
   * @throws {LimitError} If the text is too long, or takes too many steps.
   */
  match(text: string, at: number): number {
    if (text !== this.#text || at < this.#from) {
      if (text.length > MAX_TEXT) throw refuse("characters", MAX_TEXT, text.length);
      [this.#text, this.#known, this.#held, this.#from, this.#steps] = [text, [], 0, 0, 0];
    }
    for (let block = Math.floor(this.#from / BLOCK); block < Math.floor(at / BLOCK); block++) this.#forget(block);
    this.#from = at;
    return this.#run(this.#entry, at, UNKNOWN);
  }

  /** Runs from an instruction; `verdict` is noted of the forks that led to the match. */
  #run(entry: number, start: number, verdict: number): number {
    // Pairs of an instruction, or the fork that has then tried all of its targets, and a place.
    const stack = [entry, start];
    while (stack.length > 0) {
      const at = stack.pop()!;
      const pc = stack.pop()!;
      if (pc < 0) this.#note(~pc, at, FAILS);
      else {
        const end = this.#follow(pc, at, stack);
        if (end < 0) continue;
        for (let i = 0; i < stack.length; i += 2) if (stack[i]! < 0) this.#note(~stack[i]!, stack[i + 1]!, verdict);
        return end;
      }
    }
    return -1;
  }

  /** Follows the first way from an instruction; the other ways go onto the stack. Answers the end of a match, or -1. */
  #follow(pc: number, at: number, stack: number[]): number {
    for (;;) {
      if (++this.#steps > MAX_STEPS) throw refuse("steps", MAX_STEPS, this.#steps);
      const instruction = this.#program[pc]!;
      if (instruction.op === "accept") return at;
      if (instruction.op === "set") {
        const code = this.#text.codePointAt(at);
        if (code === undefined || !instruction.test(code)) return -1;
        at += code > 0xffff ? 2 : 1;
        pc++;
      } else if (instruction.op === "look") {
        if (this.#look(instruction, at) === instruction.negated) return -1;
        pc = instruction.next;
      } else {
        const { index, targets } = instruction;
        const known = this.#knownOf(index, at);
        if (known === MATCHES) return at;
        if (known !== UNKNOWN) return -1;
        this.#note(index, at, OPEN);
        stack.push(~index, at);
        for (let i = targets.length - 1; i > 0; i--) stack.push(targets[i]!, at);
        pc = targets[0]!;
      }
    }
  }

  #look({ entry, width }: Instruction & { op: "look" }, at: number): boolean {
    let start = at;
    for (let left = width; left > 0; left--) {
      if (start === 0) return false;
      start -= start > 1 && this.#text.codePointAt(start - 2)! > 0xffff ? 2 : 1;
    }
    return this.#run(entry, start, MATCHES) >= 0;
  }

  #knownOf(fork: number, at: number): number {
    return this.#known[Math.floor(at / BLOCK)]?.[(at % BLOCK) * this.#forks + fork] ?? UNKNOWN;
  }

  #note(fork: number, at: number, verdict: number): void {
    const block = Math.floor(at / BLOCK);
    let known = this.#known[block];
    if (known === undefined) {
      this.#held += BLOCK * this.#forks;
      if (this.#held > MAX_KNOWN) throw refuse("bytes of memory", MAX_KNOWN, this.#held);
      known = this.#known[block] = new Uint8Array(BLOCK * this.#forks);
    }
    known[(at % BLOCK) * this.#forks + fork] = verdict;
  }

  #forget(block: number): void {
    this.#held -= this.#known[block]?.length ?? 0;
    this.#known[block] = undefined;
  }

  /** Emits a pattern of its own, and answers where it begins. */
  #body(tree: PatternTree): number {
    const looks: (() => void)[] = [];
    const entry = this.#program.length;
    this.#emit(tree, looks);
    this.#program.push({ op: "accept" });
    for (const look of looks) look();
    return entry;
  }

  #emit(tree: PatternTree, looks: (() => void)[]): void {
    if (++this.#visits > MAX_INSTRUCTIONS) throw refuse("instructions", MAX_INSTRUCTIONS, this.#visits);
    const { kind } = tree;
    if (kind === "set") this.#program.push({ op: "set", test: setTest(tree.source) });
    else if (kind === "sequence") tree.items.forEach((item) => this.#emit(item, looks));
    else if (kind === "choice") this.#choice(tree.options, looks);
    else if (kind === "repeat") this.#repeat(tree, looks);
    else {
      const at = this.#program.length;
      const { negated } = tree;
      const width = tree.behind ? widthOf(tree.body) : 0;
      this.#program.push({ op: "look", entry: 0, width, negated, next: at + 1 });
      // Its body is no part of the way on: it comes after it.
      looks.push(() => this.#program[at] = { op: "look", entry: this.#body(tree.body), width, negated, next: at + 1 });
    }
  }

  #fork(): Instruction & { op: "fork" } {
    const fork: Instruction & { op: "fork" } = { op: "fork", index: this.#forks++, targets: [] };
    this.#program.push(fork);
    return fork;
  }

  #choice(options: readonly PatternTree[], looks: (() => void)[]): void {
    const fork = this.#fork();
    const starts: number[] = [];
    const jumps = options.map((option) => {
      starts.push(this.#program.length);
      this.#emit(option, looks);
      return this.#fork();
    });
    fork.targets = starts;
    for (const jump of jumps) jump.targets = [this.#program.length];
  }

  #repeat({ body, min, max, lazy }: PatternTree & { kind: "repeat" }, looks: (() => void)[]): void {
    if (max > min && max > 1 && isNullable(body)) throw new RangeError("it repeats what may be empty");
    for (let i = 0; i < min; i++) this.#emit(body, looks);
    const first = this.#program.length;
    const forks: [fork: Instruction & { op: "fork" }, start: number][] = [];
    for (let i = 0; i < (max === Infinity ? 1 : max - min); i++) {
      const fork = this.#fork();
      forks.push([fork, this.#program.length]);
      this.#emit(body, looks);
    }
    if (max === Infinity) this.#fork().targets = [first];
    const end = this.#program.length;
    for (const [fork, start] of forks) fork.targets = lazy ? [end, start] : [start, end];
  }
}

/** The engine's own answer for a character, remembered. */
function setTest(source: string): (code: number) => boolean {
  const pattern = new RegExp(`^${source}$`, "u");
  const known = new Map<number, boolean>();
  return (code) => {
    let answer = known.get(code);
    if (answer === undefined) known.set(code, answer = pattern.test(String.fromCodePoint(code)));
    return answer;
  };
}

function refuse(unit: string, limit: number, value: number): LimitError {
  return new LimitError(`Cannot match a pattern with ${value} ${unit}: expected at most ${limit}`, {
    field: "pattern",
    limit,
    value,
  });
}
