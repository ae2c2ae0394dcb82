import { formatBytes, formatDuration, isTerminal, oneLine, print, terminalWidth } from "./terminal.ts";

/** What has been done so far. */
export interface ProgressState {
  /** Bytes done. */
  readonly loaded: number;
  /** Bytes in all. */
  readonly total: number;
  /** What is being worked on. */
  readonly name?: string;
  /** Bytes of `loaded` that took no time. */
  readonly kept?: number;
}

const APPEARS_MS = 500;
const REDRAW_MS = 80;
const BAR = 24;

/** One line: `Merging  ███████░░░ 43%  58.0 MB of 134.5 MB, 36.4 MB/s, 2.1 s left  model.layers.3…`. */
export function formatProgress(label: string, state: ProgressState, elapsed: number, width: number): string {
  const part = state.total > 0 ? Math.min(1, state.loaded / state.total) : 0;
  const full = Math.round(part * BAR);
  const rate = elapsed > 0 ? (state.loaded - (state.kept ?? 0)) / elapsed : 0;
  const left = rate > 0
    ? `, ${formatBytes(1000 * rate)}/s, ${formatDuration((state.total - state.loaded) / rate)} left`
    : "";
  const text = [
    label,
    `${"█".repeat(full)}${"░".repeat(BAR - full)} ${Math.floor(part * 100)}%`,
    `${formatBytes(state.loaded)} of ${formatBytes(state.total)}${left}`,
    oneLine(state.name ?? ""),
  ].join("  ").trimEnd();
  return text.length < width ? text : `${text.slice(0, Math.max(0, width - 2))}…`;
}

/** A bar on the terminal for work that takes longer than half a second; nothing where no person reads it. */
export class Progress {
  readonly #label: string;
  readonly #start = performance.now();
  readonly #shown = isTerminal("stderr");
  #drawn = 0;

  /** Starts the clock. */
  constructor(label: string) {
    this.#label = label;
  }

  /** Tells how far the work is. */
  update(state: ProgressState): void {
    const now = performance.now();
    if (!this.#shown || now - this.#start < APPEARS_MS || now - this.#drawn < REDRAW_MS) return;
    this.#drawn = now;
    print(`\r${formatProgress(this.#label, state, now - this.#start, terminalWidth("stderr"))}\x1b[K`, "stderr");
  }

  /** Clears the line. */
  end(): void {
    if (this.#drawn > 0) print("\r\x1b[K", "stderr");
    this.#drawn = 0;
  }
}
