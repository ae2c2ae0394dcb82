import { IntegrityError } from "../errors.ts";
import type { ReadOptions } from "./source.ts";

/** `code` of an error that another try may not meet. */
export const UNREACHABLE = "unreachable";

/** Answers of servers that are busy or being restarted. */
const TRANSIENT: ReadonlySet<number> = new Set([408, 425, 429, 500, 502, 503, 504]);
const DEFAULT_RETRIES = 4;
const FIRST_WAIT_MS = 250;
const MAX_WAIT_MS = 30_000;

/** How long a server asked to be left alone. */
export interface Patience {
  /** Milliseconds; 0 if it did not say. */
  waitMs: number;
}

/** Whether a status may be another one soon; notes `Retry-After`. */
export function isTransient(response: Response, patience: Patience): boolean {
  const seconds = Number(response.headers.get("retry-after") ?? 0);
  patience.waitMs = Number.isFinite(seconds) ? 1000 * Math.max(0, seconds) : 0;
  return TRANSIENT.has(response.status);
}

/**
 * Tries again what failed with {@linkcode UNREACHABLE}: after 0.25, 0.5, 1 and 2 s, or when the server says, but after
 * 30 s at the latest.
 *
 * @param body One try.
 * @param retries Further tries; 4 if undefined.
 * @param options A signal, which ends the waiting too.
 */
export async function persist<T>(
  body: (patience: Patience) => Promise<T>,
  retries: number = DEFAULT_RETRIES,
  { signal }: ReadOptions,
): Promise<T> {
  for (let tries = 0;; tries++) {
    const patience: Patience = { waitMs: 0 };
    try {
      return await body(patience);
    } catch (error) {
      if (tries >= retries || !(error instanceof IntegrityError) || error.code !== UNREACHABLE) throw error;
      await sleep(Math.min(MAX_WAIT_MS, Math.max(patience.waitMs, FIRST_WAIT_MS * 2 ** tries)), signal);
    }
  }
}

function sleep(ms: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve, reject) => {
    const stop = () => {
      clearTimeout(timer);
      reject(signal!.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, ms);
    if (signal?.aborted) stop();
    else signal?.addEventListener("abort", stop, { once: true });
  });
}
