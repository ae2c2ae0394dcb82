/**
 * Headless Chromium for tests: Debian's, driven by playwright-core, on its software GPU (`scripts/setup_gpu.sh`).
 *
 * @module
 */
import { existsSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname } from "node:path";
import process from "node:process";
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
