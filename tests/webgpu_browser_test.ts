/** Every operation's tests, and PEFT's models, in a page of headless Chromium, on its software adapter. */
import { test } from "node:test";
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join, normalize } from "node:path";
import { fileURLToPath } from "node:url";
import { findDeno } from "../scripts/engines.ts";
import { chromiumSkip, withPage } from "./chromium_support.ts";

const TESTS = fileURLToPath(new URL("./", import.meta.url));
const FOLDER = join(TESTS, "browser");

/** The tests as one script. */
function bundle(): string {
  const scratch = mkdtempSync(join(tmpdir(), "lora-page-"));
  try {
    const output = join(scratch, "page.js");
    const options = ["--platform", "browser", "--import-map", join(FOLDER, "import_map.json"), "--output", output];
    execFileSync(findDeno()!, ["bundle", "--quiet", ...options, join(FOLDER, "operations.ts")], { stdio: "pipe" });
    return readFileSync(output, "utf8");
  } finally {
    rmSync(scratch, { recursive: true });
  }
}

const PAGE = '<!doctype html><meta charset="utf-8"><script type="module" src="/page.js"></script>';

/** The page, its script, or a file of the fixtures. */
function answerTo(path: string, script: string): readonly [type: string, content?: string | Uint8Array] {
  if (path === "/") return ["text/html", PAGE];
  if (path === "/page.js") return ["text/javascript", script];
  const file = join(TESTS, normalize(decodeURIComponent(path))); // an absolute path: no ".." survives
  const served = path.startsWith("/fixtures/") && existsSync(file);
  return served ? ["application/octet-stream", readFileSync(file)] : [""];
}

interface Outcome {
  readonly passed: number;
  readonly skipped: readonly string[];
  readonly failed: readonly string[];
}

test(
  "every operation's tests, and PEFT's models, pass in headless Chromium",
  { timeout: 600_000, ...chromiumSkip() },
  async () => {
    const script = bundle();
    const server = createServer((request, response) => {
      const path = request.url ?? "/";
      // Only an isolated page has shared memory.
      response.setHeader("cross-origin-opener-policy", "same-origin");
      response.setHeader("cross-origin-embedder-policy", "require-corp");
      const [type, content] = answerTo(path, script);
      if (!content) return void response.writeHead(404).end();
      response.setHeader("content-type", type);
      response.end(content);
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    try {
      await withPage(`http://127.0.0.1:${(server.address() as AddressInfo).port}/`, async (page) => {
        await page.waitForFunction("globalThis.runTests");
        const { passed, skipped, failed } = await page.evaluate("runTests()") as Outcome;
        assert.deepEqual([failed, skipped], [[], []]);
        assert.ok(passed >= 150, `${passed} tests`);
      });
    } finally {
      server.close();
    }
  },
);
