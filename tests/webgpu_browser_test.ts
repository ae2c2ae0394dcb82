/** Every operation's tests in a page of headless Chromium, on its software adapter. */
import { test } from "node:test";
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { findBinary, findDeno } from "../scripts/engines.ts";

const FOLDER = fileURLToPath(new URL("./browser/", import.meta.url));
const chromium = process.env.JSRT_CHROMIUM ?? findBinary("chromium");
const playwright = process.env.JSRT_PLAYWRIGHT;
const deno = findDeno();
const FLAGS = ["--no-sandbox", "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"];

function whyNot(): { skip?: string } {
  if (!chromium || !existsSync(chromium)) return { skip: "no Chromium on this machine" };
  if (!playwright || !existsSync(playwright)) return { skip: "JSRT_PLAYWRIGHT names no playwright-core" };
  return deno ? {} : { skip: "no deno to bundle the page" };
}

/** The tests as one script. */
function bundle(): string {
  const scratch = mkdtempSync(join(tmpdir(), "lora-page-"));
  try {
    const output = join(scratch, "page.js");
    const options = ["--platform", "browser", "--import-map", join(FOLDER, "import_map.json"), "--output", output];
    execFileSync(deno!, ["bundle", "--quiet", ...options, join(FOLDER, "operations.ts")], { stdio: "pipe" });
    return readFileSync(output, "utf8");
  } finally {
    rmSync(scratch, { recursive: true });
  }
}

interface Page {
  goto(url: string): Promise<unknown>;
  waitForFunction(code: string): Promise<unknown>;
  evaluate(code: string): Promise<{ passed: number; skipped: string[]; failed: string[] }>;
}

test("every operation's tests pass in headless Chromium", { timeout: 600_000, ...whyNot() }, async () => {
  const script = bundle();
  const server = createServer((request, response) => {
    const isScript = request.url === "/page.js";
    response.setHeader("content-type", isScript ? "text/javascript" : "text/html");
    // Only an isolated page has shared memory.
    response.setHeader("cross-origin-opener-policy", "same-origin");
    response.setHeader("cross-origin-embedder-policy", "require-corp");
    response.end(
      isScript ? script : '<!doctype html><meta charset="utf-8"><script type="module" src="/page.js"></script>',
    );
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const { chromium: launcher } = createRequire(import.meta.url)(dirname(playwright!)); // it is CommonJS
  const browser = await launcher.launch({ executablePath: chromium, headless: true, args: FLAGS });
  try {
    const page: Page = await browser.newPage();
    await page.goto(`http://127.0.0.1:${(server.address() as AddressInfo).port}/`);
    await page.waitForFunction("globalThis.runTests");
    const { passed, skipped, failed } = await page.evaluate("runTests()");
    assert.deepEqual([failed, skipped], [[], []]);
    assert.ok(passed >= 150, `${passed} tests`);
  } finally {
    await browser.close();
    server.close();
  }
});
