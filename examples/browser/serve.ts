/**
 * `deno task browser [PORT]`: bundles the page and serves it on this machine.
 *
 * @module
 */

import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { extname, join, normalize } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";

const PAGE = fileURLToPath(new URL("./", import.meta.url));
const MODELS = fileURLToPath(new URL("../models/", import.meta.url));
const TYPES: Readonly<Record<string, string>> = {
  ".css": "text/css",
  ".html": "text/html",
  ".js": "text/javascript",
  ".json": "application/json",
};

/** The page's TypeScript and the package as one script. */
function bundle(deno: string): string {
  const scratch = mkdtempSync(join(tmpdir(), "lora-page-"));
  try {
    const output = join(scratch, "page.js");
    const options = ["--quiet", "--platform", "browser", "--minify", "--output", output];
    execFileSync(deno, ["bundle", ...options, join(PAGE, "page.ts")], { stdio: ["ignore", "pipe", "inherit"] });
    return readFileSync(output, "utf8");
  } finally {
    rmSync(scratch, { recursive: true });
  }
}

/** Where a path of the page lies on the disk. */
function locate(path: string): string {
  const clean = normalize(decodeURIComponent(path)); // an absolute path: no ".." survives
  return clean.startsWith("/models/") ? join(MODELS, clean.slice("/models/".length)) : join(PAGE, clean);
}

/** Serves the page at 127.0.0.1; port 0 takes a free one. */
export async function servePage(deno: string, port: number): Promise<{ server: Server; url: string }> {
  const script = bundle(deno);
  const server = createServer((request, response) => {
    const { pathname } = new URL(request.url ?? "/", "http://localhost");
    const path = pathname === "/" ? "/index.html" : pathname;
    // Only an isolated page has shared memory, which threads need.
    response.setHeader("cross-origin-opener-policy", "same-origin");
    response.setHeader("cross-origin-embedder-policy", "require-corp");
    response.setHeader("content-type", TYPES[extname(path)] ?? "application/octet-stream");
    try {
      response.end(path === "/page.js" ? script : readFileSync(locate(path)));
    } catch {
      response.writeHead(404, { "content-type": "text/plain" }).end("not found");
    }
  });
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen(port, "127.0.0.1", resolve);
  });
  return { server, url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/` };
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const { url } = await servePage(process.execPath, Number(process.argv[2] ?? 8080));
  process.stdout.write(`${url} (Ctrl-C stops it)\n`);
}
