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
