/** The page of examples/browser in headless Chromium: every demo adapter answers, on both backends. */
import { test } from "node:test";
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import process from "node:process";
import { servePage } from "../examples/browser/serve.ts";
import { findDeno } from "../scripts/engines.ts";
import { chromiumSkip, type Page, withPage } from "./chromium_support.ts";

interface Expected {
  readonly greedy: readonly { readonly adapter: string | null; readonly prompt: string; readonly text: string }[];
}

/** What transformers and PEFT answer; the choice among these 8 tokens is clear at each step. */
const EXPECTED = JSON.parse(
  readFileSync(new URL("../examples/models/tiny/expected.json", import.meta.url), "utf8"),
) as Expected;
const PROMPT = "The movie";
const MINUTE = 60_000;
const ANSWERS = `[...document.querySelectorAll("article")].map((card) => ({
  title: card.querySelector("h2").textContent,
  text: card.querySelector(".text").textContent,
  speed: card.querySelector(".speed").textContent,
}))`;

async function ready(page: Page): Promise<string> {
  await page.waitForFunction('!document.querySelector("#generate").disabled', undefined, { timeout: MINUTE });
  return await page.evaluate('document.querySelector("#status").textContent') as string;
}

async function generate(page: Page, prompt: string): Promise<{ title: string; text: string; speed: string }[]> {
  await page.fill("#prompt", prompt);
  await page.fill("#tokens", "8");
  await page.click("#generate");
  const last = 'document.querySelector("article:last-child .speed").textContent';
  await page.waitForFunction(last, undefined, { timeout: MINUTE });
  await ready(page);
  return await page.evaluate(ANSWERS) as { title: string; text: string; speed: string }[];
}

async function withExample(body: (page: Page) => Promise<void>): Promise<void> {
  const { server, url } = await servePage(findDeno()!, 0);
  try {
    await withPage(url, body);
  } finally {
    server.close();
    server.closeAllConnections();
  }
}

for (const device of ["wasm", "webgpu"]) {
  const name = `the example page answers with the base, each adapter and a mix [${device}]`;
  test(name, { timeout: 4 * MINUTE, ...chromiumSkip() }, async () => {
    await withExample(async (page) => {
      await ready(page);
      await page.selectOption("#device", device);
      assert.match(await ready(page), new RegExp(`^Ready on ${device} .* 3 adapters loaded`));
      const answers = await generate(page, PROMPT);
      const titles = ["base", "news", "tweets", "half news, half tweets", "emotion"];
      assert.deepEqual(answers.map(({ title }) => title), titles);
      for (const { title, text, speed } of answers) {
        assert.match(speed, title === "emotion" ? /^1 token, / : /^8 tokens, /);
        const adapter = title === "base" ? null : title;
        const expected = EXPECTED.greedy.find((greedy) => greedy.adapter === adapter && greedy.prompt === PROMPT);
        if (expected && title !== "emotion") assert.ok(`${PROMPT}${expected.text}`.startsWith(text), text);
        assert.ok(text.length > PROMPT.length + 4, text);
      }
      assert.match(answers.at(-1)!.text, /\nMood: (good|bad)$/);
      const path = process.env.SCREENSHOT;
      if (path) await page.screenshot({ path: `${path}-${device}.png`, fullPage: true });
    });
  });
}
