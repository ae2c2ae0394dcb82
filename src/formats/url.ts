import { IntegrityError, LimitError, MismatchError } from "../errors.ts";
import { allocate } from "./allocate.ts";
import { concat } from "./concat.ts";
import { plainFileName } from "./file_name.ts";
import { quote } from "./quote.ts";
import type { Folder, ReadOptions, Source } from "./source.ts";
import { isTransient, type Patience, persist, UNREACHABLE } from "./url_retry.ts";
import { checkUrl, checkUrlOptions, nameOfUrl, requestRange, type UrlOptions } from "./url_request.ts";

export type { UrlOptions };

/** Bytes asked for first: they tell length and ETag, and hold all of a config and most headers. */
const HEAD_BYTES = 65_536;
const DEFAULT_MAX_WHOLE = 64_000_000;

/**
 * Makes an http: or https: URL a source that is read by ranges.
 *
 * The first use sends one request, for the first 64 KiB; they are kept. A server that ignores ranges is accepted where
 * the whole file is within `maxWholeBytes`. A request without an answer, one that breaks off, and the answers of a busy
 * server (408, 425, 429, 500, 502, 503, 504) are tried again, `retries` times; the bytes that came are asked for once
 * more. Nothing is cached beyond the object.
 *
 * @param url The file, without credentials.
 * @param options Headers and limits.
 * @returns The source.
 * @throws {TypeError} If the URL is not an absolute http: or https: URL, or holds credentials, or an option is out of range.
 *
 * @example
 * ```ts
 * import assert from "node:assert/strict";
 * import { urlSource } from "@lowrank/lora";
 * const source = urlSource("https://example.com/a.safetensors?token=secret");
 * assert.equal(source.name, "https://example.com/a.safetensors");
 * ```
 */
export function urlSource(url: URL | string, options: UrlOptions = {}): Source {
  return new UrlSource(checkUrl(url), checkUrlOptions(options));
}

/**
 * Makes an http: or https: URL a folder; a query is sent along with every file.
 *
 * What a first look at a file told (its first 64 KiB, length and ETag) is kept as long as the folder.
 *
 * @param url The folder, with or without a slash at its end, without credentials.
 * @param options Headers and limits.
 * @returns The folder; it cannot list its files.
 * @throws {TypeError} If the URL is not an absolute http: or https: URL, or holds credentials, or an option is out of range.
 */
export function urlFolder(url: URL | string, options: UrlOptions = {}): Folder {
  const base = checkUrl(url);
  if (!base.pathname.endsWith("/")) base.pathname += "/";
  return new UrlFolder(base, checkUrlOptions(options));
}

class UrlFolder implements Folder {
  readonly name: string;
  readonly #base: URL;
  readonly #options: UrlOptions;
  readonly #sources: Map<string, UrlSource> = new Map();

  constructor(base: URL, options: UrlOptions) {
    this.name = nameOfUrl(base);
    this.#base = base;
    this.#options = options;
  }

  async has(file: string, options: ReadOptions = {}): Promise<boolean> {
    try {
      await this.open(file).size(options);
      return true;
    } catch (error) {
      if (error instanceof MismatchError) return false;
      throw error;
    }
  }

  open(file: string): Source {
    let source = this.#sources.get(file);
    if (source === undefined) {
      const url = new URL(this.#base);
      url.pathname += encodeURIComponent(plainFileName(file, this.name));
      source = new UrlSource(url, this.#options);
      this.#sources.set(file, source);
    }
    return source;
  }
}

/** What the first answer told; `head` is the whole file where the server cannot send ranges. */
interface Start {
  readonly size: number;
  readonly identity: string | null;
  readonly head: Uint8Array;
}

class UrlSource implements Source {
  readonly name: string;
  readonly #url: URL;
  readonly #options: UrlOptions;
  #start: Start | null = null;

  constructor(url: URL, options: UrlOptions) {
    this.name = nameOfUrl(url);
    this.#url = url;
    this.#options = options;
  }

  async size(options: ReadOptions = {}): Promise<number> {
    return (await this.#open(options.signal)).size;
  }

  async read(offset: number, length: number, options: ReadOptions = {}): Promise<Uint8Array> {
    const { size, identity, head } = await this.#open(options.signal);
    const end = offset + length;
    if (!(offset >= 0 && length >= 0 && end <= size)) {
      throw this.#refuse(`${size} bytes`, `at least ${end}`);
    }
    if (end <= head.length) return head.slice(offset, end);
    if (length === 0) return new Uint8Array();
    return await persist(
      async (patience) => {
        const response = await requestRange(this.#url, [offset, end - 1], this.#options, options.signal);
        try {
          if (response.status !== 206) throw this.#refuseStatus(response, patience);
          if (identityOf(response) !== identity) throw this.#refuse("another ETag than before", "the same file");
          const total = this.#checkRange(response, offset, end);
          if (total !== size) throw this.#refuse(`${total} bytes in all`, `${size} as before`);
          return await this.#body(response, length, options.signal);
        } finally {
          await discard(response);
        }
      },
      this.#options.retries,
      options,
    );
  }

  /** The ETag, where it stands for these bytes and no others. */
  async version(options: ReadOptions = {}): Promise<string | null> {
    const { size, identity } = await this.#open(options.signal);
    return identity?.startsWith('"') ? `${identity} ${size}` : null;
  }

  async #open(signal: AbortSignal | undefined): Promise<Start> {
    signal?.throwIfAborted();
    if (this.#start !== null) return this.#start;
    const start = await persist(
      async (patience) => {
        const response = await requestRange(this.#url, [0, HEAD_BYTES - 1], this.#options, signal);
        try {
          return await this.#readStart(response, patience, signal);
        } finally {
          await discard(response);
        }
      },
      this.#options.retries,
      signal ? { signal } : {},
    );
    // Of calls side by side one answer counts, and the file may have changed between them.
    const { identity, size } = this.#start ??= start;
    if (start.identity !== identity) throw this.#refuse("another ETag than before", "the same file");
    if (start.size !== size) throw this.#refuse(`${start.size} bytes in all`, `${size} as before`);
    return this.#start;
  }

  #refuseStatus(response: Response, patience: Patience): IntegrityError {
    const code = isTransient(response, patience) ? UNREACHABLE : undefined;
    return this.#refuse(`status ${response.status}`, "206", { code });
  }

  async #readStart(response: Response, patience: Patience, signal: AbortSignal | undefined): Promise<Start> {
    const identity = identityOf(response);
    if (response.status === 200) {
      const head = await this.#whole(response, signal);
      return { size: head.length, identity, head };
    }
    if (response.status === 206) {
      const size = this.#checkRange(response, 0, HEAD_BYTES);
      return { size, identity, head: await this.#body(response, Math.min(size, HEAD_BYTES), signal) };
    }
    // An empty file has no first byte.
    if (response.status === 416 && response.headers.get("content-range") === "bytes */0") {
      return { size: 0, identity, head: new Uint8Array() };
    }
    if (response.status === 404 || response.status === 410) {
      throw new MismatchError(`Cannot open ${quote(this.name)}: there is no such file`, {
        code: "missing-file",
        file: this.name,
        found: response.status,
        missing: [this.name],
      });
    }
    throw this.#refuseStatus(response, patience);
  }

  /** Checks that the answer holds the bytes from `begin` to `end`, or to the file's end; answers the file's length. */
  #checkRange(response: Response, begin: number, end: number): number {
    const text = response.headers.get("content-range");
    const [, first, last, total] = /^bytes (\d{1,15})-(\d{1,15})\/(\d{1,15})$/.exec(text ?? "") ?? [];
    const size = Number(total);
    if (text === null) throw this.#refuse("no Content-Range", "one, exposed to this page by the server");
    if (Number(first) !== begin || Number(last) !== Math.min(end, size) - 1) {
      throw this.#refuse(`Content-Range ${quote(text)}`, `bytes ${begin}-${end - 1}`);
    }
    const encoding = response.headers.get("content-encoding") ?? "identity";
    if (encoding !== "identity") throw this.#refuse(`content encoding ${quote(encoding)}`, "none for a range");
    return size;
  }

  /** Reads exactly `length` bytes. */
  async #body(response: Response, length: number, signal: AbortSignal | undefined): Promise<Uint8Array> {
    const bytes = allocate(this.name, length);
    let at = 0;
    for await (const chunk of this.#chunks(response, signal)) {
      if (at + chunk.length > length) throw this.#refuse(`more than ${length} bytes`, `${length}`);
      bytes.set(chunk, at);
      at += chunk.length;
    }
    if (at !== length) throw this.#refuse(`${at} bytes`, `${length}`, { code: UNREACHABLE });
    return bytes;
  }

  /** Reads a whole file that came without being asked for as such. */
  async #whole(response: Response, signal: AbortSignal | undefined): Promise<Uint8Array> {
    const type = response.headers.get("content-type") ?? "";
    if (type.startsWith("text/html")) throw this.#refuse("an HTML page", "the file");
    const promised = response.headers.get("content-length");
    const isEncoded = response.headers.has("content-encoding");
    const limit = this.#options.maxWholeBytes ?? DEFAULT_MAX_WHOLE;
    if (promised !== null) this.#checkLimit(Number(promised), limit);
    const chunks: Uint8Array[] = [];
    let length = 0;
    for await (const chunk of this.#chunks(response, signal)) {
      length += chunk.length;
      this.#checkLimit(length, limit);
      chunks.push(chunk);
    }
    if (promised !== null && !isEncoded && Number(promised) !== length) {
      throw this.#refuse(`${length} bytes`, `${promised}`);
    }
    return concat(chunks);
  }

  async *#chunks(response: Response, signal: AbortSignal | undefined): AsyncGenerator<Uint8Array> {
    const reader = response.body?.getReader();
    if (reader === undefined) return;
    try {
      for (;;) {
        const step = await reader.read();
        if (step.done) return;
        yield step.value;
      }
    } catch (cause) {
      signal?.throwIfAborted();
      throw this.#refuse("a broken connection", "the whole answer", { cause, code: UNREACHABLE });
    } finally {
      await reader.cancel().catch(() => {});
    }
  }

  #checkLimit(value: number, limit: number): void {
    if (value <= limit) return;
    throw new LimitError(
      `Cannot read ${quote(this.name)} of ${value} bytes from a server without ranges: expected at most ${limit}`,
      { file: this.name, field: "size", limit, value },
    );
  }

  #refuse(
    found: string,
    expected: string,
    details: { readonly cause?: unknown; readonly code?: string | undefined } = {},
  ): IntegrityError {
    return new IntegrityError(`Cannot read ${quote(this.name)} with ${found}: expected ${expected}`, {
      file: this.name,
      found,
      expected,
      ...(details.code !== undefined && { code: details.code }),
      cause: details.cause,
    });
  }
}

function identityOf(response: Response): string | null {
  return response.headers.get("etag") ?? response.headers.get("last-modified");
}

/** Lets the connection go where the body was not even begun. */
async function discard(response: Response): Promise<void> {
  if (!response.bodyUsed) await response.body?.cancel().catch(() => {});
}
