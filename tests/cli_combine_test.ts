import assert from "node:assert/strict";
import { existsSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { formatError } from "../src/cli/written_adapter.ts";
import { formatHeatMaps } from "../src/cli/heat_map.ts";
import { FIXTURES, lora, loraJson } from "./cli_support.ts";

const MULTI = join(FIXTURES, "multi");
async function inFolder(body: (path: string) => Promise<void>): Promise<void> {
  const path = mkdtempSync(join(tmpdir(), "lora-"));
  try {
    await body(path);
  } finally {
    rmSync(path, { recursive: true });
  }
}

test("lora combine writes an adapter that lora reads, and says what it cost", async () => {
  await inFolder(async (path) => {
    const out = join(path, "sum");
    const adapters = ["--adapter", join(MULTI, "summary"), "--adapter", `${join(MULTI, "qa")}=-1.3`];
    const made = await loraJson("combine", ...adapters, "--out", out);
    assert.deepEqual(Object.keys(made), ["out", "sha256", "bytes", "parameters", "modules", "report"]);
    const { sha256, modules } = await loraJson("inspect", out) as { sha256: string; modules: { scaling: number }[] };
    assert.equal(sha256, made.sha256);
    assert.ok(modules.length === 14 && modules.every(({ scaling }) => scaling === 1));
    const { status, stdout, stderr } = await lora(
      "combine",
      ...adapters,
      "--out",
      out,
      "--method",
      "svd",
      "--rank",
      "2",
    );
    assert.equal(status, 0, stderr);
    assert.match(stdout, /^model\.layers\.\*\.self_attn\.q_proj +2 +2 +0\.\d+ +0\.\d+$/m);
    assert.match(stderr, /^! .*PEFT 0\.21\.2 would scale this by 1\.41 \(and 13 more alike\), its result keeps/);
  });
});

test("lora resize lowers the rank; lora compare shows how much stayed", async () => {
  await inFolder(async (path) => {
    const [full, out, svg] = [join(MULTI, "summary"), join(path, "small"), join(path, "phi.svg")];
    const { modules } = await loraJson("resize", full, "--out", out, "--energy", "0.5");
    assert.equal(modules, 6);
    const found = await loraJson("compare", full, out, "--of", "delta", "--svg", svg) as { cosine: number };
    assert.ok(found.cosine > 0.7 && found.cosine < 0.9, `${found.cosine}`);
    assert.match(readFileSync(svg, "utf8"), /^<svg [^]*<title>i 1, j 1: 1\.000<\/title>[^]*<\/svg>\n$/);
    const { stdout } = await lora("compare", full, join(MULTI, "qa"));
    assert.match(stdout, /^model\.layers\.0\.self_attn\.q_proj +9 2 /m);
    assert.match(stdout, /^8 modules are in qa only$/m);
  });
});

test("lora combine, resize and compare refuse wrong arguments with 2, and write nothing", async () => {
  await inFolder(async (path) => {
    const [adapter, out] = [join(MULTI, "qa"), join(path, "out")];
    const cases: readonly (readonly [string[], RegExp])[] = [
      [["combine", "--out", out], /without --adapter/],
      [["combine", "--adapter", adapter], /without --out/],
      [["combine", "--adapter", adapter, "--out", out, "--method", "sum"], /one of exact, cat, svd/],
      [["combine", "--adapter", adapter, "--out", out, "--rank", "3"], /by "exact" with --rank: none is wanted/],
      [["combine", "--adapter", adapter, "--out", out, "--density", "0.5"], /by "exact" with --density/],
      [["resize", adapter, "--out", out], /either --rank or --energy/],
      [["combine", "--adapter", adapter, "--out", out, "--method", "dare_ties_svd"], /without --density/],
      [["combine", "--adapter", `${adapter}=2`, "--out", join(MULTI, ".", "qa")], /qa", which is read too/],
      [["resize", adapter, "--out", adapter, "--rank", "1"], /qa", which is read too/],
      [["resize", adapter, "--out", out, "--rank", "1", "--energy", "1"], /with two sizes: either --rank or --energy/],
      [["compare", adapter, adapter, "--svg", join(adapter, "adapter_config.json")], /another --svg is wanted/],
      [["compare", adapter], /Cannot compare 1 adapters: two are wanted/],
    ];
    for (const [args, message] of cases) {
      const { status, stderr } = await lora(...args);
      assert.deepEqual([status, message.test(stderr)], [2, true], stderr);
    }
    assert.ok(!existsSync(out));
  });
});

test("formatHeatMaps() draws every value, wraps panels and escapes titles", () => {
  const table = [[0, 0.5], [1, 0.25]];
  const axes = { rows: "of <one>", columns: "of two" };
  const svg = formatHeatMaps(Array.from({ length: 6 }, () => ({ title: "a<b>&", table })), axes);
  assert.equal(svg.match(/<title>/g)!.length, 24);
  assert.match(svg, /rows: of &lt;one&gt;; columns: of two/);
  assert.equal(svg.match(/a&lt;b&gt;&amp;/g)!.length, 6);
  assert.match(svg, /fill="rgb\(68,1,84\)"><title>i 1, j 1: 0\.000/);
  assert.match(svg, /fill="rgb\(253,231,37\)"><title>i 2, j 1: 1\.000/);
  assert.match(svg, /translate\(24 58\)[^]*translate\(24 160\)/);
  assert.doesNotMatch(formatHeatMaps([{ title: "empty", table: [] }], axes), /NaN|Infinity|<title>/);
  const wide = formatHeatMaps(
    [{ title: "8 by 64", table: Array.from({ length: 8 }, () => Array(64).fill(0.5)) }],
    axes,
  );
  assert.match(wide, /text-anchor="middle" fill="#666">63</);
  assert.doesNotMatch(wide, /text-anchor="middle" fill="#666">2</);
});

test("formatError() is short for large and for tiny errors", () => {
  assert.deepEqual([0, 0.12345, 1, 2.6e-8].map(formatError), ["0", "0.123", "1.00", "2.6e-8"]);
});
