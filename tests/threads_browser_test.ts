/** The tests of threads in a page of headless Chromium, whose main thread may not sleep. */
import { test } from "node:test";
import assert from "node:assert/strict";
import { chromiumSkip, type Outcome, withProgram } from "./chromium_support.ts";

const options = { timeout: 300_000, ...chromiumSkip() };

test("threads pass their tests on the main thread of an isolated page", options, async () => {
  await withProgram("threads.ts", { isolated: true }, async (page) => {
    const { passed, skipped, failed } = await page.evaluate("runTests()") as Outcome;
    assert.deepEqual([failed, skipped], [[], []]);
    assert.ok(passed >= 15, `${passed} tests`);
  });
});

test("a page that is not isolated computes on one thread and says why", options, async () => {
  await withProgram("threads.ts", { isolated: false }, async (page) => {
    const info = await page.evaluate("openInfo()") as { threads: number; reason: string };
    assert.equal(info.threads, 1);
    assert.match(info.reason, /one thread: the page is not cross-origin isolated$/);
  });
});
