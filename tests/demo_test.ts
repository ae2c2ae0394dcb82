import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import { startScript, TINY } from "./cli_support.ts";

const DEMO = fileURLToPath(new URL("../scripts/demo.ts", import.meta.url));

function lineOf(text: string, start: string): string {
  return text.split("\n").find((line) => line.trimStart().startsWith(start)) ?? "";
}

test("the demo gives the numbers of transformers + PEFT and passes its checks", { timeout: 60_000 }, async () => {
  const { status, stdout, stderr } = await startScript(DEMO, []).ended;
  assert.equal(stderr, "");
  assert.equal(status, 0, stdout);
  const lines = stdout.split("\n");
  const table = lines.slice(lines.findIndex((line) => line.startsWith("Perplexity")));
  for (const name of ["base", "news", "tweets"]) {
    const at = table.findIndex((line) => line.trimStart().startsWith(`${name} `));
    const [got, want] = [table[at], table[at + 1]].map((line) => line!.match(/\d+\.\d+/g)!.map(Number));
    assert.equal(want!.length, 4);
    for (const [kind, value] of want!.entries()) assert.ok(Math.abs(got![kind]! - value) <= 1e-3 * value, name);
  }
  const [moods] = stdout.match(/(?<=emotion .*)\d+ of 251/) ?? [];
  assert.equal(moods, "169 of 251");
  assert.match(lineOf(stdout, "mix"), /barrel|good time/);
  assert.equal(stdout.match(/^ {2}✓ /gm)?.length, 6);
  assert.match(stdout, /VADER/);
  for (const line of lines) assert.ok(line.length <= 100, line);
});

test("the demo shows a user's model and adapters", { timeout: 60_000 }, async () => {
  const adapters = ["--adapter", join(TINY, "news"), "--adapter", `${join(TINY, "tweets")}=0.5`];
  const options = ["--prompt", "The movie", "--tokens", "4", "--text", join(TINY, "..", "..", "..", "LICENSE")];
  const { status, stdout } = await startScript(DEMO, ["--model", join(TINY, "base"), ...adapters, ...options]).ended;
  assert.equal(status, 0, stdout);
  assert.match(stdout, /mix: 1 news \+ 0\.5 tweets/);
  assert.match(stdout, /^ {2}tweets +\d+\.\d\d$/m);
  assert.equal(stdout.match(/^ {2}✓ /gm)?.length, 3);
});

test("the demo exits 2 when adapters come without a base, and for unknown options", async () => {
  const [alone, unknown] = await Promise.all(
    [["--adapter", "x"], ["--nope"]].map((args) => startScript(DEMO, args).ended),
  );
  assert.equal(alone!.status, 2);
  assert.match(alone!.stderr, /--model is wanted/);
  assert.equal(unknown!.status, 2);
  assert.match(unknown!.stderr, /'--nope'.*\nTry: deno task demo --help\n$/s);
});

test("the demo names an absent adapter or text before it loads the base", async () => {
  for (const args of [["--adapter", join(TINY, "nope")], ["--text", join(TINY, "nope")]]) {
    const { status, stdout, stderr } = await startScript(DEMO, ["--model", join(TINY, "base"), ...args]).ended;
    assert.deepEqual([status, stdout], [1, ""]);
    assert.match(stderr, /^Cannot [^\n]*nope": there is no such (?:file|folder)\n$/);
  }
});

test("the demo ends quietly when its reader goes away", async () => {
  const { child, ended } = startScript(DEMO, []);
  child.stdout!.once("data", () => child.stdout!.destroy());
  const { status, stderr } = await ended;
  assert.deepEqual([status, stderr], [1, ""]);
});
