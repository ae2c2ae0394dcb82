import { IntegrityError } from "../errors.ts";
import { quote } from "./quote.ts";
import { UNREACHABLE } from "./url_retry.ts";

/** Options of sources and folders behind URLs. */
export interface UrlOptions {
  /** Headers such as `authorization`. They go to the URL's own origin only, never along with a redirect elsewhere. */
  readonly headers?: Readonly<Record<string, string>>;
  /** Largest file in bytes to take from a server that cannot send ranges; 64,000,000 if absent. */
  readonly maxWholeBytes?: number;
  /** Further tries where there is no answer, a broken one, or a busy server's; 4 if absent. */
  readonly retries?: number;
  /** Used instead of the global `fetch`. */
  readonly fetch?: typeof fetch;
}

const REDIRECTS: ReadonlySet<number> = new Set([301, 302, 303, 307, 308]);
const MAX_REDIRECTS = 10;

/**
 * Checks a URL.
 *
 * @param url An absolute http: or https: URL without credentials.
 * @returns A copy of it, without its fragment.
 * @throws {TypeError} If it is anything else; the message does not repeat it.
 */
export function checkUrl(url: URL | string): URL {
  const parsed = URL.canParse(url) ? new URL(url) : null;
  if (parsed === null || !isHttp(parsed)) throw new TypeError("Cannot open this URL: expected http: or https:");
  if (parsed.username !== "" || parsed.password !== "") {
    throw new TypeError("Cannot open a URL with credentials in it: pass them as `headers`");
  }
  parsed.hash = "";
  return parsed;
}

/**
 * Checks the options of a URL, and returns them.
 *
 * @throws {TypeError} If `retries` is no whole number from 0: with NaN there would be no end.
 */
export function checkUrlOptions(options: UrlOptions): UrlOptions {
  const { retries = 0 } = options;
  if (Number.isSafeInteger(retries) && retries >= 0) return options;
  throw new TypeError(`Cannot open a URL with retries ${String(retries)}: expected a whole number from 0`);
}

/**
 * Names a URL in error messages.
 *
 * @param url The URL.
 * @returns Origin and path; a query may hold a token.
 */
export function nameOfUrl(url: URL): string {
  return url.origin + url.pathname;
}

/**
 * Asks for a range of bytes, following redirects; `options.headers` never leave the URL's origin.
 *
 * @param url Where to ask.
 * @param range First and last byte.
 * @param options Headers and the `fetch` to use.
 * @param signal Aborts the request.
 * @returns The answer, whatever its status.
 * @throws {IntegrityError} If no answer comes, or a redirect is unsafe.
 */
export async function requestRange(
  url: URL,
  range: readonly [number, number],
  options: UrlOptions,
  signal: AbortSignal | undefined,
): Promise<Response> {
  // A compressed answer would make the range one of compressed bytes.
  const own = { range: `bytes=${range[0]}-${range[1]}`, "accept-encoding": "identity" };
  let target = url;
  let secrets = options.headers ?? {};
  for (let hop = 0; hop <= MAX_REDIRECTS; hop++) {
    const response = await send(url, target, { headers: { ...secrets, ...own }, redirect: "manual" }, options, signal);
    if (response.type === "opaqueredirect") return await follow(url, target, own, options, signal);
    const location = REDIRECTS.has(response.status) ? response.headers.get("location") : null;
    if (location === null) return response;
    await response.body?.cancel();
    target = nextTarget(url, target, location);
    if (target.origin !== url.origin) secrets = {};
  }
  throw refuse(url, `more than ${MAX_REDIRECTS} redirects`, "an answer");
}

/** In browsers a page cannot see where a redirect leads, so that secrets cannot be kept back: they forbid it. */
async function follow(
  url: URL,
  target: URL,
  own: Record<string, string>,
  options: UrlOptions,
  signal: AbortSignal | undefined,
): Promise<Response> {
  if (Object.keys(options.headers ?? {}).length > 0) {
    throw refuse(url, "a redirect while `headers` are given", "an answer, because this runtime hides the new address");
  }
  const response = await send(url, target, { headers: own, redirect: "follow" }, options, signal);
  nextTarget(url, target, response.url);
  return response;
}

function nextTarget(url: URL, from: URL, location: string): URL {
  const next = URL.canParse(location, from.href) ? new URL(location, from.href) : null;
  if (next === null || !isHttp(next) || (from.protocol === "https:" && next.protocol === "http:")) {
    throw refuse(url, "a redirect to an unsafe address", "https:");
  }
  return next;
}

async function send(
  url: URL,
  target: URL,
  init: RequestInit,
  options: UrlOptions,
  signal: AbortSignal | undefined,
): Promise<Response> {
  signal?.throwIfAborted();
  try {
    return await (options.fetch ?? fetch)(target.href, signal === undefined ? init : { ...init, signal });
  } catch (cause) {
    signal?.throwIfAborted();
    throw refuse(url, "no answer", "one", { cause, code: UNREACHABLE });
  }
}

function isHttp(url: URL): boolean {
  return url.protocol === "http:" || url.protocol === "https:";
}

function refuse(
  url: URL,
  found: string,
  expected: string,
  details: { readonly cause?: unknown; readonly code?: string } = {},
): IntegrityError {
  const file = nameOfUrl(url);
  return new IntegrityError(`Cannot read ${quote(file)} with ${found}: expected ${expected}`, {
    file,
    found,
    expected,
    ...details,
  });
}
