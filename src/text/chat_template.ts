import { Environment, parse, tokenize } from "@huggingface/jinja";
import { FormatError, LimitError } from "../errors.ts";
import { quote } from "../formats/quote.ts";
import { BoundedInterpreter } from "./bounded_interpreter.ts";
import { strftime } from "./strftime.ts";
import type { ChatMessage, ChatOptions } from "./tokenizer.ts";

/** Longest template, in UTF-16 units. */
const MAX_TEMPLATE = 65_536;
/** Longest run of white space in one: the parser takes the square of its length. */
const MAX_SPACE = 1000;
/** Numbers that `range` hands out in one rendering. */
const MAX_RANGE = 100_000;
/** Longest reason that a template may give for refusing messages. */
const MAX_REASON = 1000;
/** Deepest nesting of values in messages. */
const MAX_DEPTH = 64;
/** The mark is the first character of this block that occurs nowhere in the messages. */
const MARKS = { from: 0xe000, to: 0xf8ff };
const ROLE = /^[\p{L}\p{N}_. -]{1,64}$/u;

/** What rendering has to know of special tokens. */
export interface SpecialTokens {
  /** Puts `mark` into every special token written in a text. */
  breakSpecial(text: string, mark: string): string;
  /** The special tokens recognised in a text. */
  specials(text: string): readonly number[];
}

/** A parsed chat template. */
export class ChatTemplate {
  readonly #program: ReturnType<typeof parse>;
  readonly #tokens: Readonly<Record<string, string>>;
  readonly #file: string;

  constructor(source: string | null, tokens: Readonly<Record<string, string>>, file: string) {
    this.#tokens = tokens;
    this.#file = file;
    if (source === null) {
      const message = `Cannot render a chat with ${quote(file)}, which has no chat template: expected a model of chats`;
      throw new FormatError(`${message}, or a prompt without chat`, { file, field: "chat_template" });
    }
    this.#checkLength("characters", source.length, MAX_TEMPLATE);
    const spaces = (source.match(/\s+/g) ?? []).reduce((most, { length }) => Math.max(most, length), 0);
    this.#checkLength("white spaces in a row", spaces, MAX_SPACE);
    // The whitespace rules of transformers.
    const rules = { lstrip_blocks: true, trim_blocks: true };
    this.#program = this.#guarded("parse", () => parse(tokenize(source, rules)));
  }

  #checkLength(of: string, value: number, limit: number): void {
    if (value <= limit) return;
    throw new LimitError(`Cannot parse a chat template of ${value} ${of}: expected at most ${limit}`, {
      file: this.#file,
      field: "chat_template",
      limit,
      value,
    });
  }

  /**
   * Renders messages so that `specials` of the result are the template's own.
   *
   * Two renderings: one with a mark inside the special tokens that the messages spell out, one with a mark at every
   * place where a piece of a special token could be. If they differ in special tokens, the template has joined pieces
   * of messages to one (or cannot be checked), and the second is taken.
   *
   * @returns The text, and the mark that is to be taken out before the words are looked up.
   */
  render(
    messages: readonly ChatMessage[],
    options: ChatOptions,
    tokens: SpecialTokens,
  ): { text: string; mark: string } {
    checkRoles(messages);
    const mark = unusedCharacter([messages, options.variables]);
    const breakUp = (text: string) => tokens.breakSpecial(text, mark);
    const light = this.#render(mapMessages(messages, breakUp, breakUp), mapText(options.variables, breakUp), options);
    const block = (text: string) => shield(breakUp(text), mark);
    const heavy = this.#render(mapMessages(messages, block, breakUp), mapText(options.variables, breakUp), options);
    const same = String(tokens.specials(light)) === String(tokens.specials(heavy));
    return { text: same ? light : heavy, mark };
  }

  #render(messages: unknown, variables: Record<string, unknown> | undefined, options: ChatOptions): string {
    const values = {
      ...this.#tokens,
      tools: null,
      documents: null,
      ...variables,
      messages,
      add_generation_prompt: options.addGenerationPrompt ?? true,
    };
    return this.#guarded("render", () => {
      const environment = new Environment(globals(options.now ?? new Date()));
      for (const [name, value] of Object.entries(values)) environment.set(name, value);
      return String(new BoundedInterpreter(environment).run(this.#program).value);
    });
  }

  #guarded<T>(action: string, work: () => T): T {
    try {
      return work();
    } catch (cause) {
      const reason = (cause instanceof Error ? cause.message : String(cause)).slice(0, MAX_REASON);
      throw new FormatError(`Cannot ${action} the chat template of ${quote(this.#file)}: ${reason}`, {
        file: this.#file,
        field: "chat_template",
        cause,
      });
    }
  }
}

/** What every template can name, as in transformers; `range` has a cap. */
function globals(now: Date): Environment {
  let left = MAX_RANGE;
  const range = (first: number, second?: number | null, step?: number | null) => {
    const [start, stop, by] = second == null ? [0, first, 1] : [first, second, step ?? 1];
    const length = Math.max(0, Math.ceil((stop - start) / by));
    if (!(length <= left)) throw new RangeError(`more than ${MAX_RANGE} numbers in range()`);
    left -= length;
    return Array.from({ length }, (_, index) => start + index * by);
  };
  const environment = new Environment();
  const constants = { true: true, True: true, false: false, False: false, none: null, None: null };
  for (const [name, value] of Object.entries(constants)) environment.set(name, value);
  environment.set("range", range);
  environment.set("strftime_now", (format: string) => strftime(now, format));
  environment.set("raise_exception", (message: string) => {
    throw new Error(message);
  });
  return environment;
}

/** Roles may legitimately be pieces of special tokens ("<|" + role + "|>"), so they must hold nothing but a name. */
function checkRoles(messages: readonly ChatMessage[]): void {
  if (!Array.isArray(messages)) throw new TypeError(`Cannot render a chat of ${typeof messages}: expected a list`);
  for (const { role } of messages) {
    if (typeof role === "string" && ROLE.test(role)) continue;
    throw new FormatError(
      `Cannot render a message of role ${
        quote(String(role))
      }: expected 1 to 64 letters, digits, "_", ".", "-" or spaces`,
      { field: "role", found: role },
    );
  }
}

/** A mark at both ends, inside the white space that templates trim, and after everything that is no letter or digit. */
function shield(text: string, mark: string): string {
  const trimmed = text.trim();
  if (trimmed === "") return text;
  const start = text.indexOf(trimmed);
  const inner = trimmed.replace(/[^\p{L}\p{N}\p{M}\s]/gu, `$&${mark}`);
  return text.slice(0, start) + mark + inner + mark + text.slice(start + trimmed.length);
}

type Change = (text: string) => string;

/** Changes every text of messages but the roles. */
function mapMessages(messages: readonly ChatMessage[], change: Change, changeKey: Change): unknown {
  return messages.map(({ role, ...rest }) => ({ role, ...mapText(rest, change, changeKey) }));
}

/** A copy of JSON-like values with every text changed, and every key. */
function mapText<T>(value: T, change: Change, changeKey: Change = change, depth = 0): T {
  if (depth > MAX_DEPTH) {
    throw new LimitError(`Cannot render a chat nested deeper than ${MAX_DEPTH} levels`, {
      limit: MAX_DEPTH,
      value: depth,
    });
  }
  if (typeof value === "string") return change(value) as T;
  if (Array.isArray(value)) return value.map((item) => mapText(item, change, changeKey, depth + 1)) as T;
  if (typeof value !== "object" || value === null) return value;
  const entries = Object.entries(value);
  return Object.fromEntries(entries.map(([key, item]) => [
    changeKey(key),
    mapText(item, change, changeKey, depth + 1),
  ])) as T;
}

function unusedCharacter(values: unknown): string {
  const used = new Set<string>();
  mapText(values, (text) => {
    for (const character of text.match(/[\ue000-\uf8ff]/g) ?? []) used.add(character);
    return text;
  });
  for (let code = MARKS.from; code <= MARKS.to; code++) {
    const character = String.fromCharCode(code);
    if (!used.has(character)) return character;
  }
  throw new FormatError("Cannot render a chat that uses every character from U+E000 to U+F8FF");
}
