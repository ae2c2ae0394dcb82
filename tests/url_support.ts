/** A server of one file for the tests of URL sources. */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";

/** Answers a request. */
export type Handler = (request: IncomingMessage, response: ServerResponse) => void;

/** The file. */
export const FILE: Uint8Array<ArrayBuffer> = Uint8Array.from({ length: 200_000 }, (_, i) => i * 7 + (i >> 8));

/** Runs `use` with the address of a server on this machine, and the requests it got. */
export async function serve(
  handler: Handler,
  use: (origin: string, log: IncomingMessage[]) => Promise<void>,
): Promise<void> {
  const log: IncomingMessage[] = [];
  const server: Server = createServer((request, response) => {
    log.push(request);
    response.setHeader("connection", "close");
    handler(request, response);
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  try {
    await use(`http://127.0.0.1:${(server.address() as AddressInfo).port}`, log);
  } finally {
    server.closeAllConnections?.();
    await new Promise((resolve) => server.close(resolve));
  }
}

/** Answers ranges as a static file server does; `change` may spoil the headers. */
export function ranges(
  bytes: Uint8Array,
  change: (headers: Record<string, string>, begin: number) => void = () => {},
): Handler {
  return (request, response) => {
    const [, first, last] = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? "")!;
    const begin = Number(first);
    const end = Math.min(Number(last) + 1, bytes.length);
    const headers: Record<string, string> = {
      etag: '"v1"',
      "content-range": begin < bytes.length ? `bytes ${begin}-${end - 1}/${bytes.length}` : `bytes */${bytes.length}`,
    };
    change(headers, begin);
    response.writeHead(begin < bytes.length ? 206 : 416, headers).end(bytes.subarray(begin, end));
  };
}

/** Answers always the same. */
export function status(code: number, headers: Record<string, string> = {}, body: string | Uint8Array = ""): Handler {
  return (_request, response) => response.writeHead(code, headers).end(body);
}
