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
  /** Creates the error. */
  constructor(message: string) {
    super(message);
    this.name = "UsageError";
  }
}

/** Whether the arguments were wrong, as a command or `parseArgs` found. */
export function isUsageError(error: unknown): error is Error {
  if (error instanceof UsageError) return true;
  return error instanceof TypeError && "code" in error && String(error.code).startsWith("ERR_PARSE_ARGS");
}
