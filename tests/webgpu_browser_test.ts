/** Every operation's tests, and PEFT's models, in a page of headless Chromium, on its software adapter. */
import { test } from "node:test";
import assert from "node:assert/strict";
import { chromiumSkip, type Outcome, withProgram } from "./chromium_support.ts";

test(
  "every operation's tests, and PEFT's models, pass in headless Chromium",
  { timeout: 600_000, ...chromiumSkip() },
  async () => {
    await withProgram("operations.ts", { isolated: true }, async (page) => {
      const { passed, skipped, failed } = await page.evaluate("runTests()") as Outcome;
      assert.deepEqual([failed, skipped], [[], []]);
      assert.ok(passed >= 150, `${passed} tests`);
    });
  },
);
