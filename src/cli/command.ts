import { nearestName } from "../adapter/match.ts";

/** One command of `lora`: its help, and what it does. */
export interface Command {
  /** The text of `--help`. */
  readonly help: string;
  /**
   * Runs it with the arguments after its name.
   *
   * @throws {UsageError} If the arguments are wrong; any other error is a failure.
   */
  run(args: string[], signal: AbortSignal): Promise<void>;
}

/** Wrong arguments: exit code 2. */
export class UsageError extends Error {
  /** Stable identifier, for programs. */
  readonly code = "usage";
  /** Creates the error. */
  constructor(message: string) {
    super(message);
    this.name = "UsageError";
  }
}

/** The word that was meant, to end a message with; nothing if none is near: two edits, or one in three letters. */
export function meant(word: string, words: Iterable<string>): string {
  const nearest = nearestName(word, words, Math.max(2, Math.floor(word.length / 3)));
  return nearest === undefined ? "" : `; is ${nearest} meant?`;
}

/**
 * The wrong arguments that a command or `parseArgs` found, in one line; null if the error is another.
 *
 * @param error What was thrown.
 * @param help The help of the command, which names its options.
 */
export function asUsageError(error: unknown, help: string = ""): UsageError | null {
  if (error instanceof UsageError) return error;
  if (!(error instanceof TypeError && "code" in error && String(error.code).startsWith("ERR_PARSE_ARGS"))) return null;
  // It goes on to explain positionals, which no command takes for a mistyped option.
  const what = error.message.replace(/\. To specify a positional argument .*$/s, "").replace(/\.$/, "");
  const line = what.replace(/\s*\n\s*/g, " ");
  const unknown = /nknown option '(--[^']+)'/.exec(line)?.[1];
  const hint = unknown === undefined ? "" : meant(unknown, help.match(/--[a-z][a-z-]*/g) ?? []);
  return new UsageError(`Cannot read the options: ${line.charAt(0).toLowerCase()}${line.slice(1)}${hint}`);
}
