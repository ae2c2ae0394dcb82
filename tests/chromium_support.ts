/**
 * Headless Chromium for tests: Debian's, driven by playwright-core, on its software GPU (`scripts/setup_gpu.sh`).
 *
 * @module
 */
import { execFileSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join, normalize } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { findBinary, findDeno } from "../scripts/engines.ts";

/** What tests use of playwright's page; code given as text runs in the page. */
export interface Page {
  goto(url: string): Promise<unknown>;
  waitForFunction(code: string, argument?: undefined, options?: { timeout: number }): Promise<unknown>;
  evaluate(code: string): Promise<unknown>;
  fill(selector: string, value: string): Promise<void>;
  click(selector: string): Promise<void>;
  selectOption(selector: string, value: string): Promise<unknown>;
  screenshot(options: { path: string; fullPage: boolean }): Promise<unknown>;
  setViewportSize(size: { width: number; height: number }): Promise<void>;
  on(event: "pageerror", handler: (error: Error) => void): void;
}

const FLAGS = ["--no-sandbox", "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"];
const chromium = process.env.JSRT_CHROMIUM ?? findBinary("chromium");
const playwright = process.env.JSRT_PLAYWRIGHT;

/** Why no test can run in Chromium here, as options of `test()`. */
export function chromiumSkip(): { skip?: string } {
  if (!chromium || !existsSync(chromium)) return { skip: "no Chromium on this machine" };
  if (!playwright || !existsSync(playwright)) return { skip: "JSRT_PLAYWRIGHT names no playwright-core" };
  return findDeno() ? {} : { skip: "no deno to bundle the page" };
}

/** Runs `body` with a page at `url`; an error that nothing in the page catches fails it. */
export async function withPage(url: string, body: (page: Page) => Promise<void>): Promise<void> {
  const { chromium: launcher } = createRequire(import.meta.url)(dirname(playwright!)); // it is CommonJS
  const browser = await launcher.launch({ executablePath: chromium, headless: true, args: FLAGS });
  try {
    const page: Page = await browser.newPage();
    const errors: Error[] = [];
    page.on("pageerror", (error) => errors.push(error));
    await page.goto(url);
    await body(page);
    if (errors[0]) throw errors[0];
  } finally {
    await browser.close();
  }
}

/** What the tests of a page came to. */
export interface Outcome {
  readonly passed: number;
  readonly skipped: readonly string[];
  readonly failed: readonly string[];
}

const TESTS = fileURLToPath(new URL("./", import.meta.url));
const FOLDER = join(TESTS, "browser");
const HTML = '<!doctype html><meta charset="utf-8"><script type="module" src="/page.js"></script>';

/** A program of tests/browser, and all that it imports, as one script. */
function bundle(program: string): string {
  const scratch = mkdtempSync(join(tmpdir(), "lora-page-"));
  try {
    const output = join(scratch, "page.js");
    const options = ["--platform", "browser", "--import-map", join(FOLDER, "import_map.json"), "--output", output];
    execFileSync(findDeno()!, ["bundle", "--quiet", ...options, join(FOLDER, program)], { stdio: "pipe" });
    return readFileSync(output, "utf8");
  } finally {
    rmSync(scratch, { recursive: true });
  }
}

/** The page, its script, or a file of the fixtures. */
function answerTo(path: string, script: string): readonly [type: string, content?: string | Uint8Array] {
  if (path === "/") return ["text/html", HTML];
  if (path === "/page.js") return ["text/javascript", script];
  const file = join(TESTS, normalize(decodeURIComponent(path))); // an absolute path: no ".." survives
  const served = path.startsWith("/fixtures/") && existsSync(file);
  return served ? ["application/octet-stream", readFileSync(file)] : [""];
}

/** Runs `body` with a page that has loaded a program of tests/browser; only an isolated page has shared memory. */
export async function withProgram(
  program: string,
  { isolated }: { isolated: boolean },
  body: (page: Page) => Promise<void>,
): Promise<void> {
  const script = bundle(program);
  const server = createServer((request, response) => {
    const [type, content] = answerTo(request.url ?? "/", script);
    if (content === undefined) return void response.writeHead(404).end();
    response.setHeader("content-type", type);
    if (isolated) {
      response.setHeader("cross-origin-opener-policy", "same-origin");
      response.setHeader("cross-origin-embedder-policy", "require-corp");
    }
    response.end(content);
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  try {
    await withPage(`http://127.0.0.1:${(server.address() as AddressInfo).port}/`, async (page) => {
      await page.waitForFunction("globalThis.runTests");
      await body(page);
    });
  } finally {
    server.close();
  }
}
