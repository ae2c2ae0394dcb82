/** `deno task test` counts what the engines did, and a test that silently did not run is seen. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, relative } from "node:path";
import process from "node:process";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { findDeno, findEngines } from "../scripts/engines.ts";
import { parseJunit } from "../scripts/junit.ts";

const deno = findDeno() ?? "";
const skip = deno ? false : "no deno here";
const root = fileURLToPath(new URL("../", import.meta.url));
const engines = findEngines().found.length;

/** Runs the runner on one test file with this body. */
function run(body: string, env: Record<string, string> = {}): { lines: string[]; last: string; status: number | null } {
  const folder = mkdtempSync(join(tmpdir(), "lowrank-runner-"));
  try {
    const file = join(folder, "sample_test.ts");
    writeFileSync(file, `import { test } from "node:test";\n${body}`);
    const { stdout, status } = spawnSync(deno, ["run", "-A", "scripts/test.ts", relative(root, file)], {
      cwd: root,
      encoding: "utf8",
      env: { ...process.env, REQUIRE_ALL: "0", ...env },
    });
    const lines = stdout.trimEnd().split("\n");
    return { lines, last: lines.at(-1) ?? "", status };
  } finally {
    rmSync(folder, { recursive: true });
  }
}

test("parseJunit() reads what Deno, Node and Bun write", () => {
  const deno =
    `<testcase name="a &lt;&quot;&gt;" classname="x"> </testcase><testcase name="b"><failure message="m">t</failure></testcase>
    <testcase name="c"><skipped/></testcase>`;
  const node =
    `<testcase name="a &lt;&amp;quot;>" time="0"/><testcase name="b" failure="m"><failure message="m">t</failure></testcase>
    <testcase name="c" time="0"><skipped type="skipped" message="no model"/></testcase>`;
  const bun =
    `<testcase name="a &lt;&quot;&gt;" line="1" /><testcase name="b"><failure type="E" message="m&#10;">t</failure></testcase>
    <testcase name="c"><skipped /></testcase>`;
  for (const xml of [deno, node, bun]) {
    const results = parseJunit(xml).map(({ name, outcome }) => [name, outcome]);
    assert.deepEqual(results, [['a <">', "passed"], ["b", "failed"], ["c", "skipped"]]);
  }
  assert.equal(parseJunit(node)[2]?.reason, "no model");
});

test("the runner sums over the engines and ends well when nothing failed", { skip }, () => {
  const { last, status, lines } = run('test("a", async () => {});\ntest("b", { skip: "no GPU" }, async () => {});');
  assert.equal(last, `${engines} passed, 0 failed`);
  assert.equal(status, 0);
  assert.ok(lines.some((line) => line.startsWith("skipped: ") && line.includes("b [Deno")), lines.join("\n"));
});

test("the runner fails with a test that fails", { skip }, () => {
  const { last, status } = run('test("a", async () => {});\ntest("b", async () => { throw new Error("no"); });');
  assert.equal(last, `${engines} passed, ${engines} failed`);
  assert.equal(status, 1);
});

test("the runner fails with a skipped test when REQUIRE_ALL=1", { skip }, () => {
  const missing = findEngines().missing.length;
  const { last, status } = run('test("a", async () => {});\ntest("b", { skip: true }, async () => {});', {
    REQUIRE_ALL: "1",
  });
  assert.equal(last, `${engines} passed, ${engines + missing} failed`);
  assert.equal(status, 1);
});

test("the runner fails with a file that does not load", { skip }, () => {
  const { last, status } = run('import "./absent.ts";\ntest("a", async () => {});');
  assert.equal(last, `0 passed, ${engines} failed`);
  assert.equal(status, 1);
});

test(
  "the runner sees a test that one engine passed over",
  { skip: skip || (engines < 2 && "one engine only") },
  () => {
    const { lines, status } = run(
      'test("a", async () => {});\nif (!("Deno" in globalThis)) test("b", async () => {});',
    );
    assert.ok(
      lines.some((line) => line.includes("ran a different number of tests: 1 in Deno, 2 in")),
      lines.join("\n"),
    );
    assert.equal(status, 1);
  },
);
